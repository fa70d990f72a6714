"""Recognition of the folders that are splits, by a user's layout or by their names.

Where names are ambiguous, the data is refused with an example and the flag that resolves it: with
splits taken for classes, or classes for splits, a network would be trained on the wrong thing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from psvit_ray.data.splits.layout import DataLayout, Split
from psvit_ray.data.splits.splits import WORDS, look_alikes, splits_advice, splits_in
from psvit_ray.storage import files
from psvit_ray.storage.files import Listing, printable_path
from psvit_ray.storage.folder import Folder
from psvit_ray.text.messages import nearest, quoted_list


@dataclass
class Tree:
    """The folders below a root, and which of them hold images. Links count too, although the
    listing leaves out what has another name."""

    root: Folder
    listing: Listing
    images: list[str]
    """Images, as paths relative to `root`."""
    folders: list[str] = field(init=False)
    """Sorted folders, as paths relative to `root`."""
    inner: dict[str, list[str]] = field(init=False)
    """Folders directly in each folder; "" is the root."""
    direct: dict[str, str] = field(init=False)
    """First image directly in each folder that has any."""
    filled: set[str] = field(init=False)
    """Folders with images directly in them or below."""

    def __post_init__(self) -> None:
        self.inner, self.direct, self.filled = {}, {}, set()
        known = set(self.listing.folders)
        linked = {link: kept for link, kept in self.listing.links.items() if kept in known}
        self.folders = sorted([*self.listing.folders, *linked])
        for folder in self.folders:
            self.inner.setdefault(os.path.dirname(folder), []).append(folder)
        for path in self.images:
            self.direct.setdefault(os.path.dirname(path), path)
        self._fill(self.direct)
        self._fill([link for link, kept in linked.items() if kept in self.filled])

    def _fill(self, folders: Iterable[str]) -> None:
        for folder in folders:
            while folder and folder not in self.filled:
                self.filled.add(folder)
                folder = os.path.dirname(folder)

    def filled_in(self, folder: str) -> list[str]:
        """Folders directly in `folder` that hold images."""
        return [inner for inner in self.inner.get(folder, ()) if inner in self.filled]


def given_folders(tree: Tree, layout: DataLayout) -> dict[Split, list[str]]:
    """Folders of each split in a user's layout, relative to the root, which is "". Raises
    ValueError for a folder that does not exist, or that is given twice."""
    folders: dict[Split, list[str]] = {}
    for split, pattern in layout.patterns:
        fits = [folder for folder in tree.folders if files.matches(folder, pattern)]
        if pattern != "." and not fits:
            near = nearest(pattern, tree.folders)
            hint = f"; nearest is {printable_path(near)!r}" if near else ""
            raise ValueError(
                f"splits must name folders of the data, got {pattern!r} in {tree.root}{hint}"
            )
        folders.setdefault(split, []).extend(
            [""] if pattern == "." else [_unwrapped(tree, split, folder) for folder in fits]
        )
    every = [folder for several in folders.values() for folder in several]
    for number, folder in enumerate(every):
        for other in every[number + 1 :]:
            if not folder or not other or files.is_in(folder, other) or files.is_in(other, folder):
                raise ValueError(
                    f"splits must name each folder once, got {printable_path(folder) or '.'!r} and "
                    f"{printable_path(other) or '.'!r}"
                )
    return {split: folders[split] for split in WORDS if split in folders}


def recognised_folders(tree: Tree, notes: list[str]) -> dict[Split, list[str]]:
    """Folders that are splits by their names, as `given_folders` returns them, also if all images
    are in one more folder (images/train). If there are none, the root is the training split.

    Notes for the user are appended to `notes`. Raises ValueError if the names are ambiguous.
    """
    top = ""
    while True:
        if splits := _splits_in(tree, top, notes):
            return {split: [_unwrapped(tree, split, splits[split])] for split in splits}
        filled = tree.filled_in(top)
        if len(filled) != 1 or top in tree.direct or splits_in(os.path.basename(filled[0])):
            break
        top = filled[0]
    _check_class_folders(tree, notes)
    return {"train": [""]}


def _splits_in(tree: Tree, top: str, notes: list[str]) -> dict[Split, str]:
    """Splits that are folders directly in `top`."""
    named = {
        folder: splits
        for folder in tree.inner.get(top, ())
        if (splits := splits_in(os.path.basename(folder)))
    }
    filled = [folder for folder in named if folder in tree.filled]
    with_classes = [folder for folder in filled if folder in tree.inner]
    others = [f"{printable_path(folder)}/" for folder in tree.filled_in(top) if folder not in named]
    others += [printable_path(tree.direct[top])] if top in tree.direct else []
    if not filled or (not with_classes and _are_classes(tree, named, filled, others, notes)):
        return {}
    if others:
        raise ValueError(
            f"data must hold splits or classes, got {printable_path((with_classes or filled)[0])}/ "
            "beside "
            f"{others[0]} in {tree.root}; {_advice(named)}"
        )
    splits_of: dict[Split, str] = {}
    for folder in sorted(named, key=lambda folder: folder not in tree.filled):
        if len(named[folder]) > 1:
            raise ValueError(
                f"data must have folders that are one split each, got {printable_path(folder)}/ in "
                f"{tree.root}; {_advice(named)}"
            )
        (split,) = named[folder]
        if split in splits_of and folder in tree.filled:
            raise ValueError(
                "data must name each split once, got "
                f"{quoted_list(sorted(map(printable_path, named)))} "
                "in "
                f"{tree.root}; {_advice(named)}"
            )
        splits_of.setdefault(split, folder)
    return {split: splits_of[split] for split in WORDS if split in splits_of}


def _are_classes(
    tree: Tree,
    named: Mapping[str, set[Split]],
    filled: list[str],
    others: list[str],
    notes: list[str],
) -> bool:
    """Whether folders named like splits, none of which holds class folders, are classes: so is
    `train` beside `bus` and `car`, as training images need classes. Images in `test` beside classes
    may be a class or unlabelled, which is ambiguous."""
    if not others:
        raise ValueError(
            f"data must be a folder of class folders, got images only in {tree.root}/"
            f"{printable_path(filled[0])}; if that is a class, say --splits train=."
        )
    if any(named[folder] != {"train"} for folder in filled):
        return False
    notes.append(
        f"{printable_path(filled[0])}/ is a class, as it holds images and no class folders"
    )
    return True


def _unwrapped(tree: Tree, split: Split, folder: str) -> str:
    """A split's folder, or its only inner folder if that is named alike: seg_train/seg_train."""
    while True:
        inner = tree.filled_in(folder)
        alike = len(inner) == 1 and splits_in(os.path.basename(inner[0])) == {split}
        if not alike or folder in tree.direct:
            return folder
        folder = inner[0]


