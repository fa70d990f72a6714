"""Sources of labelled images: classes, and tables of images for training, validation and test."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import fs

from psvit_ray.data.images.options import BACKGROUND, parse_tone_range
from psvit_ray.data.images.tone_range import DEFAULT_TONES, Tones
from psvit_ray.data.sources import image_folder, parquet_files
from psvit_ray.data.sources.parquet_table import is_table
from psvit_ray.data.sources.survey import surveyed
from psvit_ray.data.splits.layout import AS_NAMED, DataLayout
from psvit_ray.data.splits.split_file import (
    ROLES,
    DataChanged,
    SplitFile,
    changes,
    check_same,
    split_numbers,
    unchanged,
)
from psvit_ray.data.splits.splits import Splits, cut, drawn, held_out
from psvit_ray.data.tables import ArrayTable, ImageTable
from psvit_ray.storage import files
from psvit_ray.storage.folder import Folder
from psvit_ray.text.messages import quoted_list
from psvit_ray.text.secrets import without_secrets

TEST_IMAGES = 360
TEST_SEED = 20210808  # the test images of digits are the same for every configuration

TRAIN, HOLDOUT, TEST, UNUSED = range(len(ROLES))
TORCHVISION = ("torchvision", "torchvision-download")


@dataclass(frozen=True)
class Source:
    """The data of a run, in disjoint tables."""

    name: str
    """Name of the data in the configuration, without secrets."""
    class_names: tuple[str, ...]
    """Names of the classes, in the order of the labels."""
    train: ImageTable
    """Images to train on."""
    holdout: ImageTable
    """Images for validation, by which searches rank."""
    test: ImageTable | None
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
    """All stored images, and the split of each."""
    cut_by_place: bool = False
    """Whether training images are held out, or left out, by a hash of their places."""
    tones: Tones = DEFAULT_TONES
    """Tone ranges of images of more than 8 bits."""
    by_file: bool = False
    """Whether the images are split by a split file instead of settings."""

    @property
    def digest(self) -> str:
        """Digest of all stored images, however they are split; empty if they are not known."""
        return self.images.digest if self.images else ""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def load_data(
    data: str,
    layout: DataLayout = AS_NAMED,
    *,
    holdout: float,
    split_seed: int,
    fraction: float = 1.0,
    val_as_test: bool = False,
    tone_range: str = "",
    background: str = BACKGROUND,
    known: SplitFile | None = None,
) -> Source:
    """Reads `data` (see `read_data`), splits it by settings (see `divided`) or by the split file
    `known` (see `divided_as`), and samples its images for tone ranges (see `survey`), which
    `tone_range`, as LOW:HIGH, overrides.

    Raises ValueError for data that cannot be used.
    """
    splits = read_data(data, layout)
    _check_classes(splits)
    tones, notes = surveyed(
        splits.name,
        splits.train,
        {"val": splits.val, "test": splits.test},
        parse_tone_range(tone_range) if tone_range else None,
        background,
    )
    if known:
        source = divided_as(splits, known)
    else:
        source = divided(
            splits,
            holdout=holdout,
            split_seed=split_seed,
            fraction=fraction,
            val_as_test=val_as_test,
        )
    return replace(source, tones=tones, notes=(*source.notes, *notes))


def _check_classes(splits: Splits) -> None:
    """Raises ValueError if the training images are of fewer than two classes."""
    classes = np.unique(splits.train.labels)
    if len(classes) < 2:
        got = ", ".join(repr(splits.class_names[number]) for number in classes)
        raise ValueError(f"data must have at least 2 classes, got {got}")


def divided(
    splits: Splits,
    *,
    holdout: float,
    split_seed: int,
    fraction: float = 1.0,
    val_as_test: bool = False,
) -> Source:
    """Splits stored data for a run.

    The hold-out is the validation split; without one, or if `val_as_test` keeps it for the final
    score, the fraction `holdout` of the training images, class by class. `fraction` is the part of
    the other training images to train on. The test images depend on none of these, nor on
    `split_seed`. If images may be added to the data, each is held out or not by its own name, so
    that none that was trained on is held out later (see `splits.held_out`).

    Raises ValueError if no hold-out can be cut.
    """
    notes = list(splits.notes)
    role = {"val": HOLDOUT, "test": TEST}
    if val_as_test:
        if splits.val is None:
            raise ValueError(f"val_as_test must be off, as data {splits.name!r} has no split val")
        role = {"val": TEST, "test": UNUSED}
        if splits.test is not None:
            notes.append(
                f"the {len(splits.test):,} images of test are not used: val is, in their place"
            )
    train = np.full(len(splits.train), TRAIN)
    if splits.val is None or val_as_test:
        single = _classes_with(splits, splits.train, 1)
        held = _held_out(splits, holdout, split_seed)
        train[held] = HOLDOUT
        notes.append(f"hold-out: {len(held):,} of {len(train):,} training images, class by class")
        if single:
            notes.append(f"not held out, as it is the only image: that of {quoted_list(single)}")
    if fraction < 1:
        left = np.flatnonzero(train == TRAIN)
        used = _part(splits, left, fraction, split_seed)
        train[np.setdiff1d(left, used)] = UNUSED
        notes.append(f"training on {len(used):,} of {len(left):,} images, class by class")
    if absent := _classes_with(splits, splits.train.take(np.flatnonzero(train == TRAIN)), 0):
        notes.append(f"no training image has class {quoted_list(absent)}")
    others = {"val": splits.val, "test": splits.test}
    roles = [np.full(len(table), role[word]) for word, table in others.items() if table is not None]
    return _source(splits, np.concatenate([train, *roles]), notes)


def divided_as(splits: Splits, known: SplitFile) -> Source:
    """Splits stored data by the split file `known`. Images that were added, renamed or changed
    since then are left out, with a note of their number."""
    now = SplitFile.of(splits.class_names, splits.tables, np.zeros(sum(map(len, splits.tables))))
    split = np.full(len(now), UNUSED)
    where, same = unchanged(known, now)
    split[where[same]] = split_numbers(known)[same]
    notes = [*splits.notes, *left_out(known, now)]
    return replace(_source(splits, split, notes), by_file=True)


def left_out(known: SplitFile, now: SplitFile) -> list[str]:
    """A note of images that were added or changed since the data was split."""
    if now.digest == known.digest:
        return []
    return [f"since the data was split, and left out: {'; '.join(changes(known, now))}"]


def check_unchanged(source: Source, digest: str, known: SplitFile | None = None) -> None:
    """Checks that the images of a run are those that it began with, which have `digest` and, if it
    is at hand, the split file `known`. A run of an older version, without a digest, goes on if
    images are cut as they were then.

    Raises DataChanged if the images differ, or are split otherwise.
    """
    if not digest and source.cut_by_place:
        raise DataChanged(
            "data cannot be checked: the run began with a version that did not note its images, "
            "and that cut the hold-out otherwise. Begin anew under another --name"
        )
    if digest and source.images:
        check_same(known, digest, source.images)


def _held_out(splits: Splits, size: float, seed: int) -> np.ndarray:
    """Positions of the training images to hold out."""
    if splits.train.grows:
        return np.flatnonzero(held_out(splits.train, splits.class_names, size, seed))
    return cut(splits.train, size, seed, "holdout")[1]


def _part(splits: Splits, left: np.ndarray, size: float, seed: int) -> np.ndarray:
    """Positions of the fraction `size` of the training images at `left`, which are not held out."""
    table = splits.train.take(left)
    if table.grows:
        return left[drawn(table, splits.class_names, size, seed)]
    return left[cut(table, size, seed, "data_fraction")[1]]


def _source(splits: Splits, split: np.ndarray, notes: Sequence[str]) -> Source:
    """The source in which each stored image has the split of `split` (N,), a position in
    `ROLES`."""
    tables: dict[int, ImageTable] = {}
    start = 0
    for table in splits.tables:
        roles = split[start : start + len(table)]
        start += len(table)
        for role in {*roles.tolist()} - {UNUSED}:
            tables[role] = table.take(np.flatnonzero(roles == role))
    none = splits.train.take(np.arange(0))
    return Source(
        splits.name,
        splits.class_names,
        tables.get(TRAIN, none),
        tables.get(HOLDOUT, none),
        tables.get(TEST),
        splits.img_size,
        splits.in_chans,
        splits.mean,
        splits.std,
        tuple(notes),
        SplitFile.of(splits.class_names, splits.tables, split),
        cut_by_place=splits.train.grows and bool((split[: len(splits.train)] != TRAIN).any()),
    )


def _classes_with(splits: Splits, table: ImageTable, images: int) -> list[str]:
    """Names of the classes with exactly `images` images in `table`."""
    counts = np.bincount(table.labels, minlength=len(splits.class_names))
    return [name for name, n in zip(splits.class_names, counts, strict=True) if n == images]


def check_exists(data: str) -> None:
    """Raises ValueError, with the nearest name, where nothing is stored under the name that
    `read_data` takes; reads no image and lists no folder."""
    if data == "digits" or data.partition(":")[0] in TORCHVISION:
        return
    there = Folder.at(data or ".")
    try:
        missing = files.file_type(there) == fs.FileType.NotFound and not files.has_wildcards(there)
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(data, error) from None
    if missing or not data:
        raise _unknown(without_secrets(data), there)


def read_data(data: str, layout: DataLayout = AS_NAMED) -> Splits:
    """Reads stored data: `digits`; a folder of class folders, or of splits that hold class folders;
    Parquet or Arrow as a file, a folder or a pattern; or `torchvision:NAME:FOLDER`. Folders and
    tables may be in an object store; `layout` tells splits and columns that their names do not.

    Raises ValueError for data that cannot be used.
    """
    if data == "digits":
        layout.check_unused(data)
        return _digits()
    if data.partition(":")[0] in TORCHVISION:
        from psvit_ray.data.sources import torchvision_sets

        layout.check_unused(data)
        return torchvision_sets.read_torchvision(data)
    if not data:
        raise _unknown(data, Folder.at("."))
    try:
        return _stored(without_secrets(data), Folder.at(data), layout)
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _unreadable(data, error) from None


def _digits() -> Splits:
    """scikit-learn's 1,797 handwritten digits: 8x8 pixels, grey, 10 classes."""
    # Here, as no other data needs the 100 MiB of scikit-learn, nor torch to be listed.
    import torch
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy((pixels * 255 / 16).round().astype(np.uint8)).view(-1, 1, 8, 8)
    everything = ArrayTable(images, labels.astype(np.int64), "digits")
    train, test = map(everything.take, cut(everything, TEST_IMAGES, TEST_SEED, "test"))
    # Mean and standard deviation over all pixels.
    return Splits("digits", tuple("0123456789"), train, None, test, 8, 1, (0.305,), (0.376,))


