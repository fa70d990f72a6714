"""Image files in a folder for each class, as torchvision and timm read them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa

from psvit_ray.data import tables
from psvit_ray.data.images import file_bytes
from psvit_ray.data.sources.image_source import Source, class_name
from psvit_ray.data.splits import split_folders
from psvit_ray.data.splits.layout import DataLayout, Split
from psvit_ray.data.splits.split_folders import Tree
from psvit_ray.data.splits.splits import described_places
from psvit_ray.storage import files
from psvit_ray.storage.files import Listing, printable_path
from psvit_ray.storage.folder import Folder

# torchvision's IMG_EXTENSIONS, and GIF.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


@dataclass(frozen=True, eq=False)
class FileTable:
    """A table of image files."""

    root: Folder
    paths: pa.BinaryArray
    """Paths relative to `root`, (N,), in bytes, as they need not be UTF-8."""
    labels: np.ndarray
    """Class of each image, (N,) int64."""
    sizes: np.ndarray
    """Bytes of each file, (N,) int64; UNKNOWN_SIZE where they were not read."""

    blocks = None
    grows = True

    @classmethod
    def of(
        cls, root: Folder, paths: Iterable[str], labels: np.ndarray, sizes: np.ndarray | None = None
    ) -> FileTable:
        """The table of files at `paths` below `root`."""
        names = pa.array([os.fsencode(path) for path in paths], pa.binary())
        unknown = np.full(len(labels), files.UNKNOWN_SIZE, dtype=np.int64)
        return cls(root, names, labels, unknown if sizes is None else sizes)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return file_bytes.read_image_file(self.root, self.place(index)[1])

    def place(self, index: int) -> tuple[str, str]:
        return str(self.root), os.fsdecode(self.paths[int(index)].as_py())

    def take(self, indices: np.ndarray) -> Self:
        return replace(
            self,
            paths=self.paths.take(pa.array(indices)),
            labels=self.labels[indices],
            sizes=self.sizes[indices],
        )

    def listing(self) -> pa.Table:
        sizes = pa.array(self.sizes, mask=self.sizes == files.UNKNOWN_SIZE)
        return tables.listing(self.paths, sizes=sizes)


def is_image(path: str) -> bool:
    """Whether a file is an image, by its name."""
    return path.lower().endswith(EXTENSIONS)


def read_image_folder(name: str, root: Folder, listing: Listing, layout: DataLayout) -> Source:
    """The splits of a folder of class folders, or of folders that are splits, by `layout` or by
    their names, and hold class folders. `listing` is that of `root`; `name` is the data's name in
    messages. Raises ValueError for data that cannot be used."""
    images = [path for path in listing.files if is_image(path)]
    if not images:
        raise ValueError(f"data must be a folder of class folders, got one without images: {root}")
    notes = [*listing.notes]
    if len(images) < len(listing.files):
        example = next(path for path in listing.files if not is_image(path))
        number = len(listing.files) - len(images)
        notes.append(f"{number:,} files are no images by name, such as {printable_path(example)}")
    tree = Tree(root, listing, [*images, *filter(is_image, listing.links)])
    if layout.splits:
        folders = split_folders.given_folders(tree, layout)
        listing = files.list_below(
            root, [folder for several in folders.values() for folder in several]
        )
        notes = [*listing.notes]  # a file elsewhere is no other name of one that is used
        prefixes = tuple(f"{f}/" if f else "" for several in folders.values() for f in several)
        used = [path for path in listing.files if is_image(path) and path.startswith(prefixes)]
        if len(used) < len(images):
            notes.append(f"{len(images) - len(used):,} of {len(images):,} images are in no split")
        images = used
    else:
        folders = split_folders.recognised_folders(tree, notes)
        test = folders.get("test", [""])[0]
        if len(folders) > 1 and test in tree.direct and test not in tree.inner:
            notes.append(f"{printable_path(test)}/ has no class folders: its images are not used")
            del folders["test"]
    _check_links(listing, folders)
    names, by_split = {}, {}
    for split, several in folders.items():
        names[split], by_split[split] = _labelled(tree, several, listing, images)
        if not len(by_split[split]):
            _check_not_linked(listing, split, several)
    if folders != {"train": [""]}:
        shown_of = {split: [f"{printable_path(f)}/" for f in folders[split]] for split in folders}
        notes += described_places(shown_of)
    return Source.of(name, names, by_split, notes)


def _check_not_linked(listing: Listing, split: Split, folders: list[str]) -> None:
    """Raises ValueError if an empty split has links to images of another split."""
    for link, kept in listing.links.items():
        if kept and any(files.is_in(link, folder) for folder in folders):
            raise ValueError(
                f"data must have each image in one split, got {printable_path(link)} in {split}, "
                "which is "
                f"{printable_path(kept)}"
            )


def _check_links(listing: Listing, folders: Mapping[Split, list[str]]) -> None:
    """Raises ValueError if one file has names in two classes."""
    prefixes = [
        f"{folder}/" if folder else "" for several in folders.values() for folder in several
    ]

    def class_of(path: str) -> str | None:
        inside = next((path[len(p) :] for p in prefixes if path.startswith(p)), None)
        return class_name(inside.partition("/")[0]) if inside else None

    names = {link: kept for link, kept in listing.links.items() if is_image(kept)}
    for link, kept in names.items():
        classes = {class_of(link), class_of(kept)} - {None}
        if len(classes) > 1:
            raise ValueError(
                f"data must have each image in one class, got {printable_path(link)}, which is the "
                "file "
                f"{printable_path(kept)}"
            )


def _labelled(
    tree: Tree, folders: list[str], listing: Listing, images: list[str]
) -> tuple[tuple[str, ...], FileTable]:
    """Names of the classes, which are the folders directly in `folders`, and the table of their
    images, class by class."""
    names: set[str] = set()
    paths: list[str] = []
    classes: list[str] = []
    for folder in folders:
        inside = [path for path in listing.folders if os.path.dirname(path) == folder]
        inner = [os.path.basename(path) for path in inside]
        names |= {class_name(name) for name in inner}
        if folder in tree.direct:
            here = f"{tree.root}/{printable_path(folder)}".rstrip("/")
            beside = f"the image {printable_path(tree.direct[folder])} beside them"
            raise ValueError(
                f"data must be a folder of class folders, got {beside if inner else 'images only'} "
                f"in {here}; psvit predict takes images without classes"
            )
        prefix = f"{folder}/" if folder else ""
        for path in images:
            if path.startswith(prefix):
                paths.append(path)
                classes.append(class_name(path[len(prefix) :].partition("/")[0]))
    class_names = tuple(sorted(names))
    number = {name: label for label, name in enumerate(class_names)}
    labels = np.array([number[name] for name in classes], dtype=np.int64)
    order = np.argsort(labels, kind="stable")
    sizes = files.sizes(tree.root, paths, listing)
    return class_names, FileTable.of(tree.root, paths, labels, sizes).take(order)
