"""Images as files, in a folder for each class, as torchvision and timm read them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa

from psvit_ray.data import files
from psvit_ray.data.splits import SPLIT_OF, Splits, listed
from psvit_ray.data.storage import Folder

# torchvision's IMG_EXTENSIONS, and GIF.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


@dataclass(frozen=True, eq=False)
class FileTable:
    """Images that are files."""

    root: Folder
    paths: pa.StringArray
    """(N,), relative to `root`."""
    labels: np.ndarray
    """(N,) int64."""

    blocks = None

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return files.read(self.root, self.paths[int(index)].as_py())

    def place(self, index: int) -> tuple[str, str]:
        return str(self.root), self.paths[int(index)].as_py()

    def take(self, indices: np.ndarray) -> Self:
        return replace(self, paths=self.paths.take(pa.array(indices)), labels=self.labels[indices])


def is_image(path: str) -> bool:
    return path.lower().endswith(EXTENSIONS)


def read(name: str, root: Folder, folders: list[str], paths: list[str]) -> Splits:
    """The class folders below `root`, or those of its folders `train`, `val` and `test`.

    `folders` and `paths` are all that is below it. Raises ValueError.
    """
    images = [path for path in paths if is_image(path)]
    if not images:
        raise ValueError(f"data must be a folder of class folders, got one without images: {root}")
    notes = []
    if len(images) < len(paths):
        such = next(path for path in paths if not is_image(path))
        notes = [f"{len(paths) - len(images):,} files are no images by name, such as {such}"]
    below = defaultdict(list)  # images by the folder in `root` that holds them
    for path in images:
        below[path.partition("/")[0] if "/" in path else ""].append(path)
    outer = {folder.partition("/")[0] for folder in folders if "/" in folder}
    splits = [folder for folder in folders if SPLIT_OF.get(folder.lower()) and folder in outer]
    if not splits:
        class_names, table = _labelled(root, "", folders, images)
        return Splits.of(name, {"train": class_names}, {"train": table}, notes)

    others = [folder for folder in below if folder not in splits and folder.lower() not in SPLIT_OF]
    if others:
        what = f"{others[0]}/" if others[0] else below[""][0]
        raise ValueError(f"data must hold splits or classes, got {splits[0]}/ beside {what}")
    splits += [folder for folder in folders if folder.lower() in SPLIT_OF and folder not in splits]
    names, tables = {}, {}
    for folder in sorted(splits, key=lambda folder: list(SPLIT_OF).index(folder.lower())):
        split = SPLIT_OF[folder.lower()]
        if split in tables:
            raise ValueError(f"data must name each split once, got {listed(sorted(splits))}")
        if split == "test" and folder not in outer and below[folder]:
            notes.append(f"{folder}/ has no class folders: its images are not used")
            continue
        names[split], tables[split] = _labelled(root, f"{folder}/", folders, below[folder])
    return Splits.of(name, names, tables, notes)


def _labelled(
    root: Folder, prefix: str, folders: Iterable[str], images: list[str]
) -> tuple[tuple[str, ...], FileTable]:
    """The classes that are folders below `prefix`, and their images, class by class."""
    inner = [folder[len(prefix) :] for folder in folders if folder.startswith(prefix)]
    class_names = tuple(sorted(folder for folder in inner if "/" not in folder))
    here = f"{root}/{prefix}".rstrip("/")
    if stray := [path for path in images if "/" not in path[len(prefix) :]]:
        got = f"the image {stray[0]} beside them" if class_names else "images only"
        raise ValueError(f"data must be a folder of class folders, got {got} in {here}")
    number = {name: label for label, name in enumerate(class_names)}
    class_of = [number[path[len(prefix) :].partition("/")[0]] for path in images]
    labels = np.array(class_of, dtype=np.int64)
    counts = np.bincount(labels, minlength=len(class_names))
    if images and not counts.all():
        empty = [name for name, count in zip(class_names, counts, strict=True) if not count]
        raise ValueError(
            f"data must have images of every class, got none of {listed(empty)} in {here}"
        )
    try:
        named = pa.array(images, pa.string())
    except UnicodeEncodeError as error:
        raise ValueError(f"data must have file names in UTF-8, got {error.object!r}") from None
    order = np.argsort(labels, kind="stable")
    return class_names, FileTable(root, named, labels).take(order)
