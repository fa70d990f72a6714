"""How a user says what stored images are, where their names do not say it."""

from __future__ import annotations

from typing import Literal, cast, get_args

from pydantic import field_validator

from psvit_ray.arch.spec import Value
from psvit_ray.text.messages import quoted_list

Split = Literal["train", "val", "test"]


class DataLayout(Value):
    """Which folders or files are which split, and which columns hold images and labels."""

    splits: str = ""
    """Folders, or files of a table, that are each split, relative to the data, where their names do
    not say it: train=seg_train,test=seg_test. Wildcards, and several for one split, are allowed;
    train=. takes all there is as one split."""
    image_column: str = ""
    """Column of Parquet that holds the images; by default `image`, or the only one that can."""
    label_column: str = ""
    """Column of Parquet that holds the labels; by default `label`, or the only one that can."""

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
        """Each split that is said, and a pattern of its folders or files; "." is all there is."""
        pairs = [part.partition("=")[::2] for part in self.splits.split(",") if part]
        return [(cast(Split, split), pattern.strip("/") or ".") for split, pattern in pairs]

    def check_unused(self, name: str) -> None:
        """Raises ValueError where anything is said: data of this name knows its splits itself."""
        for field in DataLayout.model_fields:
            if value := getattr(self, field):
                raise ValueError(f"{field} must be empty with data {name!r}, got {value!r}")


AS_NAMED = DataLayout()
"""Names say it all."""
