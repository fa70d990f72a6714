"""Where images come from: a source knows its classes and gives three map-style data sets.

Shapes: B images, C channels, S the side of an image.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Protocol

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

Batch = tuple[Tensor, Tensor]

TEST_IMAGES = 360
TEST_SEED = 20210808  # The test images are these, whatever a run is configured to do.


class ImageDataset(Sized, Protocol):
    """Map-style. `__getitems__` is how torch's DataLoader asks for a whole batch at once."""

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Images (B, C, S, S) float, labels (B,) long."""
        ...


@dataclass(frozen=True)
class ArrayDataset:
    """Images that fit in memory."""

    images: Tensor  # (N, C, S, S) float
    labels: Tensor  # (N,) long

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(indices, dtype=torch.long)
        return self.images[chosen], self.labels[chosen]


@dataclass(frozen=True)
class Source:
    """Disjoint data sets: `train` to learn from, `holdout` to rank by, `test` to touch once."""

    name: str
    img_size: int
    in_chans: int
    class_names: tuple[str, ...]
    train: ImageDataset
    holdout: ImageDataset
    test: ImageDataset

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


def load(name: str, *, holdout: float, split_seed: int, fraction: float = 1.0) -> Source:
    """The source of this name, split by class in equal parts.

    `holdout` is the part cut from what is not test; `fraction` the part of the rest to train on.
    The test images depend on neither, nor on `split_seed`. Raises ValueError for an unknown name.
    """
    try:
        return {"digits": _digits}[name](holdout, split_seed, fraction)
    except KeyError:
        near = difflib.get_close_matches(name, ["digits"], n=1, cutoff=0.0)[0]
        raise ValueError(
            f"data must be a known source, got {name!r}; nearest is {near!r}"
        ) from None


def _digits(holdout: float, split_seed: int, fraction: float) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, as one of 10 classes."""
    pixels, classes = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    images = (images - 0.305) / 0.376  # mean and standard deviation over all pixels
    labels = torch.tensor(classes, dtype=torch.long)

    everything = torch.arange(len(labels)).numpy()
    rest, test = _cut(everything, classes, TEST_IMAGES, TEST_SEED)
    train, held = _cut(rest, classes, holdout, split_seed)
    if fraction < 1:
        _, train = _cut(train, classes, fraction, split_seed)
    parts = (ArrayDataset(images[part], labels[part]) for part in (train, held, test))
    return Source("digits", 8, 1, tuple("0123456789"), *parts)


def _cut(indices, classes, size, seed):  # type: ignore[no-untyped-def]  # NumPy in, NumPy out
    """Two parts with the classes in equal shares; the second has `size` (a count or a fraction)."""
    return train_test_split(indices, test_size=size, random_state=seed, stratify=classes[indices])
