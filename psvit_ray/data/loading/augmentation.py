"""How training images are varied, as configuration: `transforms` does it."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro
from pydantic import Field

from psvit_ray.arch.spec import MAX_IMG_SIZE, Finite, Value

Probability = Annotated[Finite, Field(ge=0, le=1)]
Aspect = Annotated[Finite, Field(ge=0.01, le=100)]


class Augmentation(Value):
    """How training images are varied, in the words of timm's `train.py`."""

    train_crop_mode: Literal["center", "rrc", "rkrc", "rkrr"] = "center"
    """How a training image is cut: as in evaluation, or at random (timm's modes)."""
    scale: Annotated[tuple[Probability, Probability], tyro.conf.Suppress] = (0.08, 1.0)
    """Part of the image's area that a random crop takes, from and to."""
    ratio: Annotated[tuple[Aspect, Aspect], tyro.conf.Suppress] = (3 / 4, 4 / 3)
    """Its aspect ratio, from and to."""
    train_interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    """Of random crops."""
    hflip: Probability = 0.0
    """How many training images are mirrored left to right."""
    vflip: Probability = 0.0
    """How many are mirrored top to bottom."""
    color_jitter: Annotated[Finite, Field(ge=0, le=100)] = 0.0
    """Change of brightness, contrast and saturation; of the policies of `aa` only 3a adds it."""
    aa: str = ""
    """timm's AutoAugment policy, such as rand-m9-mstd0.5-inc1 or 3a."""
    reprob: Probability = 0.0
    """How many training images have a part erased."""
    remode: Literal["const", "rand", "pixel"] = "pixel"
    """With what: zeros, one random colour, or random pixels."""
    recount: Annotated[int, Field(ge=1, le=100)] = 1
    """Most parts erased in one image."""
    shift: Annotated[int, Field(ge=0, le=MAX_IMG_SIZE)] = 0
    """Each training image is moved by up to this many pixels along each axis."""
