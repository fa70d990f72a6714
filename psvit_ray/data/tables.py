"""Images and labels of one split, by number: what every kind of data is, seen from the loader."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
import pyarrow as pa
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


class StoredTable(ImageTable, Protocol):
    """A table of what is stored, before anything is cut: it can say what there is."""

    @property
    def grows(self) -> bool:
        """Whether images may be added to what the table is of, as to a folder. False for a data set
        that is what it is for ever."""
        ...

    def listing(self) -> pa.Table:
        """What is known of each image without reading it, as the function `listing` has it."""
        ...


def listing(
    places: pa.Array, *, sizes: pa.Array | None = None, contents: pa.Array | None = None
) -> pa.Table:
    """The images of a table, a row each: `place` as in `ImageTable.place`, in bytes, as a file name
    may be no text; `size` in bytes, and `content`, which is equal where the image is, or likely so.
    Both are null where they are not known."""
    unknown = pa.nulls(len(places))
    return pa.table(
        {
            "place": places.cast(pa.binary()),
            "size": (unknown if sizes is None else sizes).cast(pa.int64()),
            "content": (unknown if contents is None else contents).cast(pa.string()),
        }
    )


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
    grows = False

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

    def listing(self) -> pa.Table:
        pixels = self.images.numpy()
        return listing(
            pa.array([self.place(index)[1] for index in range(len(self))]),
            contents=pa.array([digest_of(pixels[index]) for index in range(len(self))]),
        )


def digest_of(pixels: np.ndarray) -> str:
    """A short name of these pixels."""
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=8).hexdigest()