def _stored(name: str, there: Folder, layout: DataLayout) -> Splits:
    """The splits of a folder, a file or a pattern. Raises ValueError and OSError."""
    file_type = files.file_type(there)
    if file_type == fs.FileType.File:
        above, file = files.parent(there)
        if not is_table(file):
            raise ValueError(f"data must be a folder or Parquet, got the file {name!r}")
        return parquet_files.read_tables(name, above, [file], layout)
    if file_type == fs.FileType.Directory:
        listing = files.list_below(there)
        table = next(filter(is_table, listing.files), None)
        if table is None:
            _check_no_columns(layout, name)
            return image_folder.read_image_folder(name, there, listing, layout)
        if image := next(filter(image_folder.is_image, listing.files), None):
            raise ValueError(
                f"data must be images or Parquet, got {image} beside {table} in {there}"
            )
        return parquet_files.read_table_folder(name, there, listing, layout)
    if files.has_wildcards(there):
        root, paths = files.list_matching(there)
        if not paths:
            raise ValueError(f"data must match a file, got none for {name!r}")
        if strange := [path for path in paths if not is_table(path)]:
            raise ValueError(f"data must match Parquet only, got {strange[0]} for {name!r}")
        return parquet_files.read_tables(name, root, paths, layout)
    raise _unknown(name, there)


def _check_no_columns(layout: DataLayout, name: str) -> None:
    for field in ("image_column", "label_column"):
        if value := getattr(layout, field):
            raise ValueError(f"{field} must be empty, as {name!r} has no Parquet, got {value!r}")


def _unreadable(data: str, error: Exception) -> ValueError:
    return ValueError(
        f"data must be readable, got {without_secrets(data)!r}: {files.error_text(error)}"
    )


def _unknown(name: str, there: Folder) -> ValueError:
    """An error for data that does not exist, with the nearest name."""
    above, last = files.parent(there)
    around = Path(above.uri).glob("[!.]*") if there.is_local else ()
    beside = [path.name for path in around if path.is_dir() or path.suffix == ".parquet"]
    if "/" not in name:
        near = difflib.get_close_matches(name, ["digits", *beside], n=1, cutoff=0.0)[0]
        return ValueError(f"data must be a known source, got {name!r}; nearest is {near!r}")
    hint = difflib.get_close_matches(last, beside, n=1, cutoff=0.0)
    nearest = "".join(f"; nearest is {name.rstrip('/')[: -len(last)] + near!r}" for near in hint)
    return ValueError(f"data must exist, got {name!r}{nearest}")
