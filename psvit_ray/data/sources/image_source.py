"""Where images come from: a source knows its classes and gives tables of images to train on, to
rank by, and to touch once."""

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
TEST_SEED = 20210808  # The test images are these, whatever a run is configured to do.

TRAIN, HOLDOUT, TEST, UNUSED = range(len(ROLES))


@dataclass(frozen=True)
class Source:
    """Disjoint tables: `train` to learn from, `holdout` to rank by, `test` to touch once."""

    name: str
    """What `data` said, without secrets."""
    class_names: tuple[str, ...]
    train: ImageTable
    holdout: ImageTable
    test: ImageTable | None
    img_size: int | None = None
    """Side in pixels where all images have one; None where they are resized."""
    in_chans: int | None = None
    """None where pictures are converted to 1 or 3 as asked."""
    mean: tuple[float, ...] | None = None
    """Of each channel, in 0 to 1; None where the data has no statistics of its own."""
    std: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()
    """What a user should be told, a line each."""
    images: SplitFile | None = None
    """All images that are stored, and what each is for."""
    cut_by_place: bool = False
    """Whether training images are held out, or left out, by a hash of their places."""
    tones: Tones = DEFAULT_TONES
    """How pictures of more than 8 bits are read."""
    by_file: bool = False
    """Whether the images are split as a file of splits says, and not by settings."""

    @property
    def digest(self) -> str:
        """Names the images that are stored, however they are split; empty where they are not
        known."""
        return self.images.digest if self.images else ""

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def load(
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
    """The source that `data` and `layout` name (see `read`), divided (see `divided`) or, where it
    is `known` how it was split, as it was then (see `divided_as`); and how its pictures are read
    (see `survey`): `tone_range`, as LOW:HIGH, overrides what a sample shows.

    Raises ValueError for data that cannot be used.
    """
    splits = read(data, layout)
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
    """Raises ValueError where there is nothing to tell apart."""
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
    """What a run takes of what is stored.

    The hold-out is the validation split; without one, or where `val_as_test` keeps it for the end,
    `holdout` is the part of the training images cut off instead, class by class. `fraction` is the
    part of the rest to train on. The test images depend on none of these, nor on `split_seed`.
    Where images may be added to the data, each is held out or not by its own name, so that none
    that was trained on is held out later (see `splits.held_out`).
    Raises ValueError where no hold-out can be cut.
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
        single = _classes(splits, splits.train, 1)
        held = _held_out(splits, holdout, split_seed)
        train[held] = HOLDOUT
        notes.append(f"hold-out: {len(held):,} of {len(train):,} training images, class by class")
        if single:
            notes.append(f"not held out, as it is the only image: that of {quoted_list(single)}")
    if fraction < 1:
        there = np.flatnonzero(train == TRAIN)
        kept = _part(splits, there, fraction, split_seed)
        train[np.setdiff1d(there, kept)] = UNUSED
        notes.append(f"training on {len(kept):,} of {len(there):,} images, class by class")
    if absent := _classes(splits, splits.train.take(np.flatnonzero(train == TRAIN)), 0):
        notes.append(f"no training image has class {quoted_list(absent)}")
    others = {"val": splits.val, "test": splits.test}
    roles = [np.full(len(table), role[word]) for word, table in others.items() if table is not None]
    return _source(splits, np.concatenate([train, *roles]), notes)


def divided_as(splits: Splits, known: SplitFile) -> Source:
    """What a run took of what is stored, by its file of splits. What was added, renamed or changed
    since then is left out, and a note says how much that is."""
    now = SplitFile.of(splits.class_names, splits.tables, np.zeros(sum(map(len, splits.tables))))
    split = np.full(len(now), UNUSED)
    where, same = unchanged(known, now)
    split[where[same]] = split_numbers(known)[same]
    notes = [*splits.notes, *left_out(known, now)]
    return replace(_source(splits, split, notes), by_file=True)


def left_out(known: SplitFile, now: SplitFile) -> list[str]:
    """What to say of images that are not as they were when the data was split."""
    if now.digest == known.digest:
        return []
    return [f"since the data was split, and left out: {'; '.join(changes(known, now))}"]


def check_unchanged(source: Source, digest: str, known: SplitFile | None = None) -> None:
    """`digest` is that of the images that a run began with, `known` its file of splits, where that
    is at hand. A run of before digests were kept goes on if nothing is cut otherwise than then.

    Raises DataChanged where the images are others now, or split otherwise.
    """
    if not digest and source.cut_by_place:
        raise DataChanged(
            "data cannot be checked: the run began with a version that did not note its images, "
            "and that cut the hold-out otherwise. Begin anew under another --name"
        )
    if digest and source.images:
        check_same(known, digest, source.images)


def _held_out(splits: Splits, size: float, seed: int) -> np.ndarray:
    """Of the training images, the indices of those to hold out."""
    if splits.train.grows:
        return np.flatnonzero(held_out(splits.train, splits.class_names, size, seed))
    return cut(splits.train, size, seed, "holdout")[1]


def _part(splits: Splits, there: np.ndarray, size: float, seed: int) -> np.ndarray:
    """Of the training images that are not held out, the indices of a part."""
    table = splits.train.take(there)
    if table.grows:
        return there[drawn(table, splits.class_names, size, seed)]
    return there[cut(table, size, seed, "data_fraction")[1]]


def _source(splits: Splits, split: np.ndarray, notes: Sequence[str]) -> Source:
    """`split` (N,): for each image that is stored, the number of what it is for."""
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


def _classes(splits: Splits, table: ImageTable, images: int) -> list[str]:
    """Those that so many images of a table have."""
    counts = np.bincount(table.labels, minlength=len(splits.class_names))
    return [name for name, n in zip(splits.class_names, counts, strict=True) if n == images]


def read(data: str, layout: DataLayout = AS_NAMED) -> Splits:
    """What is stored, nothing cut: `digits`; a folder of class folders, or of splits that hold
    them; Parquet or Arrow as a file, a folder or a pattern; `torchvision:NAME:FOLDER`. Folders and
    tables may be in an object store; `layout` says what their names do not.

    Raises ValueError for data that cannot be used.
    """
    if data == "digits":
        layout.check_unused(data)
        return _digits()
    if data.partition(":")[0] in ("torchvision", "torchvision-download"):
        from psvit_ray.data.sources import torchvision_sets

        layout.check_unused(data)
        return torchvision_sets.read(data)
    if not data:
        raise _unknown(data, Folder.at("."))
    try:
        return _stored(without_secrets(data), Folder.at(data), layout)
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"data must be readable, got {without_secrets(data)!r}: {files.error_text(error)}"
        ) from None


def _digits() -> Splits:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, as one of 10 classes."""
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
    """A folder, a file or a pattern. Raises ValueError, OSError."""
    kind = files.file_type(there)
    if kind == fs.FileType.File:
        above, file = files.parent(there)
        if not is_table(file):
            raise ValueError(f"data must be a folder or Parquet, got the file {name!r}")
        return parquet_files.read(name, above, [file], layout)
    if kind == fs.FileType.Directory:
        listing = files.list_below(there)
        table = next(filter(is_table, listing.files), None)
        if table is None:
            _check_no_columns(layout, name)
            return image_folder.read(name, there, listing, layout)
        if image := next(filter(image_folder.is_image, listing.files), None):
            raise ValueError(
                f"data must be images or Parquet, got {image} beside {table} in {there}"
            )
        return parquet_files.read_folder(name, there, listing, layout)
    if files.has_wildcards(there):
        root, paths = files.list_matching(there)
        if not paths:
            raise ValueError(f"data must match a file, got none for {name!r}")
        if strange := [path for path in paths if not is_table(path)]:
            raise ValueError(f"data must match Parquet only, got {strange[0]} for {name!r}")
        return parquet_files.read(name, root, paths, layout)
    raise _unknown(name, there)


def _check_no_columns(layout: DataLayout, name: str) -> None:
    for field in ("image_column", "label_column"):
        if value := getattr(layout, field):
            raise ValueError(f"{field} must be empty, as {name!r} has no Parquet, got {value!r}")


def _unknown(name: str, there: Folder) -> ValueError:
    """Says what comes nearest of what there is."""
    above, last = files.parent(there)
    around = Path(above.uri).glob("[!.]*") if there.is_local else ()
    beside = [path.name for path in around if path.is_dir() or path.suffix == ".parquet"]
    if "/" not in name:
        near = difflib.get_close_matches(name, ["digits", *beside], n=1, cutoff=0.0)[0]
        return ValueError(f"data must be a known source, got {name!r}; nearest is {near!r}")
    hint = difflib.get_close_matches(last, beside, n=1, cutoff=0.0)
    nearest = "".join(f"; nearest is {name.rstrip('/')[: -len(last)] + near!r}" for near in hint)
    return ValueError(f"data must exist, got {name!r}{nearest}")
