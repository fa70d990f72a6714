"""The compact set for any images: a search space around DeiT, scaled to the pictures."""

from __future__ import annotations

import random

import pytest

from psvit_ray.arch import compact_set
from psvit_ray.arch.compact_set import DeitSize, Pictures
from psvit_ray.arch.cost import count_macs, count_params
from psvit_ray.arch.presets import PRESETS
from psvit_ray.search.candidates import baselines

SIZES: tuple[DeitSize, ...] = ("tiny", "small", "base")
PHOTOS = Pictures(img_size=224, in_chans=3, num_classes=1000)


@pytest.mark.parametrize(
    ("img_size", "patches"),
    [(224, (16,)), (128, (8, 16)), (64, (4, 8)), (48, (3, 6)), (32, (2, 4)), (16, (1, 2))],
)
def test_patches_leave_a_grid_near_deits(img_size: int, patches: tuple[int, ...]) -> None:
    assert compact_set.patch_sizes(img_size) == patches


def test_a_patch_whose_double_leaves_too_coarse_a_grid_is_the_only_one() -> None:
    assert compact_set.patch_sizes(8) == (1,)
    assert compact_set.patch_sizes(75) == (5,)  # of which 10 is no divisor


@pytest.mark.parametrize(("img_size", "near"), [(31, "30 or 32"), (58, "56 or 57"), (3, "7 or 8")])
def test_a_size_that_no_patch_suits_names_the_nearest(img_size: int, near: str) -> None:
    with pytest.raises(ValueError, match=f"got {img_size}; nearest is {near}$"):
        compact_set.patch_sizes(img_size)


def test_every_size_that_is_named_as_nearest_has_a_patch() -> None:
    for img_size in range(1, 300):
        try:
            compact_set.patch_sizes(img_size)
        except ValueError as error:
            named = [int(word) for word in str(error).split() if word.isdigit()][-2:]
            assert all(map(compact_set.patch_sizes, named))


@pytest.mark.parametrize("size", SIZES)
def test_for_imagenet_it_lies_around_deit_as_published(size: DeitSize) -> None:
    deit = compact_set.deit(size, PHOTOS)
    assert deit == PRESETS[f"deit_{size}"]
    limits = compact_set.limits(size, PHOTOS)
    assert (limits.max_macs, limits.max_params) == (count_macs(deit), 2 * count_params(deit))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("img_size", [224, 64, 32, 8])
def test_deit_is_the_baseline_and_what_is_searched_is_within_its_limits(
    size: DeitSize, img_size: int
) -> None:
    pictures = Pictures(img_size, in_chans=1, num_classes=5)
    space, limits = compact_set.compact_set(size, pictures), compact_set.limits(size, pictures)
    deit, usual = compact_set.deit(size, pictures), compact_set.usual_psvit(size, pictures)
    assert baselines(space, limits, 1) == [deit]
    assert space.contains(usual)
    assert limits.allows(usual)
    rng = random.Random(0)
    drawn = [space.sample(rng, limits) for _ in range(50)]
    for spec in (deit, usual, *drawn):
        assert (spec.img_size, spec.in_chans, spec.num_classes) == pictures
    assert max(map(count_macs, drawn)) <= count_macs(deit)
    assert max(map(count_params, drawn)) <= 2 * count_params(deit)
    assert {spec.pooling for spec in drawn} == {"1d", "2d"}
    assert {spec.patch_size for spec in drawn} == set(space.patch_size)
