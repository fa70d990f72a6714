"""Tables: the images and labels of a split by position, whatever kind of data it is."""

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
    """Images and labels by position. A table is pickled to loader processes: it is small, and opens
    files where it is read."""

    @property
    def labels(self) -> np.ndarray:
        """Class of each image, (N,) int64."""
        ...

    @property
    def blocks(self) -> np.ndarray | None:
        """Block of storage of each image, (N,) int64; images of one block are read together. None
        if images can be read in any order."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes | Image.Image:
        """Bytes of an image file, or an image that is stored without a format.

        Raises BadImage if it cannot be used, and OSError if the storage fails.
        """
        ...

    def place(self, index: int) -> tuple[str, str]:
        """Source of an image, without secrets, and its path or row in it."""
        ...

    def take(self, indices: np.ndarray) -> Self:
        """A table of the images at these positions, in this order."""
        ...


class StoredTable(ImageTable, Protocol):
    """A table of stored data, from which splits are cut."""

    @property
    def grows(self) -> bool:
        """Whether images may be added to the data, as to a folder; False for a fixed data set."""
        ...

    def listing(self) -> pa.Table:
        """What is known of each image without reading it; see the function `listing`."""
        ...


def listing(
    places: pa.Array, *, sizes: pa.Array | None = None, contents: pa.Array | None = None
) -> pa.Table:
    """A table with a row for each image: `place` is the path or row of `ImageTable.place`, in
    bytes, as file names need not be UTF-8; `size` in bytes; `content` is equal where the content of
    images is, or probably so. The last two are null where they are not known."""
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
    """Images of one size in memory, which the loader does not transform."""

    images: Tensor
    """Images (N, C, S, S), uint8."""
    labels: np.ndarray
    """Class of each image, (N,) int64."""
    name: str = "array"
    """Name of the data."""
    rows: np.ndarray | None = None
    """Row of each image in the data, (N,) int64; by default its position in this table."""

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
    """Hash of an array of pixels."""
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=8).hexdigest()