def _check_class_folders(tree: Tree, notes: list[str]) -> None:
    """Raises ValueError if folders that count as classes may be splits, or hold splits."""
    classes = tree.filled_in("")
    if alike := look_alikes(classes):
        first, second, *_ = alike.values()
        raise ValueError(
            f"data must hold splits or classes, got {printable_path(first)}/ beside "
            f"{printable_path(second)}/ in "
            f"{tree.root}; {splits_advice(alike)}"
        )
    inner_names = []
    for folder in classes:
        inner = {os.path.basename(inner): inner for inner in tree.filled_in(folder)}
        inner_names.append(set(inner))
        splits = {next(iter(names)): name for name in inner if len(names := splits_in(name)) == 1}
        if len(splits) > 1:
            first, second, *_ = (printable_path(inner[name]) for name in splits.values())
            raise ValueError(
                f"data must hold splits that hold classes, got classes that hold splits, "
                f"{first}/ and {second}/, in {tree.root}; say --splits train=. to train on all"
            )
    common = set.intersection(*inner_names) if len(classes) > 1 else set()
    if len(common) > 1:
        notes.append(
            f"the classes are {quoted_list([*map(printable_path, classes)])}, each of which holds "
            "folders "
            f"{quoted_list(sorted(map(printable_path, common)))}; if these are the classes, say "
            f"--splits train={printable_path(classes[0])},test={printable_path(classes[1])}"
        )


def _advice(named: Mapping[str, set[Split]]) -> str:
    """Advice how to give the layout, with the first folder of each split."""
    return splits_advice(
        {next(iter(splits)): folder for folder, splits in [*named.items()][::-1] if len(splits) < 2}
    )
