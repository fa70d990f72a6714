"""The layout of stored data: its splits and columns, where their names do not tell."""

from __future__ import annotations

from typing import Literal, cast, get_args

from pydantic import field_validator

from psvit_ray.arch.spec import Value
from psvit_ray.text.messages import quoted_list

Split = Literal["train", "val", "test"]


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
