"""How the pictures of a data set look, by a sample: size, colour, mean and deviation."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageStat

from psvit_ray.data.images import decode
from psvit_ray.data.images.bad_image import BadImage
from psvit_ray.data.images.options import BACKGROUND
from psvit_ray.data.images.tone_range import Tones
from psvit_ray.data.sources.survey import sampled_contents
from psvit_ray.data.tables import ImageTable

DECODED_SIDE = 256
"""Pixels that the sides of a JPEG keep at least, which is decoded at a fraction of its size."""
LEAST_STD = 0.01
"""Smallest deviation: that of pictures of a single colour is 0, by which nothing can be divided."""


@dataclass(frozen=True)
class Appearance:
    """The look of a sample of pictures."""

    pictures: int
    """Pictures that could be read."""
    short_side: int
    """Median of the shorter sides, in pixels."""
    in_chans: Literal[1, 3]
    """1 where all pictures are grey, however they are stored, else 3."""
    mean: tuple[float, ...]
    """Mean of each channel, from 0 to 1; each picture weighs the same."""
    std: tuple[float, ...]
    """Standard deviation of each channel over the pixels of all pictures."""


def appearance(
    table: ImageTable, name: str, tones: Tones, background: str = BACKGROUND
) -> Appearance:
    """The look of the pictures in a table of the data called `name`. The sample is the same each
    time. Raises ValueError if none of its pictures can be read, or if the storage fails."""
    sides: list[int] = []
    means: list[list[float]] = []
    squares: list[list[float]] = []
    in_colour = False
    for content in sampled_contents([table]):
        with contextlib.suppress(BadImage):
            image = decode.open_header(content) if isinstance(content, bytes) else content
            side = min(image.size)
            if isinstance(content, bytes):
                image.draft(None, (DECODED_SIDE, DECODED_SIDE))
            picture = decode.convert(image, "RGB", tones=tones, background=background)
            sides.append(side)
            statistics = ImageStat.Stat(picture)
            means.append([value / 255 for value in statistics.mean])
            squares.append(
                [value / picture.width / picture.height / 255**2 for value in statistics.sum2]
            )
            in_colour = in_colour or not _is_grey(picture)
    if not sides:
        raise ValueError(
            f"data must have pictures that can be read, got none in a sample of {name!r}"
        )
    mean, square = np.mean(means, axis=0), np.mean(squares, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, LEAST_STD**2))
    channels: Literal[1, 3] = 3 if in_colour else 1
    return Appearance(
        pictures=len(sides),
        short_side=int(np.median(sides)),
        in_chans=channels,
        mean=tuple(round(float(value), 3) for value in mean[:channels]),
        std=tuple(round(float(value), 3) for value in std[:channels]),
    )


def _is_grey(picture: Image.Image) -> bool:
    """Whether the channels of an RGB picture are equal."""
    red, green, blue = (channel.tobytes() for channel in picture.split())
    return red == green == blue
