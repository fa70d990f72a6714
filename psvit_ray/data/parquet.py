"""Images in Parquet, as the `datasets` library and our own shards have them: columns `image`, a
struct of `bytes` and `path` (or just bytes), and `label`, an integer."""

from __future__ import annotations

import functools
import os
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from psvit_ray.data import files
from psvit_ray.data.images import BadImage
from psvit_ray.data.storage import Folder

CACHE_BYTES = 512 << 20
OPEN_FILES = 64


@dataclass(frozen=True, eq=False)
class ParquetTable:
    """Rows of Parquet files; a block is a row group."""

    root: Folder
    files: tuple[str, ...]
    """Relative to `root`."""
    groups: np.ndarray
    """(G, 3) int64: of each row group the number of its file, its number there, its first row."""
    column: str
    """The one with the bytes: `image.bytes` or `image`."""
    rows: np.ndarray
    """(N,) int64: of each image, in its file."""
    blocks: np.ndarray
    labels: np.ndarray
    """(N,) int64."""

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        content = self._value(index, self.column)
        if content is None and self.column == "image.bytes":
            return _read_named(self.root, self._value(index, "image.path"))
        return content or b""

    def place(self, index: int) -> tuple[str, str]:
        file = self.groups[self.blocks[index], 0]
        return str(self.root), f"{self.files[file]}:{self.rows[index]}"

    def take(self, indices: np.ndarray) -> Self:
        rows, blocks, labels = (part[indices] for part in (self.rows, self.blocks, self.labels))
        return replace(self, rows=rows, blocks=blocks, labels=labels)

    def _value(self, index: int, column: str) -> Any:
        file, group, first = self.groups[self.blocks[index]].tolist()
        values = row_groups.get(self.root, self.files[file], group, column)
        return values[int(self.rows[index]) - first].as_py()


def _read_named(root: Folder, path: str | None) -> bytes:
    """An image that Parquet only names: a file beside it or, as `datasets` has it, in the working
    directory."""
    if root.is_local and path and not Path(root.uri, path).is_file():
        root = Folder.at(".")
    return files.read(root, path) if path else b""


class RowGroups:
    """The columns of row groups that this process read last. As an epoch goes through groups in
    turn, each is read about once."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._kept: OrderedDict[tuple[str, str, int, str], pa.ChunkedArray] = OrderedDict()

    def get(self, root: Folder, file: str, group: int, column: str) -> pa.ChunkedArray:
        """Raises BadImage where the group is broken, OSError where storage fails."""
        key = (root.uri, file, group, column)
        values = self._kept.pop(key, None)
        if values is None:
            values = _read(root, file, group, column)
            while len(self._kept) > 1 and self.bytes + values.nbytes > self._most_bytes:
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
        parquet = _parquet_file(root, file, os.getpid())
        values = parquet.read_row_group(group, columns=[column], use_threads=False).column(0)
    except pa.ArrowInvalid as error:
        raise BadImage(f"broken row group: {files.reason(error)}"[:100]) from None
    return values.flatten()[0] if "." in column else values


@functools.lru_cache(maxsize=OPEN_FILES)
def _parquet_file(root: Folder, file: str, process: int) -> pq.ParquetFile:
    return open_parquet(root, file)


def open_parquet(root: Folder, file: str) -> pq.ParquetFile:
    """Raises pyarrow.ArrowInvalid where it is no Parquet, OSError.

    Not mapped into memory: that is 10 microseconds an image faster, of some 4,000 with decoding,
    but a file that is cut meanwhile would kill the process, and pages once read count as its own.
    """
    filesystem, path = root.open()
    return pq.ParquetFile(filesystem.open_input_file(f"{path}/{file}"))
