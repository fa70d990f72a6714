"""Which images are trained on, ranked by, and touched once.

A kind of data gives the splits it has; what is missing is cut from the training images here, the
same way for every kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import train_test_split

from psvit_ray.data.tables import ImageTable


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


def cut(table: ImageTable, size: float, seed: int, field: str) -> tuple[ImageTable, ImageTable]:
    """Two parts with the classes in equal shares; the second has `size`, a count or a fraction.

    A class with a single image stays whole in the first. Raises ValueError, naming `field`, where
    a part would have fewer images than there are classes.
    """
    everything = np.arange(len(table))
    single = np.bincount(table.labels)[table.labels] == 1
    several = everything[~single]
    try:
        first, second = train_test_split(
            several, test_size=size, random_state=seed, stratify=table.labels[several]
        )
    except ValueError:
        raise ValueError(
            f"{field} must leave at least one image of each class on either side, got {size} of "
            f"{len(several)} images of {len(np.unique(table.labels[several]))} classes"
        ) from None
    return table.take(np.concatenate([first, everything[single]])), table.take(second)
