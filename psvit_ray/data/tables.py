"""Images and labels of one split, by number: what every kind of data is, seen from the loader."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # a process that only reads files needs no torch, which takes half a gigabyte
    from torch import Tensor


class ImageTable(Protocol):
    """Goes to the processes of a loader: it pickles small, and opens files where it is read."""

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64."""
        ...

    @property
    def blocks(self) -> np.ndarray | None:
        """(N,) int64: which block of storage holds each image; images of one block are read
        together. None where any image reads as fast as any other."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | Image.Image:
        """An image as it is stored, or as a picture where it is stored without a format.

        Raises BadImage where it cannot be used, OSError where storage fails.
        """
        ...

    def place(self, index: int) -> tuple[str, str]:
        """The source of an image, without secrets, and its path or row there."""
        ...

    def take(self, indices: np.ndarray) -> Self:
        """The table of these images, in this order."""
        ...


@dataclass(frozen=True, eq=False)
class ArrayTable:
    """Images of one size in memory, which a loader takes as they are."""

    images: Tensor
    """(N, C, S, S) uint8."""
    labels: np.ndarray
    """(N,) int64."""
    name: str = "array"
    rows: np.ndarray | None = None
    """(N,) int64: which row of `name` each image is; by default its number in this table."""

    blocks = None

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        pixels = self.images[index].permute(1, 2, 0).numpy()  # (S, S, C)
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    def place(self, index: int) -> tuple[str, str]:
        return self.name, str(index if self.rows is None else self.rows[index])

    def take(self, indices: np.ndarray) -> Self:
        rows = indices if self.rows is None else self.rows[indices]
        return replace(self, images=self.images[indices], labels=self.labels[indices], rows=rows)
