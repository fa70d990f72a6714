"""Data by the name that a user gives it, as it is stored or split for a run."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import fs

from psvit_ray.arch.spec import Value
from psvit_ray.data.images.options import parse_tone_range
from psvit_ray.data.images.tone_range import DEFAULT_TONES, Tones
from psvit_ray.data.sources import image_folder, parquet_files
from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.sources.parquet_table import is_table
from psvit_ray.data.sources.survey import surveyed
from psvit_ray.data.splits.layout import AS_NAMED, DataLayout, DataSettings
from psvit_ray.data.splits.split_file import SplitFile, read_split_file
from psvit_ray.data.splits.splits import TEST_SEED, cut
from psvit_ray.data.tables import ArrayTable
from psvit_ray.storage import files
from psvit_ray.storage.folder import Folder
from psvit_ray.text.secrets import without_secrets

TEST_IMAGES = 360
TORCHVISION = ("torchvision", "torchvision-download")


def load_data(
    settings: DataSettings, known: SplitFile | None = None, tones: Tones | None = None
) -> Source:
    """Reads data (see `read_data`), and splits it by the settings or by the split file `known`. Its
    tone ranges are `tones`, or else those of a sample of its images (see `survey`), unless the
    settings give one.

    Raises ValueError for data that cannot be used.
    """
    stored = read_data(settings.data, settings)
    _check_classes(stored)
    notes: list[str] = []
    if tones is None:
        tones, notes = surveyed(
            stored.name,
            stored.train,
            {split: table for split, table in stored.tables.items() if split != "train"},
            parse_tone_range(settings.tone_range) if settings.tone_range else None,
            settings.background,
        )
    source = stored.divided_as(known) if known else stored.divided(settings)
    return replace(source, tones=tones, notes=(*source.notes, *notes))


class DriverData(Value):
    """What the driver knows of the data, by which workers open the same. Crosses process boundaries
    as primitives."""

    digest: str
    """Digest of the images that the run began with."""
    splits: str
    """Folder of the file that lists these images and their splits."""
    by_file: bool = False
    """Whether workers read the split from that file, and do not compute it from the settings."""
    tones: Tones = DEFAULT_TONES
    """Tone ranges, from the driver's sample of the images."""

    @classmethod
    def of(cls, source: Source, folder: Folder) -> DriverData:
        """What a driver knows that has opened `source` and keeps its list of images in `folder`."""
        return cls(
            digest=source.digest, splits=folder.uri, by_file=source.by_file, tones=source.tones
        )

    def split_file(self) -> SplitFile | None:
        """The list of the images that the run began with; None where an older version noted none.
        Raises ValueError if it was changed, and OSError."""
        return read_split_file(Folder(self.splits))

    def open(self, settings: DataSettings) -> Source:
        """The data, listed anew: each process checks that it sees what the driver saw.

        Raises ValueError where it cannot be used, DataChanged where its images are not those that
        the run began with.
        """
        source = load_data(settings, self.split_file() if self.by_file else None, self.tones)
        if source.digest != self.digest:
            source.check_unchanged(self.digest, self.split_file())
        return source


def _check_classes(source: Source) -> None:
    """Raises ValueError if the training images are of fewer than two classes."""
    classes = np.unique(source.train.labels)
    if len(classes) < 2:
        got = ", ".join(repr(source.class_names[number]) for number in classes)
        raise ValueError(f"data must have at least 2 classes, got {got}")


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


def read_data(data: str, layout: DataLayout = AS_NAMED) -> Source:
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


def _digits() -> Source:
    """scikit-learn's 1,797 handwritten digits: 8x8 pixels, grey, 10 classes."""
    # Here, as no other data needs the 100 MiB of scikit-learn, nor torch to be listed.
    import torch
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy((pixels * 255 / 16).round().astype(np.uint8)).view(-1, 1, 8, 8)
    everything = ArrayTable(images, labels.astype(np.int64), "digits")
    train, test = map(everything.take, cut(everything, TEST_IMAGES, TEST_SEED, "test"))
    # Mean and standard deviation over all pixels.
    none = train.take(np.arange(0))
    return Source("digits", tuple("0123456789"), train, none, test, 8, 1, (0.305,), (0.376,))


def _stored(name: str, there: Folder, layout: DataLayout) -> Source:
    """The data of a folder, a file or a pattern. Raises ValueError and OSError."""
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
