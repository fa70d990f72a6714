"""Images of more than 8 bits: the values that become black and white, for a whole data set.

A range is never taken from a single image of a data set, as its brightness is information.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Self

import numpy as np
from pydantic import model_validator

from psvit_ray.arch.spec import Value
from psvit_ray.data.images.options import ToneRange

DEPTHS = (8, 10, 12, 14, 16)
"""Bit depths of scanners, cameras and microscopes, which are stored in 16 or 32 bits."""
FLOAT_RANGES: tuple[ToneRange, ...] = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0))
MIN_TONES = 16
"""Fewest of the 256 tones that images must have in a range of floats for it to be taken."""
STRIP_PIXELS = 1 << 20
"""Pixels that are converted at a time, which bounds the memory beside a large image."""


class Tones(Value):
    """The tone ranges of a data set's images of more than 8 bits."""

    integers: ToneRange = (0, 65535)
    """Range of images of 16 or 32 bits."""
    floats: ToneRange = (0, 1)
    """Range of images of floating-point numbers."""

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        for low, high in (self.integers, self.floats):
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"tones must be a finite range, low below high, got {low}:{high}")
        return self

    def range_of(self, values: np.ndarray) -> ToneRange:
        """The range for the type of `values`."""
        return self.floats if values.dtype.kind == "f" else self.integers


DEFAULT_TONES = Tones()


def extremes(values: np.ndarray) -> ToneRange | None:
    """The lowest and the highest finite value of an image (H, W); None if no value is finite."""
    ends: list[ToneRange] = []
    for rows in _strips(values):
        part = values[rows]
        if part.dtype.kind == "f" and not (finite := np.isfinite(part)).all():
            part = part[finite]
        if part.size:
            ends.append((part.min().item(), part.max().item()))
    return (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None


def usual_range(low: float, high: float, *, floats: bool) -> ToneRange | None:
    """The range of images with values from `low` to `high`: for integers that of the smallest usual
    bit depth that holds them, for floats one of FLOAT_RANGES; None if none fits."""
    if not floats:
        fitting = (bits for bits in DEPTHS if low >= 0 and high < 2**bits)
        return next(((0, 2**bits - 1) for bits in fitting), None)
    for limits in FLOAT_RANGES:
        widest = max(abs(low), abs(high)) / max(map(abs, limits))
        if covers(limits, low, high, floats=True) and (
            limits != FLOAT_RANGES[-1] or widest >= MIN_TONES / 256
        ):
            return limits
    return None


def own_range(values: np.ndarray) -> ToneRange:
    """The range of a single image: a usual one, else from its lowest to its highest value."""
    low, high = extremes(values) or (0, 1)
    usual = usual_range(low, high, floats=values.dtype.kind == "f")
    return usual or (low, high if high > low else low + 1)


def covers(limits: ToneRange, low: float, high: float, *, floats: bool) -> bool:
    """Whether values from `low` to `high` are in a range. Floats may be half a tone outside, which
    rounding removes."""
    slack = (limits[1] - limits[0]) / 510 if floats else 0
    return limits[0] - slack <= low and high <= limits[1] + slack


def in_8_bits(values: np.ndarray, limits: ToneRange) -> np.ndarray:
    """An image (H, W) as uint8. Integers are divided into 256 equal steps, which for 16 bits is the
    high byte, as Pillow reads 16-bit colour; floats are scaled and rounded, and NaN is black."""
    tones = np.empty(values.shape, dtype=np.uint8)
    low, high = limits
    steps = values.dtype.kind != "f" and low == int(low) and high == int(high)
    for rows in _strips(values):
        part = values[rows]
        if steps and limits == (0, 65535):
            tones[rows] = part.clip(0, 65535) >> 8
        elif steps:
            above = part.clip(low, high).astype(np.int64) - int(low)
            tones[rows] = above * 256 // (int(high) - int(low) + 1)
        else:
            scaled = np.nan_to_num((part - low) * (255 / (high - low)), nan=0.0)
            tones[rows] = scaled.clip(0, 255).round()
    return tones


def _strips(values: np.ndarray) -> Iterator[slice]:
    rows = max(1, STRIP_PIXELS // max(1, values.shape[1]))
    return (slice(start, start + rows) for start in range(0, len(values), rows))
