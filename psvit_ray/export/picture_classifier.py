"""Labels and probabilities of pictures of any kind, by an exported model."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image

from psvit_ray.data.images.bad_image import BadImage
from psvit_ray.export.inference import top_classes
from psvit_ray.export.model_folder import ExportedModel

COLUMN = "image"
"""Name of the column with the pictures."""
BATCH_SIZE = 64
KINDS = "the bytes of a file, its base64, a path, an image of Pillow or uint8 pixels (H, W, 3)"


class PictureClassifier:
    """Labels and probabilities of pictures of any size, by an exported model."""

    def __init__(self, exported: ExportedModel, *, read_files: bool = True) -> None:
        """`read_files` is whether a picture may be given as the path of a file."""
        self._exported = exported
        self._read_files = read_files

    def predict(
        self, model_input: Any, *, logits: bool = False
    ) -> pd.DataFrame | list[dict[str, Any]]:
        """The label of each picture, the probabilities of all classes by name, and with `logits`
        their logits.

        `model_input` is a table with a column `image`, or a list of pictures, or one picture: each
        the bytes of a file, their base64, a path, an image of Pillow, or uint8 pixels (H, W, 3) or
        (H, W). A table is answered with a table. Raises ValueError for what is not a picture.
        """
        names = self._exported.class_names
        rows: list[dict[str, Any]] = []
        for batch in self._logits(list(pictures_of(model_input))):
            top = top_classes(batch, len(names))
            for row, classes, probabilities in zip(
                batch.tolist(), top.classes.tolist(), top.probabilities.tolist(), strict=True
            ):
                by_class = dict(zip(classes, probabilities, strict=True))
                answer: dict[str, Any] = {
                    "label": names[classes[0]],
                    "probabilities": {name: by_class[i] for i, name in enumerate(names)},
                }
                if logits:
                    answer["logits"] = dict(zip(names, row, strict=True))
                rows.append(answer)
        if isinstance(model_input, pd.DataFrame):
            return pd.DataFrame(rows, index=model_input.index)
        return rows

    def _logits(self, pictures: Sequence[Any]) -> Iterator[torch.Tensor]:
        transform, model = self._exported.transform, self._exported.model
        for first in range(0, len(pictures), BATCH_SIZE):
            images = []
            for i, picture in enumerate(pictures[first : first + BATCH_SIZE], start=first + 1):
                try:
                    images.append(transform(self._open(picture)))
                except (BadImage, OSError) as error:
                    raise ValueError(f"image {i} cannot be read: {error}") from None
                except TypeError as error:
                    raise ValueError(f"image {i} must be {KINDS}, got {error}") from None
            with torch.inference_mode():
                yield model(torch.stack(images)).float()

    def _open(self, picture: Any) -> Image.Image:
        """A picture of any kind, decoded. Raises BadImage and OSError for what cannot be read, and
        TypeError that says what came for what is no picture."""
        if isinstance(picture, Image.Image):
            return picture
        if isinstance(picture, np.ndarray | list):
            return _from_pixels(np.asarray(picture))
        if isinstance(picture, str):
            try:
                picture = base64.b64decode(picture.rpartition(";base64,")[2], validate=True)
            except (binascii.Error, ValueError):  # the latter for other characters than ASCII
                picture = Path(picture)
        if isinstance(picture, Path):
            if not self._read_files:
                raise TypeError("a text that is not base64")
            if not picture.is_file():
                raise BadImage(f"there is no file {str(picture)[:80]!r}")
            picture = picture.read_bytes()
        if not isinstance(picture, bytes | bytearray | memoryview):
            raise TypeError(type(picture).__name__)
        return self._exported.preprocessing.picture(bytes(picture))


def pictures_of(model_input: Any) -> Iterator[Any]:
    """The single pictures of a table, a list, or an array."""
    if isinstance(model_input, pd.DataFrame | dict):
        if list(model_input) != [COLUMN]:
            raise ValueError(f"images must be in one column {COLUMN!r}, got {list(model_input)}")
        yield from model_input[COLUMN]
    elif isinstance(model_input, list | tuple | pd.Series) or (
        isinstance(model_input, np.ndarray)
        and (model_input.dtype == object or model_input.ndim > 3)
    ):
        yield from model_input
    else:
        yield model_input


def _from_pixels(pixels: np.ndarray[Any, Any]) -> Image.Image:
    """The image of pixels from 0 to 255, (H, W) or (H, W, 1, 3 or 4)."""
    whole = np.issubdtype(pixels.dtype, np.integer) and pixels.size > 0
    fits = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4))
    if not whole or not fits or pixels.min() < 0 or pixels.max() > 255:
        raise TypeError(f"an array of {pixels.dtype} {pixels.shape}")
    grey = pixels.shape[2:] == (1,)
    return Image.fromarray((pixels[..., 0] if grey else pixels).astype(np.uint8))
