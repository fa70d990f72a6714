"""Images in Parquet, as the `datasets` library and our own shards have them: a column that is a
struct of `bytes` and `path` (or just bytes). The Arrow files of that library are read the same."""

from __future__ import annotations

import functools
import os
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from psvit_ray.data.images import file_bytes
from psvit_ray.data.images.decode import BadImage
from psvit_ray.data.sources import arrow_file
from psvit_ray.data.sources.columns import BYTES_FIELD
from psvit_ray.data.tables import listing
from psvit_ray.storage import files
from psvit_ray.storage.folder import Folder

CACHE_BYTES = 512 << 20
OPEN_FILES = 64


@dataclass(frozen=True, eq=False)
class ParquetTable:
    """Rows of Parquet files; a block is a row group."""

    root: Folder
    files: tuple[str, ...]
    """Relative to `root`."""
    groups: np.ndarray
    """(G, 3) int64: of each row group the number of its file, its number there (in an Arrow file
    the byte at which it starts), its first row."""
    column: str
    """The one with the bytes: `image.bytes` or `image`, whatever its name."""
    rows: np.ndarray
    """(N,) int64: of each image, in its file."""
    blocks: np.ndarray
    labels: np.ndarray
    """(N,) int64."""
    contents: tuple[str, ...]
    """What is known of each row group's content without reading it."""

    grows = True

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        content = self._value(index, self.column)
        if content is None and self.column.endswith(BYTES_FIELD):
            name = self._value(index, f"{self.column.removesuffix(BYTES_FIELD)}.path")
            return _read_named(self.root, name) if name else b""
        return content or b""

    def place(self, index: int) -> tuple[str, str]:
        file = self.groups[self.blocks[index], 0]
        return str(self.root), f"{self.files[file]}:{self.rows[index]}"

    def take(self, indices: np.ndarray) -> Self:
        rows, blocks, labels = (part[indices] for part in (self.rows, self.blocks, self.labels))
        return replace(self, rows=rows, blocks=blocks, labels=labels)

    def listing(self) -> pa.Table:
        """A changed row group is a change of all its images."""
        files = pa.array([os.fsencode(file) for file in self.files], pa.binary())
        files = files.take(pa.array(self.groups[self.blocks, 0]))
        rows = pa.array(self.rows).cast(pa.string()).cast(pa.binary())
        return listing(
            pc.binary_join_element_wise(files, rows, b":"),
            contents=pa.array(self.contents, pa.string()).take(pa.array(self.blocks)),
        )

    def _value(self, index: int, column: str) -> Any:
        file, group, first = self.groups[self.blocks[index]].tolist()
        values = row_groups.get(self.root, self.files[file], group, column)
        row = int(self.rows[index]) - first
        if row >= len(values):
            raise BadImage(f"broken row group: {len(values):,} rows")
        return values[row].as_py()


def _read_named(root: Folder, path: str) -> bytes:
    """An image that Parquet only names: a file beside it or, as `datasets` has it, in the working
    directory. A name may come from anybody, so it leads to nothing else: raises BadImage."""
    if "\0" in path or os.path.isabs(path) or ".." in PurePosixPath(path).parts or "://" in path:
        raise BadImage(f"path leads out of the data: {path!r}"[:200])
    if root.is_local:
        if not os.path.lexists(os.path.join(root.uri, path)):
            root = Folder.at(".")
        real = os.path.realpath(os.path.join(root.uri, path))
        if not files.is_in(real, os.path.realpath(root.uri)):
            raise BadImage(f"path is a link out of the data: {path!r}"[:200])
    return file_bytes.read(root, path)


class RowGroups:
    """The columns of row groups that this process read last. As an epoch goes through groups in
    turn, each is read about once."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, str, int, str], pa.ChunkedArray] = OrderedDict()

    def get(self, root: Folder, file: str, group: int, column: str) -> pa.ChunkedArray:
        """Raises BadImage where the group is broken, OSError where storage fails."""
        key = (root.uri, file, group, column)
        values = self._kept.pop(key, None)
        if values is None:
            values = _read(root, file, group, column)
            while len(self._kept) > 1 and self.bytes + values.nbytes > self._max_bytes:
                self._kept.popitem(last=False)
        self._kept[key] = values
        return values

    def clear(self) -> None:
        self._kept.clear()

    @property
    def bytes(self) -> int:
        return sum(values.nbytes for values in self._kept.values())


row_groups = RowGroups(CACHE_BYTES)


def _read(root: Folder, file: str, group: int, column: str) -> pa.ChunkedArray:
    try:
        if is_arrow(file):
            with open_file(root, file) as source:
                return arrow_file.read_batch(source, group, column)
        parquet = _parquet_file(root, file, os.getpid())
        table = parquet.read_row_group(group, columns=[column], use_threads=False)
    except (pa.ArrowException, OSError, EOFError, UnicodeError) as error:
        if _is_of_storage(error, root, file, group):
            raise
        raise BadImage(f"broken row group: {files.error_text(error)}"[:100]) from None
    values = table.column(0)
    return values.flatten()[0] if pa.types.is_struct(values.type) else values


def _is_of_storage(error: Exception, root: Folder, file: str, group: int) -> bool:
    """Whether storage failed. Of broken data pyarrow raises OSError too, without a number; so it
    does where an object store fails, which is then asked for the same bytes again."""
    if not isinstance(error, OSError) or files.is_file_error(error):
        return False
    if error.errno or is_arrow(file) or root.is_local:
        return bool(error.errno)
    row_group = _parquet_file(root, file, os.getpid()).metadata.row_group(group)
    chunks = [row_group.column(number) for number in range(row_group.num_columns)]
    starts = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in chunks]
    try:
        with open_file(root, file) as source:
            source.read_at(sum(chunk.total_compressed_size for chunk in chunks), min(starts))
    except OSError:
        return True
    return False


@functools.lru_cache(maxsize=OPEN_FILES)
def _parquet_file(root: Folder, file: str, process: int) -> pq.ParquetFile:
    return open_parquet(root, file)


def open_parquet(root: Folder, file: str) -> pq.ParquetFile:
    """Raises pyarrow.ArrowInvalid where it is no Parquet, BadImage, OSError."""
    return pq.ParquetFile(open_file(root, file), page_checksum_verification=True)


def open_file(root: Folder, file: str, *, mapped: bool = False) -> pa.NativeFile:
    """Raises BadImage for a pipe or a device, which might never end, and OSError.

    Not `mapped` into memory but where little of it is read, and once: that is 10 microseconds an
    image faster, of some 4,000 with decoding, but a file that is cut meanwhile would kill the
    process, and pages once read count as its own.
    """
    filesystem, path = root.open()
    if root.is_local:
        file_bytes.check_regular(f"{path}/{file}")
        if mapped and os.path.getsize(f"{path}/{file}"):
            return pa.memory_map(f"{path}/{file}")
    return filesystem.open_input_file(f"{path}/{file}")


def is_arrow(file: str) -> bool:
    return file.lower().endswith(".arrow")


def is_table(path: str) -> bool:
    """Whether a file is one of rows, by its name."""
    return path.lower().endswith((".parquet", ".arrow"))
