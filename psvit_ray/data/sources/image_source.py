"""The data of a run as one value: its classes, and tables of images for training, hold-out and
test."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data.images.tone_range import DEFAULT_TONES, Tones
from psvit_ray.data.splits.layout import DataSettings, Split
from psvit_ray.data.splits.split_file import (
    ROLES,
    DataChanged,
    SplitFile,
    check_same,
    left_out,
    split_numbers,
    unchanged,
)
from psvit_ray.data.splits.splits import TEST_SEED, cut, drawn, held_out
from psvit_ray.data.tables import StoredTable
from psvit_ray.text.messages import nearest, quoted_list

TRAIN, HOLDOUT, TEST, UNUSED = range(len(ROLES))


@dataclass(frozen=True)
class Source:
    """Labelled images in disjoint tables. As they are stored (see `read_data`), the hold-out is
    the validation split, and empty without one; `divided` and `divided_as` split them for a run."""

    name: str
    """Name of the data in the configuration, without secrets."""
    class_names: tuple[str, ...]
    """Names of the classes, in the order of the labels."""
    train: StoredTable
    """Images to train on."""
    holdout: StoredTable
    """Images for validation, by which searches rank."""
    test: StoredTable | None
    """Images for the final score; None if there are none."""
    img_size: int | None = None
    """Side of the images in pixels if all have the same; None if they are resized."""
    in_chans: int | None = None
    """Channels of the images; None if they are converted to 1 or 3 as needed."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, from 0 to 1; None if it is not known."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel; None if it is not known."""
    notes: tuple[str, ...] = ()
    """Notes for the user, one line each."""
    images: SplitFile | None = None
    """All stored images, and the split of each; None as long as they are not split for a run."""
    cut_by_place: bool = False
    """Whether training images are held out, or left out, by a hash of their places."""
    tones: Tones = DEFAULT_TONES
    """Tone ranges of images of more than 8 bits."""
    by_file: bool = False
    """Whether the images are split by a split file instead of settings."""

    @classmethod
    def of(
        cls,
        name: str,
        class_names: Mapping[Split, tuple[str, ...]],
        tables: Mapping[Split, StoredTable],
        notes: Collection[str],
    ) -> Source:
        """Stored data, of tables whose labels are numbers of their own `class_names`. The classes
        are those of train; other splits may lack some, or have them in another order. A single
        split is all of the data, whatever its name.

        Raises ValueError if a split is missing or empty, or has a class that train lacks.
        """
        notes = [*notes]
        for split, table in tables.items():
            if not len(table):
                raise ValueError(f"data must have images in every split, got none in {split}")
        if len(tables) == 1:
            (only,) = tables
            notes += [f"the only split, {only}, is all of it"] if only != "train" else []
            class_names, tables = {"train": class_names[only]}, {"train": tables[only]}
        elif "train" not in tables:
            raise ValueError(f"data must have a split train, got only {', '.join(tables)}")
        classes = tuple(dict.fromkeys(class_names["train"]))
        same: dict[Split, StoredTable] = {}
        for split, table in tables.items():
            numbers = numbers_in(
                classes, class_names[split], rule="the same classes in every split", where=split
            )
            labels = numbers[table.labels]
            if not np.array_equal(labels, table.labels):
                table = replace(cast(Any, table), labels=labels)
            same[split] = table
            lacking = np.bincount(labels, minlength=len(classes)) == 0
            if lacking.any() and len(classes) > 1:
                names = [name for name, lacks in zip(classes, lacking, strict=True) if lacks]
                notes.append(f"{split} has no image of class {quoted_list(names)}")
        notes += _near_names(classes)
        train = same["train"]
        holdout = same.get("val", train.take(np.arange(0)))
        return cls(name, classes, train, holdout, same.get("test"), notes=tuple(notes))

    @property
    def digest(self) -> str:
        """Digest of all stored images, however they are split; empty if they are not known."""
        return self.images.digest if self.images else ""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def tables(self) -> dict[Split, StoredTable]:
        """The table of each stored split that there is."""
        tables: dict[Split, StoredTable | None] = {
            "train": self.train,
            "val": self.holdout,
            "test": self.test,
        }
        return {split: table for split, table in tables.items() if table is not None and len(table)}

    def divided(self, settings: DataSettings) -> Source:
        """This stored data, split for a run.

        Without a test split, the fraction `test_fraction` of the training images is one. The
        hold-out is the validation split; without one, or if `val_as_test` keeps it for the final
        score, the fraction `holdout` of the other training images, class by class. `data_fraction`
        is the part of those left to train on. The test images depend on none of these, nor on
        `split_seed`. If images may be added to the data, each is held out or not by
        its own name, so that none that was trained on is held out later (see `splits.held_out`).

        Raises ValueError if no hold-out, or no test images, can be cut.
        """
        notes = list(self.notes)
        role = {"train": TRAIN, "val": HOLDOUT, "test": TEST}
        if settings.val_as_test:
            if "val" not in self.tables:
                raise ValueError(f"val_as_test must be off, as data {self.name!r} has no split val")
            role = {"train": TRAIN, "val": TEST, "test": UNUSED}
            if self.test is not None:
                notes.append(
                    f"the {len(self.test):,} images of test are not used: val is, in their place"
                )
        roles = [np.full(len(table), role[split]) for split, table in self.tables.items()]
        train = roles[0]
        used_as = [role[split] for split in self.tables]
        if settings.test_fraction and TEST not in used_as:
            if HOLDOUT not in used_as:
                self._check_three_parts()
            tested = self._held_out(settings.test_fraction, TEST_SEED, "test_fraction", train)
            train[tested] = TEST
            notes.append(f"test: {len(tested):,} of {len(train):,} images, class by class")
        if HOLDOUT not in used_as:
            left = np.flatnonzero(train == TRAIN)
            single = self._classes_with(self.train.take(left), 1)
            held = self._held_out(settings.holdout, settings.split_seed, "holdout", train)
            train[held] = HOLDOUT
            notes.append(
                f"hold-out: {len(held):,} of {len(left):,} training images, class by class"
            )
            if single:
                notes.append(
                    f"not held out, as it is the only image: that of {quoted_list(single)}"
                )
        if settings.data_fraction < 1:
            left = np.flatnonzero(train == TRAIN)
            used = self._part(left, settings)
            train[np.setdiff1d(left, used)] = UNUSED
            notes.append(f"training on {len(used):,} of {len(left):,} images, class by class")
        if absent := self._classes_with(self.train.take(np.flatnonzero(train == TRAIN)), 0):
            notes.append(f"no training image has class {quoted_list(absent)}")
        return self._split(np.concatenate(roles), notes)

    def divided_as(self, known: SplitFile) -> Source:
        """This stored data, split by the split file `known`. Images that were added, renamed or
        changed since then are left out, with a note of their number."""
        stored = [*self.tables.values()]
        now = SplitFile.of(self.class_names, stored, np.zeros(sum(map(len, stored))))
        split = np.full(len(now), UNUSED)
        where, same = unchanged(known, now)
        split[where[same]] = split_numbers(known)[same]
        return replace(self._split(split, [*self.notes, *left_out(known, now)]), by_file=True)

    def check_fits(self, spec: ArchSpec, batch_size: int) -> None:
        """Raises ValueError if size, channels or classes of the images are not those of the spec,
        or if a batch has more images than there are to train on."""
        for name in ("img_size", "in_chans", "num_classes"):
            got, expected = getattr(spec, name), getattr(self, name)
            if expected is not None and got != expected:
                raise ValueError(f"{name} must be {expected}, as in data {self.name!r}, got {got}")
        if spec.in_chans not in (1, 3):
            raise ValueError(f"in_chans must be 1 or 3, as pictures have, got {spec.in_chans}")
        if batch_size > len(self.train):
            raise ValueError(
                f"batch_size must be at most {len(self.train):,}, the training images of data "
                f"{self.name!r}, got {batch_size}"
            )

    def check_unchanged(self, digest: str, known: SplitFile | None = None) -> None:
        """Checks that the images are those that a run began with, which have `digest` and, if it
        is at hand, the split file `known`. A run of an older version, without a digest, goes on if
        images are cut as they were then.

        Raises DataChanged if the images differ, or are split otherwise.
        """
        if not digest and self.cut_by_place:
            raise DataChanged(
                "data cannot be checked: the run began with a version that did not note its "
                "images, and that cut the hold-out otherwise. Begin anew under another --name"
            )
        if digest and self.images:
            check_same(known, digest, self.images)

    def _check_three_parts(self) -> None:
        """Raises ValueError if no class has an image each to train on, to hold out and to test."""
        if (largest := int(np.bincount(self.train.labels).max())) < 3:
            raise ValueError(
                "data must have at least 3 images of a class, to train on, to hold out and to "
                f"test, got {largest} at most in {self.name!r}; --test-fraction 0 keeps none for a "
                "test"
            )

    def _held_out(self, size: float, seed: int, purpose: str, roles: np.ndarray) -> np.ndarray:
        """Positions of the training images to hold out, or to test, among those that have the role
        TRAIN in `roles` (N,)."""
        left = np.flatnonzero(roles == TRAIN)
        table = self.train.take(left)
        if table.grows:
            return left[held_out(table, self.class_names, size, seed, purpose)]
        return left[cut(table, size, seed, purpose)[1]]

    def _part(self, left: np.ndarray, settings: DataSettings) -> np.ndarray:
        """Positions of a part of the training images at `left`, which are not held out."""
        table = self.train.take(left)
        size, seed = settings.data_fraction, settings.split_seed
        if table.grows:
            return left[drawn(table, self.class_names, size, seed)]
        return left[cut(table, size, seed, "data_fraction")[1]]

    def _split(self, split: np.ndarray, notes: Sequence[str]) -> Source:
        """The source in which each stored image has the split of `split` (N,), a position in
        `ROLES`."""
        tables: dict[int, StoredTable] = {}
        start = 0
        for table in self.tables.values():
            roles = split[start : start + len(table)]
            start += len(table)
            for role in {*roles.tolist()} - {UNUSED}:
                tables[role] = table.take(np.flatnonzero(roles == role))
        none = self.train.take(np.arange(0))
        return replace(
            self,
            train=tables.get(TRAIN, none),
            holdout=tables.get(HOLDOUT, none),
            test=tables.get(TEST),
            notes=tuple(notes),
            images=SplitFile.of(self.class_names, [*self.tables.values()], split),
            cut_by_place=self.train.grows and bool((split[: len(self.train)] != TRAIN).any()),
        )

    def _classes_with(self, table: StoredTable, images: int) -> list[str]:
        """Names of the classes with exactly `images` images in `table`."""
        counts = np.bincount(table.labels, minlength=self.num_classes)
        return [name for name, n in zip(self.class_names, counts, strict=True) if n == images]


def class_name(text: str) -> str:
    """The normal form of a class name: Unicode's composed form, as a Mac decomposes names of
    folders, with bytes that are not UTF-8 escaped."""
    return unicodedata.normalize("NFC", os.fsencode(text).decode("utf-8", "backslashreplace"))


def numbers_in(
    known: tuple[str, ...], names: tuple[str, ...], *, rule: str, where: str
) -> np.ndarray:
    """Number of each class of `names` in `known`, (K,) int64. Raises ValueError, with the `rule`
    and the nearest name, for a class that only `where` has."""
    number = {class_name(name): number for number, name in enumerate(known)}
    unknown = [name for name in names if class_name(name) not in number]
    if unknown:
        near = nearest(unknown[0], known)
        hint = f"; nearest is {near!r}" if near else ""
        raise ValueError(
            f"data must have {rule}, got only in {where}: {quoted_list(unknown)}{hint}"
        )
    return np.array([number[class_name(name)] for name in names], dtype=np.int64)


def _near_names(names: tuple[str, ...]) -> list[str]:
    """A note of classes whose names differ only in case or spaces."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault("".join(name.casefold().split()), []).append(name)
    several = [name for group in alike.values() if len(group) > 1 for name in group]
    return [f"classes differ in case or spaces only: {quoted_list(several)}"] if several else []
