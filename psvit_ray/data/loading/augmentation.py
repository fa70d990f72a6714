"""The configuration of augmentation, which `transforms` carries out."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro
from pydantic import Field

from psvit_ray.arch.spec import MAX_IMG_SIZE, Finite, Value

Probability = Annotated[Finite, Field(ge=0, le=1)]
Aspect = Annotated[Finite, Field(ge=0.01, le=100)]


class Augmentation(Value):
    """Augmentation of training images, in the words of timm's `train.py`."""

    train_crop_mode: Literal["center", "rrc", "rkrc", "rkrr"] = "center"
    """Crop of training images: the center crop of evaluation, or one of timm's random crops (rrc,
    rkrc, rkrr)."""
    scale: Annotated[tuple[Probability, Probability], tyro.conf.Suppress] = (0.08, 1.0)
    """Smallest and largest fraction of the image's area that a random crop takes."""
    ratio: Annotated[tuple[Aspect, Aspect], tyro.conf.Suppress] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio of a random crop."""
    train_interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    """Interpolation of random crops."""
    hflip: Probability = 0.0
    """Probability of a horizontal flip."""
    vflip: Probability = 0.0
    """Probability of a vertical flip."""
    color_jitter: Annotated[Finite, Field(ge=0, le=100)] = 0.0
    """Strength of colour jitter (brightness, contrast and saturation); with a policy in `aa` only
    3a applies it."""
    aa: str = ""
    """AutoAugment policy of timm, such as rand-m9-mstd0.5-inc1 or 3a; empty applies none."""
    reprob: Probability = 0.0
    """Probability of random erasing."""
    remode: Literal["const", "rand", "pixel"] = "pixel"
    """Filling of erased rectangles: zeros, one random colour, or random pixels."""
    recount: Annotated[int, Field(ge=1, le=100)] = 1
    """Most rectangles erased in one image."""
    shift: Annotated[int, Field(ge=0, le=MAX_IMG_SIZE)] = 0
    """Largest random translation along each axis, in pixels."""
