"""Tables as lists of rows: the columns of a spec, CSV, files in a folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.storage.folder import Folder
from psvit_ray.text import csv_file

Row = dict[str, Any]


def spec_columns(spec: ArchSpec) -> Row:
    """Columns of a table that describe an architecture."""
    return {
        "pattern": spec.pattern,
        "pooling": spec.pooling,
        "pool_op": spec.pool_op if len(spec.stages) > 1 else "",
        "patch_size": spec.patch_size,
        "embed_dims": _join(stage.embed_dim for stage in spec.stages),
        "num_heads": _join(stage.num_heads for stage in spec.stages),
        "hidden_dims": _join(stage.hidden_dim for stage in spec.stages),
    }


def _join(numbers: Iterable[int]) -> str:
    """Numbers of the stages, separated as in a pattern."""
    return "|".join(str(number) for number in numbers)


def table_csv(table: Sequence[Row], *, first: str = "rank") -> bytes:
    """The table as CSV; `first` is the only column of a table without rows."""
    return csv_file.csv_bytes(list(table[0]) if table else [first], (row.values() for row in table))


def write_files(folder: Folder, files: Mapping[str, bytes]) -> list[str]:
    """Writes the files, each of which replaces an older one whole. Returns their paths.

    Raises OSError where they cannot be written.
    """
    for name, content in files.items():
        folder.write(name, content)
    return [str(folder / name) for name in files]
