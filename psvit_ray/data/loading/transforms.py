"""timm's transforms, from a Pillow image to the network's input.

Loader processes crop and distort images to uint8; the rest is done on the device for a whole batch,
which takes a quarter of the traffic. Shapes: B images, C channels, S the side of an image.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from timm.data.random_erasing import RandomErasing
from timm.data.transforms_factory import transforms_imagenet_eval, transforms_imagenet_train
from torch import Tensor
from torchvision import transforms

from psvit_ray.arch.spec import Finite, Pixels, Value
from psvit_ray.data.images.decode import Mode, convert, decode
from psvit_ray.data.images.options import BACKGROUND, Colour, Decoder
from psvit_ray.data.images.tone_range import Tones
from psvit_ray.data.loading.augmentation import Augmentation

ImageTransform = Callable[[Image.Image], Tensor]

MAX_ASPECT_RATIO = 16
"""Largest ratio of the sides of an image that is enlarged whole."""


class Preprocessing(Value):
    """Preprocessing of images in evaluation, in the words of timm's `pretrained_cfg`."""

    img_size: Pixels
    """Side of the network's input, in pixels."""
    in_chans: Literal[1, 3]
    """Channels of the network's input."""
    mean: tuple[float, ...]
    """Mean of each channel, from 0 to 1."""
    std: tuple[float, ...]
    """Standard deviation of each channel."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Interpolation of images that are resized."""
    crop_pct: Annotated[Finite, Field(gt=0, le=1)] = 0.875
    """Fraction of the shorter side that the center crop keeps."""
    tones: Tones = Tones()
    """Tone ranges of images of more than 8 bits."""
    background: Colour = BACKGROUND
    """Colour behind transparent images."""

    @property
    def mode(self) -> Mode:
        """Pillow's mode of the images that `transform` takes."""
        return "RGB" if self.in_chans == 3 else "L"

    def picture(self, content: bytes | Image.Image, decoder: Decoder = "pil") -> Image.Image:
        """An image file, or an image of any kind, as an image of `mode`. Raises BadImage if it
        cannot be used, and ValueError if the decoder is not installed."""
        if isinstance(content, bytes):
            return decode(content, self.mode, decoder, tones=self.tones, background=self.background)
        return convert(content, self.mode, tones=self.tones, background=self.background)

    def transform(self) -> ImageTransform:
        """timm's transform of evaluation: from an image of `mode` to uint8 (C, S, S)."""
        evaluation = transforms_imagenet_eval(
            self.img_size,
            crop_pct=self.crop_pct,
            interpolation=self.interpolation,
            use_prefetcher=True,
        )
        return transforms.Compose([CropEnds(self.img_size / self.crop_pct), *evaluation.transforms])

    def normalize(self, images: Tensor) -> Tensor:
        """Normalises uint8 images (B, C, S, S) to float32, on their device."""
        mean, std = _statistics(self.mean, self.std, images.device)
        return images.float().sub_(mean).div_(std)


@functools.cache
def _statistics(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Mean and deviation from 0 to 255, (C, 1, 1). Cached, as each copy to a GPU waits for it."""
    both = 255 * torch.tensor([mean, std], device=device)[..., None, None]
    return both[0], both[1]


class CropEnds:
    """Crops the ends of an image that is many times as long as wide, if its short side would be
    enlarged to the network's input, and so its long side without bound. timm's transforms then cut
    out the same, but for a random position along the long side."""

    def __init__(self, side: float, *, anywhere: bool = False) -> None:
        """`side` is the length to which a short side is enlarged; `anywhere` crops at a random
        position instead of the middle."""
        self._side, self._anywhere = side, anywhere

    def __call__(self, picture: Image.Image) -> Image.Image:
        short, long = sorted(picture.size)
        if short >= self._side or long <= MAX_ASPECT_RATIO * short:
            return picture
        kept = MAX_ASPECT_RATIO * short + long % 2  # odd if `long` is, so that the middle stays
        start = random.randint(0, long - kept) if self._anywhere else (long - kept) // 2
        wide = picture.width == long
        return picture.crop(
            (start, 0, start + kept, short) if wide else (0, start, short, start + kept)
        )


def train_transform(augmentation: Augmentation, preprocessing: Preprocessing) -> ImageTransform:
    """timm's transform of training: from an image to uint8 (C, S, S). It draws from the generators
    that `seed_generators` seeds.

    Raises ValueError for a policy `aa` that timm does not know.
    """
    mode = augmentation.train_crop_mode
    try:
        crop, distort, to_tensor = transforms_imagenet_train(
            preprocessing.img_size,
            scale=augmentation.scale,
            ratio=augmentation.ratio,
            train_crop_mode="rrc" if mode == "center" else mode,
            hflip=augmentation.hflip,
            vflip=augmentation.vflip,
            color_jitter=augmentation.color_jitter or None,  # type: ignore[arg-type]  # takes None, too
            auto_augment=augmentation.aa or None,
            interpolation=augmentation.train_interpolation,
            mean=preprocessing.mean,
            use_prefetcher=True,
            separate=True,
        )
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f"aa must be a policy of timm's, such as rand-m9-mstd0.5-inc1, got {augmentation.aa!r}"
        ) from error
    first = crop.transforms
    if mode == "center":
        *center, _ = preprocessing.transform().transforms  # type: ignore[attr-defined]
        first = [*center, *first[1:]]
    elif mode != "rrc":  # rrc crops before it resizes
        side = preprocessing.img_size / math.sqrt(augmentation.scale[0])
        first = [CropEnds(side, anywhere=mode == "rkrr"), *first]
    return transforms.Compose([*first, *distort.transforms, *to_tensor.transforms])


def finish_augmentation(augmentation: Augmentation, images: Tensor, seeds: Tensor) -> Tensor:
    """The part of augmentation that is done on the device, in place: random erasing and shifts of
    normalised images (B, C, S, S). Each image has a seed of its own, so that the result does not
    depend on the batch."""
    if augmentation.reprob:
        _erase(augmentation, images, seeds.tolist())
    return random_shift(images, seeds, augmentation.shift) if augmentation.shift else images


def _erase(augmentation: Augmentation, images: Tensor, seeds: list[int]) -> None:
    erase = RandomErasing(
        augmentation.reprob,
        mode=augmentation.remode,
        min_count=1,
        max_count=augmentation.recount,
        device=str(images.device),
    )
    for image, seed in zip(images, seeds, strict=True):
        if random.Random(seed).random() <= augmentation.reprob:  # the draw that `erase` begins with
            random.seed(seed)
            torch.manual_seed(seed)
            erase(image)


def seed_generators(seed: int) -> None:
    """Seeds all generators of the host that timm's and torchvision's transforms draw from."""
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)  # `torch.manual_seed` takes 0.1 ms more, for GPUs


def random_shift(images: Tensor, seeds: Tensor, max_shift: int) -> Tensor:
    """Images (B, C, S, S), each translated by up to `max_shift` pixels along both axes, with its
    edge repeated."""
    batch, _, height, width = images.shape
    shifts = 2 * max_shift + 1
    down, right = seeds % shifts - max_shift, seeds // shifts % shifts - max_shift
    rows = (torch.arange(height, device=images.device) + down[:, None]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + right[:, None]).clamp(0, width - 1)
    picked = torch.arange(batch, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[picked, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )
