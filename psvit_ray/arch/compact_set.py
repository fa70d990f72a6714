"""The compact set for images of any kind: a search space around a DeiT, scaled to the pictures.

The paper searches where to pool and which layers share within a compact set that is not public.
This is our reconstruction of one:

- Patches leave a token grid near DeiT's 14 x 14; of 16 x 16, patches of twice the size are searched
  too.
- Two or three stages, of 2 to 6, 2 to 8 and 2 to 4 layers: the depths say where tokens are pooled.
- Widths are DeiT's times 2/3 to 4/3 in the first stage, 1 to 2 in the second and 4/3 to 3 in the
  third; heads have 32 or 64 channels, and MLPs 3 or 4 times the width.
- Pooling is 1d or 2d, by a convolution, maximum or mean; layers of a stage share in any way.
- What is searched has at most DeiT's multiply-accumulates and twice its parameters: pooled layers
  are wide, and few tokens pay for it.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from psvit_ray.arch.cost import Limits, cost
from psvit_ray.arch.presets import PRESETS
from psvit_ray.arch.space import SearchSpace, StageChoices
from psvit_ray.arch.spec import ArchSpec, StageSpec, parse_pattern

DeitSize = Literal["tiny", "small", "base"]
"""Sizes of DeiT: widths 192, 384 and 768, each with 12 layers."""

GRID = 14
"""Patches along a side of DeiT's images: 224 pixels in patches of 16."""
COARSE_GRID = 8
"""Patches along a side for patches of twice the size: coarser grids leave little to pool."""
SMALLEST_GRID, LARGEST_GRID = 7, 28
"""Bounds of a grid: 7 x 7 can be pooled twice, and 28 x 28 has four times DeiT's tokens."""
DEPTHS = ((2, 3, 4, 6), (2, 4, 6, 8), (2, 3, 4))
WIDTHS = ((2 / 3, 1, 4 / 3), (1, 4 / 3, 2), (4 / 3, 2, 3))
"""Widths of each stage, as multiples of DeiT's."""
USUAL_PATTERN, USUAL_WIDTHS = "2-2|2-2-2|2", (1, 4 / 3, 2)
MAX_PARAMS_RATIO = 2


class Pictures(NamedTuple):
    """What an architecture must know of its images."""

    img_size: int
    """Side of the square images, in pixels."""
    in_chans: int
    """Channels of an image."""
    num_classes: int
    """Classes that the images have."""


def patch_sizes(img_size: int) -> tuple[int, ...]:
    """Patch sizes to search: that whose grid is nearest to DeiT's and, where this still leaves a
    grid of 8 x 8, its double.

    Raises ValueError, with the nearest sizes that work, if no patch leaves a grid within bounds.
    """
    patches = _patches_in_bounds(img_size)
    if not patches:
        sizes = range(SMALLEST_GRID, 2 * img_size + SMALLEST_GRID + 1)
        near = sorted(filter(_patches_in_bounds, sizes), key=lambda size: abs(size - img_size))[:2]
        raise ValueError(
            f"img_size must be a multiple of a patch that leaves a grid of {SMALLEST_GRID} x "
            f"{SMALLEST_GRID} to {LARGEST_GRID} x {LARGEST_GRID}, got {img_size}; nearest is "
            f"{' or '.join(map(str, sorted(near)))}"
        )
    nearest = min(patches, key=lambda patch: abs(math.log(img_size / patch / GRID)))
    coarser = 2 * nearest
    is_fine = img_size % coarser == 0 and img_size // coarser >= COARSE_GRID
    return (nearest, coarser) if is_fine else (nearest,)


def deit(size: DeitSize, pictures: Pictures) -> ArchSpec:
    """The DeiT of a size for these pictures, which bounds what is searched and is its baseline."""
    changes = {**pictures._asdict(), "patch_size": patch_sizes(pictures.img_size)[0]}
    return ArchSpec.model_validate({**dict(PRESETS[f"deit_{size}"]), **changes})


def usual_psvit(size: DeitSize, pictures: Pictures) -> ArchSpec:
    """A PSViT of the compact set for these pictures, within its limits: it is trained where no
    architecture is given, and a pattern takes its widths."""
    like = deit(size, pictures)
    (layers,) = like.stages
    stages = [
        StageSpec(
            embed_dim=round(ratio * layers.embed_dim),
            num_heads=round(ratio * layers.num_heads),
            hidden_dim=round(ratio * layers.hidden_dim),
            share_groups=groups,
        )
        for ratio, groups in zip(USUAL_WIDTHS, parse_pattern(USUAL_PATTERN), strict=True)
    ]
    return ArchSpec.model_validate({**dict(like), "pooling": "2d", "stages": stages})


def limits(size: DeitSize, pictures: Pictures) -> Limits:
    """Limits of what is searched: DeiT's multiply-accumulates and twice its parameters."""
    macs, params = cost(deit(size, pictures))
    return Limits(max_macs=macs, max_params=MAX_PARAMS_RATIO * params)


def compact_set(size: DeitSize, pictures: Pictures, *, pretrained: bool = False) -> SearchSpace:
    """The space around the DeiT of a size. With `pretrained` the first stage has DeiT's width and
    all MLPs its ratio, so that each spec takes some of the weights of a trained DeiT. Raises
    ValueError where no patch suits the pictures."""
    (stage,) = deit(size, pictures).stages
    widths = ((1,), *WIDTHS[1:]) if pretrained else WIDTHS
    stages = tuple(
        StageChoices(
            depth=depths,
            embed_dim=tuple(round(ratio * stage.embed_dim) for ratio in ratios),
            head_dim=(32, 64),
            mlp_ratio=(4,) if pretrained else (3, 4),
        )
        for depths, ratios in zip(DEPTHS, widths, strict=True)
    )
    return SearchSpace(
        **pictures._asdict(),
        patch_size=patch_sizes(pictures.img_size),
        pooling=("1d", "2d"),
        pool_op=("conv", "max", "avg"),
        num_stages=(2, 3),
        stages=stages,
    )


def _patches_in_bounds(img_size: int) -> list[int]:
    grids = range(SMALLEST_GRID, LARGEST_GRID + 1)
    return [img_size // grid for grid in grids if grid <= img_size and img_size % grid == 0]
