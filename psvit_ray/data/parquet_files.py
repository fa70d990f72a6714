"""From Parquet files to splits: which files there are, their classes, and all labels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa

from psvit_ray.data import files
from psvit_ray.data.manifest import MANIFEST, read_manifest
from psvit_ray.data.parquet import CACHE_BYTES, ParquetTable, open_parquet
from psvit_ray.data.splits import SPLIT_OF, Splits, listed
from psvit_ray.data.storage import Folder

READERS = 16
"""Files read at the same time: in an object store nearly all the time is waiting."""
MISSING = np.iinfo(np.int64).min
"""In place of a label that is null."""


@dataclass(frozen=True, eq=False)
class Content:
    """What a file holds beside images."""

    path: str
    labels: np.ndarray
    group_rows: tuple[int, ...]
    largest_group: int
    """Bytes."""
    column: str
    class_names: tuple[str, ...] | None
    """None where the file has no names of classes."""


def read(name: str, root: Folder, paths: Sequence[str]) -> Splits:
    """The data that these files below `root` are. Raises ValueError, OSError."""
    return _splits(name, root, _contents(root, _by_split(paths)), None)


def read_folder(name: str, root: Folder, paths: Sequence[str]) -> Splits:
    """As `read`, of all files of a folder; if it has a manifest, that says which are what."""
    manifest = read_manifest(root)
    if manifest is None:
        return read(name, root, paths)
    by_split = {split: list(said.files) for split, said in manifest.splits.items()}
    said = {path: file for split in manifest.splits.values() for path, file in split.files.items()}
    differ = set(paths) ^ set(said)
    contents = {} if differ else _contents(root, by_split)
    for content in (content for split in contents.values() for content in split):
        if len(content.labels) != said[content.path].rows:
            differ.add(content.path)
    if differ:
        raise ValueError(
            f"data must match {MANIFEST} in {root}, got other files or rows: "
            f"{listed(sorted(differ))}; jobs/prepare_data.py --verify says more"
        )
    return _splits(name, root, contents, manifest.class_names)


def images(root: Folder, paths: Sequence[str]) -> ParquetTable:
    """The images of these files, in their order, with -1 for every label: there need be none.

    Raises ValueError, OSError.
    """
    with ThreadPoolExecutor(READERS) as pool:
        return _table(root, [*pool.map(lambda path: _content(root, path, False), paths)])


def _by_split(paths: Sequence[str]) -> dict[str, list[str]]:
    """Files by the word for a split in their name or that of a folder: train-00000-of-00008."""
    by_split: dict[str | None, list[str]] = {}
    for path in sorted(paths):
        *folders, name = PurePosixPath(path).parts
        words = [re.split(r"[-_.]", name)[0], *reversed(folders)]
        found = [SPLIT_OF[word.lower()] for word in words if word.lower() in SPLIT_OF]
        by_split.setdefault(found[0] if found else None, []).append(path)
    if None in by_split and len(by_split) > 1:
        named = next(split for split in by_split.items() if split[0])[1][0]
        raise ValueError(
            f"data must name the split of every file or of none, got {named} beside "
            f"{by_split[None][0]}"
        )
    order = list(dict.fromkeys([*SPLIT_OF.values(), None]))
    return {split or "train": by_split[split] for split in order if split in by_split}


def _contents(root: Folder, by_split: Mapping[str, list[str]]) -> dict[str, list[Content]]:
    with ThreadPoolExecutor(READERS) as pool:
        reading = {
            split: [pool.submit(_content, root, path) for path in paths]
            for split, paths in by_split.items()
        }
        return {split: [one.result() for one in several] for split, several in reading.items()}


def _content(root: Folder, path: str, labelled: bool = True) -> Content:
    try:
        parquet = open_parquet(root, path)
        column = _column(parquet.schema_arrow, f"{path} in {root}", labelled)
        labels = np.full(parquet.metadata.num_rows, -1, dtype=np.int64)
        if labelled:
            read = parquet.read(columns=["label"], use_threads=False).column("label")
            labels = read.cast(pa.int64()).fill_null(MISSING).to_numpy()
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"data must be Parquet that can be read, got {path} in {root}: {files.reason(error)}"
        ) from None
    groups = [parquet.metadata.row_group(i) for i in range(parquet.num_row_groups)]
    return Content(
        path,
        labels,
        tuple(group.num_rows for group in groups),
        max((group.total_byte_size for group in groups), default=0),
        column,
        _class_names(parquet.schema_arrow),
    )


def _column(schema: pa.Schema, where: str, labelled: bool) -> str:
    """The column with the bytes. Raises ValueError where there is none or, if `labelled`, no
    labels."""
    types = dict(zip(schema.names, schema.types, strict=True))
    image, label = types.get("image"), types.get("label")
    column = "image"
    if image is not None and pa.types.is_struct(image) and image.get_field_index("bytes") >= 0:
        column, image = "image.bytes", image.field("bytes").type
    is_bytes = (pa.types.is_binary, pa.types.is_large_binary)
    missing = labelled and label is None
    if missing or image is None or not any(fits(image) for fits in is_bytes):
        has = ", ".join(f"{name}: {kind}" for name, kind in types.items())
        columns = "columns" if labelled else "column"
        also = " and label" if labelled else ""
        raise ValueError(
            f"data must have the {columns} image (struct of bytes and path, or bytes){also}, got "
            f"{has} in {where}"
        )
    if labelled and not pa.types.is_integer(label):
        raise ValueError(f"data must have integers as label, got {label} in {where}")
    return column


def _class_names(schema: pa.Schema) -> tuple[str, ...] | None:
    """The names that `datasets` keeps."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(map(str, features["label"]["names"]))
    except (KeyError, TypeError, ValueError):
        return None


