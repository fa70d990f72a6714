"""Where images come from: a source knows its classes and gives tables of images to train on, to
rank by, and to touch once."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from pyarrow import fs

from psvit_ray.data import files, folder, parquet_files, vision
from psvit_ray.data.layout import AS_NAMED, DataLayout
from psvit_ray.data.parquet import is_table
from psvit_ray.data.secrets import without_secrets
from psvit_ray.data.splits import Splits, cut, listed
from psvit_ray.data.storage import Folder
from psvit_ray.data.tables import ArrayTable, ImageTable

TEST_IMAGES = 360
TEST_SEED = 20210808  # The test images are these, whatever a run is configured to do.


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
) -> Source:
    """The source that `data` and `layout` name (see `read`), divided (see `divided`).

    Raises ValueError for data that cannot be used.
    """
    splits = read(data, layout)
    _check_classes(splits)
    return divided(
        splits,
        holdout=holdout,
        split_seed=split_seed,
        fraction=fraction,
        val_as_test=val_as_test,
    )


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
    Raises ValueError where an image of each class cannot be had.
    """
    train, held, test, notes = splits.train, splits.val, splits.test, list(splits.notes)
    if val_as_test:
        if held is None:
            raise ValueError(f"val_as_test must be off, as data {splits.name!r} has no split val")
        if test is not None:
            notes.append(f"the {len(test):,} images of test are not used: val is, in their place")
        held, test = None, held
    if held is None:
        images, single = len(train), _classes(splits, train, 1)
        train, held = cut(train, holdout, split_seed, "holdout")
        notes.append(f"hold-out: {len(held):,} of {images:,} training images, class by class")
        if single:
            notes.append(f"not held out, as it is the only image: that of {listed(single)}")
    if fraction < 1:
        images = len(train)
        _, train = cut(train, fraction, split_seed, "data_fraction")
        notes.append(f"training on {len(train):,} of {images:,} images, class by class")
    if absent := _classes(splits, train, 0):
        notes.append(f"no training image has class {listed(absent)}")
    return Source(
        splits.name,
        splits.class_names,
        train,
        held,
        test,
        splits.img_size,
        splits.in_chans,
        splits.mean,
        splits.std,
        tuple(notes),
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
    if data.partition(":")[0] in (vision.PREFIX, vision.DOWNLOAD):
        layout.check_unused(data)
        return vision.read(data)
    if not data:
        raise _unknown(data, Folder.at("."))
    try:
        return _stored(without_secrets(data), Folder.at(data), layout)
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"data must be readable, got {without_secrets(data)!r}: {files.reason(error)}"
        ) from None


def _digits() -> Splits:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, as one of 10 classes."""
    from sklearn.datasets import load_digits  # here, as no other data needs scikit-learn's 100 MiB

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy((pixels * 255 / 16).round().astype(np.uint8)).view(-1, 1, 8, 8)
    everything = ArrayTable(images, labels.astype(np.int64), "digits")
    train, test = cut(everything, TEST_IMAGES, TEST_SEED, "test")
    # Mean and standard deviation over all pixels.
    return Splits("digits", tuple("0123456789"), train, None, test, 8, 1, (0.305,), (0.376,))


def _stored(name: str, there: Folder, layout: DataLayout) -> Splits:
    """A folder, a file or a pattern. Raises ValueError, OSError."""
    kind = files.kind(there)
    if kind == fs.FileType.File:
        above, file = files.parent(there)
        if not is_table(file):
            raise ValueError(f"data must be a folder or Parquet, got the file {name!r}")
        return parquet_files.read(name, above, [file], layout)
    if kind == fs.FileType.Directory:
        listing = files.below(there)
        table = next(filter(is_table, listing.files), None)
        if table is None:
            _check_no_columns(layout, name)
            return folder.read(name, there, listing, layout)
        if image := next(filter(folder.is_image, listing.files), None):
            raise ValueError(
                f"data must be images or Parquet, got {image} beside {table} in {there}"
            )
        return parquet_files.read_folder(name, there, listing, layout)
    if files.has_wildcards(there):
        root, paths = files.matching(there)
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
