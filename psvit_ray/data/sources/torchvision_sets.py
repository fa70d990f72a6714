"""torchvision's data sets by name: `torchvision:CIFAR10:/data` is read from that folder,
`torchvision-download:CIFAR10:/data` is downloaded into it first."""

from __future__ import annotations

import difflib
import functools
import inspect
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
import torchvision.datasets
from PIL import Image

from psvit_ray.data.images.decode import BadImage, as_bad_image
from psvit_ray.data.images.file_bytes import read_local
from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.splits.layout import Split
from psvit_ray.data.tables import StoredTable, digest_of, listing
from psvit_ray.storage.files import error_text, is_file_error

PREFIX = "torchvision"
DOWNLOAD = "torchvision-download"
LABELS = ("targets", "labels", "_labels")
"""Attributes in which a data set may have the labels of all its images."""


@dataclass(frozen=True, eq=False)
class VisionTable:
    """A table of one of torchvision's data sets, which each process opens for itself."""

    kind: str
    """Name of the data set's class in torchvision."""
    root: str
    """Folder of the data set."""
    split: str | None
    """torchvision's word for the split; None if the class has no splits."""
    rows: np.ndarray
    """Position of each image in the data set, (N,) int64."""
    labels: np.ndarray
    """Class of each image, (N,) int64."""
    content: str
    """Hash of the pixels of the whole split if torchvision has them in memory, else empty."""

    blocks = None
    grows = False

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes | Image.Image:
        try:
            with as_bad_image():
                return _open_cached(self.kind, self.root, self.split)[int(self.rows[index])][0]
        except BadImage as error:
            cause = error.__context__
            if isinstance(cause, OSError) and cause.errno and not is_file_error(cause):
                raise cause from None  # an error of the storage
            raise

    def place(self, index: int) -> tuple[str, str]:
        row = str(self.rows[index])
        source = f"{PREFIX}:{self.kind}:{self.root}"
        return source, f"{self.split}:{row}" if self.split else row

    def take(self, indices: np.ndarray) -> Self:
        return replace(self, rows=self.rows[indices], labels=self.labels[indices])

    def listing(self) -> pa.Table:
        prefix = f"{self.split}:" if self.split else ""
        places = pa.array([f"{prefix}{row}" for row in self.rows], pa.string())
        content = pa.array([self.content or None] * len(self), pa.string())
        return listing(places, contents=content)


def read_torchvision(data: str) -> Source:
    """The splits of `torchvision:NAME:FOLDER`. Raises ValueError for a data set that torchvision
    does not have, that is not in the folder, or whose images do not have one label each."""
    prefix, kind, root = (*data.split(":", 2), "", "")[:3]
    known = [name for name in torchvision.datasets.__all__ if "root" in _parameters(name)]
    if kind not in known or not root:
        near = difflib.get_close_matches(kind, known, n=1, cutoff=0.0)[0]
        raise ValueError(f"data must be {prefix}:NAME:FOLDER, got {data!r}; nearest is {near!r}")
    root = str(Path(root).expanduser().absolute())
    sets = _sets(kind, root, download=prefix == DOWNLOAD)
    tables: dict[Split, StoredTable] = {}
    for split, (word, dataset) in sets.items():
        labels = _labels_of(dataset, kind)
        rows = np.arange(len(labels))
        tables[split] = VisionTable(kind, root, word, rows, labels, _content_of(dataset))
    num_classes = 1 + max(int(table.labels.max(initial=-1)) for table in tables.values())
    names = {split: _class_names(dataset, num_classes) for split, (_, dataset) in sets.items()}
    return Source.of(data, names, tables, [])


def _sets(kind: str, root: str, *, download: bool) -> dict[Split, tuple[str | None, Any]]:
    """For each split torchvision's word for it, and the data set."""
    takes = _parameters(kind)
    words: dict[Split, tuple[str | None, ...]] = {"train": (None,)}
    if "train" in takes:
        words = {"train": ("train",), "test": ("test",)}
    elif "split" in takes:
        words = {"train": ("train", "trainval"), "val": ("val", "valid"), "test": ("test",)}
    sets: dict[Split, tuple[str | None, Any]] = {}
    for split, several in words.items():
        for word in several:
            try:
                sets[split] = word, _open(kind, root, word, download)
                break
            except Exception as error:  # data sets raise errors of any type
                if "Valid values" in str(error):
                    continue  # the data set does not know this word
                raise ValueError(
                    f"data must be a set that torchvision can open, got {kind} in {root}: "
                    f"{error_text(error)}"
                ) from None
    return sets


def _open(kind: str, root: str, split: str | None, download: bool = False) -> Any:
    takes = _parameters(kind)
    chosen: dict[str, Any] = {
        "train": split == "train",
        "split": split,
        "download": download,
        "loader": _read_file,
    }
    arguments = {name: value for name, value in chosen.items() if name in takes}
    return getattr(torchvision.datasets, kind)(root, **arguments)


def _content_of(dataset: Any) -> str:
    pixels = getattr(dataset, "data", None)
    known = isinstance(pixels, np.ndarray | torch.Tensor)
    return digest_of(np.asarray(pixels)) if known else ""


_open_cached = functools.lru_cache(maxsize=8)(_open)


def _read_file(path: str | Path) -> bytes:
    """Bytes of a file, in place of torchvision's loader, so that it is decoded as all others."""
    return read_local(str(path))


def _parameters(kind: str) -> tuple[str, ...]:
    return tuple(inspect.signature(getattr(torchvision.datasets, kind)).parameters)


def _labels_of(dataset: Any, kind: str) -> np.ndarray:
    """Labels of a data set, (N,) int64. Raises ValueError if they are not integers."""
    image, label = dataset[0]
    for name in LABELS:
        labels = np.asarray(getattr(dataset, name, ()))
        if labels.shape == (len(dataset),):
            break
    else:
        labels = np.array([dataset[index][1] for index in range(len(dataset))])
    if (
        not isinstance(image, bytes | Image.Image)
        or labels.ndim != 1
        or labels.dtype.kind not in "iu"
    ):
        raise ValueError(
            f"data must be images with one label each, got {type(image).__name__} with "
            f"{type(label).__name__} in {PREFIX}:{kind}"
        )
    return labels.astype(np.int64)


def _class_names(dataset: Any, num_classes: int) -> tuple[str, ...]:
    """Class names of a data set, several for one class joined as ImageNet's are; else numbers."""
    names = getattr(dataset, "classes", None) or range(num_classes)
    return tuple(", ".join(name) if isinstance(name, tuple) else str(name) for name in names)