def _splits(
    name: str,
    root: Folder,
    contents: dict[str, list[Content]],
    class_names: tuple[str, ...] | None,
) -> Splits:
    notes = []
    if len(contents) > 1 and "test" in contents and _unlabelled(contents["test"]):
        rows = sum(len(content.labels) for content in contents.pop("test"))
        notes.append(f"the {rows:,} images of test have no labels and are not used")
    for content in (content for split in contents.values() for content in split):
        _check_present(content, root)
    if class_names is None:
        names = _names_by_split(contents)
    else:
        names = dict.fromkeys(contents, class_names)
    for split, several in contents.items():
        for content in several:
            _check_range(content, len(names[split]), root)
    largest = max(content.largest_group for split in contents.values() for content in split)
    if largest > CACHE_BYTES // 2:
        notes.append(
            f"row groups of up to {largest / 1e6:,.0f} MB are read as a whole: "
            "jobs/prepare_data.py writes smaller ones"
        )
    tables = {split: _table(root, several) for split, several in contents.items()}
    return Splits.of(name, names, tables, notes)


def _unlabelled(contents: list[Content]) -> bool:
    """As the hub's test splits are: every label -1, or none."""
    return all((content.labels < 0).all() for content in contents)


def _names_by_split(contents: Mapping[str, list[Content]]) -> dict[str, tuple[str, ...]]:
    """What the files call their classes; else their numbers, all of which train must have."""
    named: dict[str, tuple[str, ...]] = {}
    for split, several in contents.items():
        for content in several:
            if content.class_names is None:
                continue
            if named.setdefault(split, content.class_names) != content.class_names:
                raise ValueError(
                    f"data must have the same classes in every file of {split}, "
                    f"got others in {content.path}"
                )
    if named:
        some = next(iter(named.values()))
        return {split: named.get(split, some) for split in contents}
    numbers = {
        split: np.unique(np.concatenate([content.labels for content in several]))
        for split, several in contents.items()
    }
    first = next(iter(numbers.values()))
    if len(first) and (first[0] != 0 or first[-1] != len(first) - 1):
        raise ValueError(
            f"data must have labels 0 to {len(first) - 1} for {len(first)} classes without names, "
            f"got {first[0]} to {first[-1]}"
        )
    names = tuple(map(str, range(len(first))))
    return dict.fromkeys(contents, names)


def _check_present(content: Content, root: Folder) -> None:
    if (content.labels == MISSING).any():
        row = int((content.labels == MISSING).argmax())
        raise ValueError(
            f"data must have a label for every image, got none in row {row} of {content.path} "
            f"in {root}"
        )


def _check_range(content: Content, num_classes: int, root: Folder) -> None:
    outside = (content.labels < 0) | (content.labels >= num_classes)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(
            f"data must have labels 0 to {num_classes - 1}, as it has {num_classes} classes, got "
            f"{content.labels[row]} in row {row} of {content.path} in {root}"
        )


def _table(root: Folder, contents: list[Content]) -> ParquetTable:
    groups: list[tuple[int, int, int]] = []
    rows, blocks = [], []
    for number, content in enumerate(contents):
        first = np.cumsum([0, *content.group_rows])
        for group, count in enumerate(content.group_rows):
            blocks.append(np.full(count, len(groups), dtype=np.int64))
            groups.append((number, group, first[group]))
        rows.append(np.arange(len(content.labels), dtype=np.int64))
    columns = {content.column for content in contents}
    return ParquetTable(
        root,
        tuple(content.path for content in contents),
        np.array(groups, dtype=np.int64).reshape(-1, 3),
        columns.pop(),
        np.concatenate(rows),
        np.concatenate(blocks or [np.empty(0, dtype=np.int64)]),
        np.concatenate([content.labels for content in contents]),
    )
