"""Settings of the data of a run: where it is, its splits and columns where their names do not tell,
and how missing splits are cut."""

from __future__ import annotations

from typing import Annotated, Literal, cast, get_args

from pydantic import Field, field_validator

from psvit_ray.arch.spec import Finite, Value
from psvit_ray.data.images.options import (
    BACKGROUND,
    Colour,
    format_tone_range,
    parse_tone_range,
)
from psvit_ray.text.messages import quoted_list

Split = Literal["train", "val", "test"]
PositiveFraction = Annotated[Finite, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""A seed that every generator takes (torch's has 64 bits)."""


class DataLayout(Value):
    """The folders or files of each split, and the columns of images and labels."""

    splits: str = ""
    """Folders or Parquet files of each split, relative to the data, where their names do not tell:
    train=seg_train,test=seg_test. Wildcards, and several for one split, are allowed; train=. takes
    all images as one split."""
    image_column: str = ""
    """Column of Parquet that holds the images; by default `image`, or the only column that can."""
    label_column: str = ""
    """Column of Parquet that holds the labels; by default `label`, or the only column that can."""

    @field_validator("splits")
    @classmethod
    def _check_splits(cls, splits: str) -> str:
        known = get_args(Split)
        for part in splits.split(",") if splits else ():
            split, _, pattern = part.partition("=")
            if split not in known or not pattern:
                raise ValueError(
                    f"splits must be SPLIT=FOLDER,SPLIT=FOLDER with {quoted_list(known)} as "
                    "splits, got "
                    f"{part!r}"
                )
        return splits

    @property
    def patterns(self) -> list[tuple[Split, str]]:
        """Pairs of a split and a pattern of its folders or files; "." stands for all."""
        pairs = [part.partition("=")[::2] for part in self.splits.split(",") if part]
        return [(cast(Split, split), pattern.strip("/") or ".") for split, pattern in pairs]

    def check_unused(self, name: str) -> None:
        """Raises ValueError if a field is given: the data `name` has a layout of its own."""
        for field in DataLayout.model_fields:
            if value := getattr(self, field):
                raise ValueError(f"{field} must be empty with data {name!r}, got {value!r}")


AS_NAMED = DataLayout()
"""Layout that the names of folders, files and columns tell."""


class DataSettings(DataLayout):
    """The data of a run, and how it is split."""

    data: str = "digits"
    """Images to train on: digits, a folder that holds a folder for each class, Parquet (a file,
    folder or pattern), or torchvision:NAME:ROOT."""
    holdout: Annotated[Finite, Field(gt=0, lt=1)] = 0.2
    """Fraction of the training images to hold out for validation where the data has no validation
    split. Searches rank configurations on the hold-out."""
    test_fraction: Annotated[Finite, Field(ge=0, lt=1)] = 0.0
    """Fraction of the training images to keep for the final score where the data has no test split;
    0 keeps none. Which they are depends on no other setting."""
    val_as_test: bool = False
    """Use the data's validation split as test images, as is usual with ImageNet, and hold out
    training images for validation."""
    data_fraction: PositiveFraction = 1.0
    """Fraction of the training images to train on, after the hold-out was cut; below 1 it gives a
    cheaper proxy of the training."""
    split_seed: Seed = 0
    """Seed for drawing the hold-out and `data_fraction`."""
    tone_range: str = ""
    """Values that become black and white in images of more than 8 bits, as LOW:HIGH, such as
    0:4095; by default they are taken from a sample of the training images (8 to 16 bits; for floats
    0:1, -1:1 or 0:255). Images with values outside are not used."""
    background: Colour = BACKGROUND
    """Colour behind transparent images, by name or as #rrggbb."""

    @field_validator("tone_range")
    @classmethod
    def _check_tone_range(cls, text: str) -> str:
        return format_tone_range(parse_tone_range(text)) if text else text
