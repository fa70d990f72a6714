"""Options of decoding images, as a user's configuration has them."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator

from psvit_ray.text.messages import nearest

Decoder = Literal["pil", "torchcodec"]
ToneRange = tuple[float, float]
"""Values of an image that become black and white."""

BACKGROUND = "white"
"""Default colour behind transparent images: it shows black glyphs, the commonest of these."""


def _check_colour(name: str) -> str:
    if name == BACKGROUND:
        return name
    from PIL import ImageColor  # here, as every command reads a configuration and few read pictures

    try:
        ImageColor.getrgb(name)
    except ValueError:
        near = nearest(name, ImageColor.colormap)
        raise ValueError(
            f"background must be a colour, by name or as #rrggbb, got {name!r}; nearest is {near!r}"
        ) from None
    return name


Colour = Annotated[str, AfterValidator(_check_colour)]
"""Name of a colour that Pillow knows, or #rrggbb."""


def parse_tone_range(tone_range: str) -> ToneRange:
    """The range that the text LOW:HIGH describes. Raises ValueError for any other text."""
    low, _, high = tone_range.partition(":")
    try:
        given = float(low), float(high)
    except ValueError:
        given = math.nan, math.nan
    if not (given[0] < given[1] and all(map(math.isfinite, given))):
        raise ValueError(
            f"tone_range must be LOW:HIGH, two numbers of which the first is lower, such as "
            f"0:4095, got {tone_range!r}"
        )
    return given


def format_tone_range(limits: ToneRange) -> str:
    """The text LOW:HIGH of a range, as `parse_tone_range` takes it."""
    return ":".join(
        str(int(number)) if number == int(number) else f"{number:g}" for number in limits
    )
