"""From the bytes of a file to a picture with one or three channels of 8 bits."""

from __future__ import annotations

import io
from typing import Literal

from PIL import Image, ImageOps

Mode = Literal["RGB", "L"]
Decoder = Literal["pil", "torchcodec"]


class BadImage(ValueError):
    """An image that cannot be used; the message is the reason."""


def decode(content: bytes, mode: Mode, decoder: Decoder = "pil") -> Image.Image:
    """A picture of this mode. Raises BadImage."""
    if not content:
        raise BadImage("empty")
    try:
        return converted(Image.open(io.BytesIO(content)), mode)
    except Exception as error:
        raise BadImage(str(error)) from None


def converted(image: Image.Image, mode: Mode) -> Image.Image:
    """A picture of this mode, upright. Raises BadImage."""
    return ImageOps.exif_transpose(image).convert(mode)
