"""Where images come from: a source knows its classes and gives tables of images to train on, to
rank by, and to touch once."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits

from psvit_ray.data.splits import Splits, cut
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
    data: str, *, holdout: float, split_seed: int, fraction: float = 1.0, val_as_test: bool = False
) -> Source:
    """The source that `data` names, split by class in equal parts.

    `holdout` is the part cut from the training images where there is no validation split;
    `fraction` the part of the rest to train on. The test images depend on neither, nor on
    `split_seed`. Raises ValueError for data that cannot be used.
    """
    splits = read(data)
    train, held = cut(splits.train, holdout, split_seed, "holdout")
    if fraction < 1:
        _, train = cut(train, fraction, split_seed, "data_fraction")
    return Source(
        splits.name,
        splits.class_names,
        train,
        held,
        splits.test,
        splits.img_size,
        splits.in_chans,
        splits.mean,
        splits.std,
        splits.notes,
    )


def read(data: str) -> Splits:
    """The splits that are stored, nothing cut. Raises ValueError for data that cannot be used."""
    if data == "digits":
        return _digits()
    near = difflib.get_close_matches(data, ["digits"], n=1, cutoff=0.0)[0]
    raise ValueError(f"data must be a known source, got {data!r}; nearest is {near!r}")


def _digits() -> Splits:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, as one of 10 classes."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy((pixels * 255 / 16).round().astype(np.uint8)).view(-1, 1, 8, 8)
    everything = ArrayTable(images, labels.astype(np.int64), "digits")
    train, test = cut(everything, TEST_IMAGES, TEST_SEED, "test")
    # Mean and standard deviation over all pixels.
    return Splits("digits", tuple("0123456789"), train, None, test, 8, 1, (0.305,), (0.376,))
