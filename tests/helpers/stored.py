"""The same images stored in several ways, and what a source says of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.sources.load_data import load_data
from psvit_ray.data.splits.layout import DataSettings
from psvit_ray.data.tables import ImageTable

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def load(data: str | Path, **changes: Any) -> Source:
    settings = {"data": str(data), "holdout": 0.25, "split_seed": 3, **changes}
    return load_data(DataSettings.model_validate(settings))


def contents(table: ImageTable | None) -> list[bytes]:
    assert table is not None
    found = [table.read(index) for index in range(len(table))]
    assert all(isinstance(content, bytes) for content in found)
    return found  # type: ignore[return-value]


def assert_same(ours: Source, theirs: Source) -> None:
    """The same images. Which are held out is a matter of their names, which may differ."""
    assert ours.class_names == theirs.class_names
    assert (ours.test is None) == (theirs.test is None)
    for parts in (("train", "holdout"), ("test",)):
        mine, other = (images_of(source, *parts) for source in (ours, theirs))
        assert mine == other, parts


def images_of(source: Source, *parts: str) -> list[tuple[int, bytes]]:
    """Labels and contents, in an order of their own."""
    tables = [getattr(source, part) for part in parts if getattr(source, part) is not None]
    assert all(table.labels.dtype == np.int64 for table in tables)
    return sorted(
        pair
        for table in tables
        for pair in zip(table.labels.tolist(), contents(table), strict=True)
    )


def as_rows(folder: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The images of a folder of classes, in order."""
    names = sorted(path.name for path in folder.iterdir())
    paths = [path for name in names for path in sorted((folder / name).iterdir())]
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    return images, [names.index(path.parent.name) for path in paths]


def write_parquet(path: Path, images: Sequence[Any], labels: Sequence[Any], **kinds: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "image": pa.array(images, kinds.get("image", IMAGE)),
            "label": pa.array(labels, kinds.get("label", pa.int64())),
        }
    )
    pq.write_table(table, path, row_group_size=kinds.get("row_group_size", 7))


def write_by_datasets(folder: Path, path: Path) -> None:
    """As the `datasets` library writes images that it has in memory as files."""
    images, labels = as_rows(folder)
    names = sorted(path.name for path in folder.iterdir())
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    data = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    path.parent.mkdir(parents=True, exist_ok=True)
    data.to_parquet(str(path))


def folder_of(root: Path, *paths: str) -> Path:
    """A folder with these files, each with its own content. Names that end in / are folders."""
    for path in paths:
        there = root / path
        (there if path.endswith("/") else there.parent).mkdir(parents=True, exist_ok=True)
        if not path.endswith("/"):
            there.write_text(path)
    return root
