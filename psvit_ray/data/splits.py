"""Which images are trained on, ranked by, and touched once.

Every kind of data gives the splits that it stores as `Splits`; what is missing is cut from the
training images, the same way for every kind.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np

from psvit_ray.data.tables import ImageTable

SPLIT_OF = {
    "train": "train",
    "val": "val",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "test": "test",
}
"""The words by which files and folders name their split."""

Table = TypeVar("Table", bound=ImageTable)


@dataclass(frozen=True)
class Splits:
    """Data as it is stored, nothing cut. Fields as in `Source`."""

    name: str
    class_names: tuple[str, ...]
    train: ImageTable
    val: ImageTable | None = None
    test: ImageTable | None = None
    img_size: int | None = None
    in_chans: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        class_names: Mapping[str, tuple[str, ...]],
        tables: Mapping[str, ImageTable],
        notes: Collection[str],
    ) -> Splits:
        """Of tables by split, with the classes that each names. A split alone is the whole of the
        data, whatever it is called.

        Raises ValueError where a split or a class is missing, or there is only one class.
        """
        for split, table in tables.items():
            if not len(table):
                raise ValueError(f"data must have images in every split, got none in {split}")
        if len(tables) == 1:
            (only,) = tables
            notes = [
                *notes,
                *([f"the only split, {only}, is all of it"] if only != "train" else []),
            ]
            tables = {"train": tables[only]}
        elif "train" not in tables:
            raise ValueError(f"data must have a split train, got only {', '.join(tables)}")
        first, *others = class_names
        for other in others:
            _check_same(first, class_names[first], other, class_names[other])
        if len(class_names[first]) < 2:
            got = ", ".join(map(repr, class_names[first])) or "none"
            raise ValueError(f"data must have at least 2 classes, got {got}")
        val, test = tables.get("val"), tables.get("test")
        return cls(name, class_names[first], tables["train"], val, test, notes=tuple(notes))


def _check_same(
    first: str, names: tuple[str, ...], other: str, other_names: tuple[str, ...]
) -> None:
    if names == other_names:
        return
    only = {
        first: [name for name in names if name not in other_names],
        other: [name for name in other_names if name not in names],
    }
    got = "; ".join(f"only in {split}: {listed(found)}" for split, found in only.items() if found)
    got = got or f"another order in {other}"
    raise ValueError(f"data must have the same classes in every split, got {got}")


def listed(names: Collection[str], most: int = 5) -> str:
    shown = ", ".join(map(repr, islice(names, most)))
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def cut(table: Table, size: float, seed: int, field: str) -> tuple[Table, Table]:
    """Two parts with the classes in equal shares, in the order of the table, which is that of
    storage; the second has `size`, a count or a fraction.

    A class with a single image stays whole in the first. Raises ValueError, naming `field`, where
    a part would have fewer images than there are classes.
    """
    # Here, as reading alone needs no scikit-learn, which takes 100 MiB.
    from sklearn.model_selection import train_test_split

    everything = np.arange(len(table))
    single = np.bincount(table.labels)[table.labels] == 1
    several = everything[~single]
    classes = len(np.unique(table.labels[several]))
    try:
        first, second = train_test_split(
            several, test_size=size, random_state=seed, stratify=table.labels[several]
        )
    except ValueError:
        raise ValueError(
            f"{field} must leave at least an image for each class on either side, got {size:g} of "
            f"{len(several):,} images of {classes:,} classes"
        ) from None
    first = np.concatenate([first, everything[single]])
    return table.take(np.sort(first)), table.take(np.sort(second))
