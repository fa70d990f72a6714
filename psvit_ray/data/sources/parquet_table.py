"""Tables of images in Parquet, as the `datasets` library and our own shards store them: a column
that is a struct of `bytes` and `path`, or of bytes. Arrow files of that library are read alike."""

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
    """A table of rows in Parquet files, whose blocks are row groups."""

    root: Folder
    files: tuple[str, ...]
    """Files, as paths relative to `root`."""
    groups: np.ndarray
    """Row groups, (G, 3) int64: position in `files`, number in the file (in an Arrow file the byte
    at which the batch starts), and first row in the file."""
    column: str
    """Column with the bytes of images, such as `image.bytes` or `image`."""
    rows: np.ndarray
    """Row of each image in its file, (N,) int64."""
    blocks: np.ndarray
    """Position in `groups` of each image's row group, (N,) int64."""
    labels: np.ndarray
    """Class of each image, (N,) int64."""
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
        """What is known of each image without reading it: a change of a row group counts as one of
        all its images."""
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
    """An image that Parquet stores as a path: a file below its folder or, as with `datasets`, below
    the working directory. As anybody may have written the path, others raise BadImage."""
    if "\0" in path or os.path.isabs(path) or ".." in PurePosixPath(path).parts or "://" in path:
        raise BadImage(f"path leads out of the data: {path!r}"[:200])
    if root.is_local:
        if not os.path.lexists(os.path.join(root.uri, path)):
            root = Folder.at(".")
        real = os.path.realpath(os.path.join(root.uri, path))
        if not files.is_in(real, os.path.realpath(root.uri)):
            raise BadImage(f"path is a link out of the data: {path!r}"[:200])
    return file_bytes.read_image_file(root, path)


class RowGroups:
    """A cache of the columns of row groups that this process read last, of up to `max_bytes`. As an
    epoch goes through row groups one after the other, each is read about once."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[tuple[str, str, int, str], pa.ChunkedArray] = OrderedDict()

    def get(self, root: Folder, file: str, group: int, column: str) -> pa.ChunkedArray:
        """A column of a row group. Raises BadImage if the group is broken, and OSError if the
        storage fails."""
        key = (root.uri, file, group, column)
        values = self._kept.pop(key, None)
        if values is None:
            values = _read_column(root, file, group, column)
            while len(self._kept) > 1 and self.bytes + values.nbytes > self._max_bytes:
                self._kept.popitem(last=False)
        self._kept[key] = values
        return values

    def clear(self) -> None:
        """Empties the cache."""
        self._kept.clear()

    @property
    def bytes(self) -> int:
        """Size of the cached columns."""
        return sum(values.nbytes for values in self._kept.values())


row_groups = RowGroups(CACHE_BYTES)


def _read_column(root: Folder, file: str, group: int, column: str) -> pa.ChunkedArray:
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
    """Whether an error is one of the storage. pyarrow raises OSError without a number for broken
    data, and also if an object store fails; its bytes are then requested again to tell them
    apart."""
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
    """Opens a Parquet file. Raises pyarrow.ArrowInvalid if it is not Parquet, BadImage, and
    OSError."""
    return pq.ParquetFile(open_file(root, file), page_checksum_verification=True)


def open_file(root: Folder, file: str, *, mapped: bool = False) -> pa.NativeFile:
    """Opens a file; with `mapped` it is mapped into memory. Raises BadImage for a pipe or a device,
    which might never end, and OSError.

    Files are mapped only where little of them is read, and once. Mapping saves 10 microseconds an
    image, of some 4,000 with decoding, but a file that is truncated meanwhile would kill the
    process, and pages that were read count as its memory.
    """
    filesystem, path = root.open()
    if root.is_local:
        file_bytes.check_regular(f"{path}/{file}")
        if mapped and os.path.getsize(f"{path}/{file}"):
            return pa.memory_map(f"{path}/{file}")
    return filesystem.open_input_file(f"{path}/{file}")


def is_arrow(file: str) -> bool:
    """Whether a file is Arrow, by its name."""
    return file.lower().endswith(".arrow")


def is_table(path: str) -> bool:
    """Whether a file is Parquet or Arrow, by its name."""
    return path.lower().endswith((".parquet", ".arrow"))
