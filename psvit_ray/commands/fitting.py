"""A job fitted to its images: what its recipe leaves open is derived from them."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from psvit_ray.arch import compact_set
from psvit_ray.arch.compact_set import DeitSize, Pictures
from psvit_ray.arch.space import SearchSpace
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.commands.command_line import one_line, read_recipe
from psvit_ray.commands.open_recipes import ANY_IMAGES, leaves_space_open, patches_of
from psvit_ray.commands.options import DoctorJob, RecipeJob, TrainJob, TuneJob
from psvit_ray.data.sources.appearance import Appearance, appearance
from psvit_ray.data.sources.image_source import Source
from psvit_ray.search.config import SearchConfig
from psvit_ray.training.config import TrainConfig

MAX_SIZE = 224
"""Largest side that is derived, in pixels: that of ImageNet's trainings."""
COARSE, FINE, COARSE_FROM = 16, 4, 64
"""Derived sides are multiples of 16 pixels, below 64 of 4."""
SMALLEST_SIZE, ENLARGED_SIZE = 8, 32
FEW_IMAGES = 10_000
"""Training images below which a training from scratch is said to be weak."""
Fitted = TypeVar("Fitted", bound=TuneJob | TrainJob | DoctorJob | RecipeJob)
Sized = TypeVar("Sized", SearchSpace, ArchSpec)


def fitted(job: Fitted, source: Source) -> tuple[Fitted, list[str]]:
    """The job for the images of `source`, and notes of what was derived from them.

    Raises ValueError where the recipe states what the images are not, and where they are too small
    for its patches.
    """
    sections = read_recipe(job.recipe)
    is_open, size = leaves_space_open(sections), job.size or "tiny"
    if job.size and not is_open:
        raise ValueError(
            f"size must be left out with recipe {job.recipe!r}, which says itself what is "
            f"searched; --recipe {ANY_IMAGES} takes it"
        )
    images = _Images(job.recipe, job.train, source)
    changes: dict[str, Any] = {}
    notes: list[str] = []
    if isinstance(search := getattr(job, "search", None), SearchConfig):
        stated = sections["search"].get("space", {})
        images.check(stated, "search.space")
        pictures = images.pictures(stated)
        if is_open:
            search = _around_deit(search, size, pictures, pretrained=bool(job.train.init))
            notes.append(_set_note(search, size))
        else:
            space = images.sized(search.space, pictures, "search.space")
            search = search.model_copy(update={"space": space})
        changes["search"] = search
    if isinstance(base := getattr(job, "base", None), ArchSpec):
        if "base" in sections:
            pictures = images.pictures(sections["base"])
            changes["base"] = images.sized(base, pictures, "base")
        else:
            changes["base"] = compact_set.usual_psvit(size, images.pictures({}))
    changes["train"] = images.train_config()
    changed: Any = job.model_copy(update=changes)
    return changed, [*images.notes(), *notes, *few_images_notes(source, job.train, size)]


def few_images_notes(source: Source, train: TrainConfig, size: DeitSize = "tiny") -> list[str]:
    """A line that says so where the images are few for a training from scratch."""
    images = len(source.train)
    if images >= FEW_IMAGES or train.init or source.img_size:
        return []
    return [
        f"{images:,} training images: from scratch a network learns little from fewer than "
        f"{FEW_IMAGES:,}; --init timm:deit_{size}_patch16_224 starts from trained weights "
        "(--init-checkpoint FILE without a connection), and so does --init with an exported folder"
    ]


class _Images:
    """The images of a job: what is fixed of them, what a flag says, and how a sample looks."""

    def __init__(self, recipe: str, train: TrainConfig, source: Source) -> None:
        self._recipe, self._train, self._source = recipe, train, source
        self._derived: dict[str, str] = {}
        self._size_is_given = False

    @functools.cached_property
    def _look(self) -> Appearance:
        source = self._source
        return appearance(source.train, source.name, source.tones, self._train.background)

    def check(self, stated: Mapping[str, Any], where: str) -> None:
        """Raises ValueError where a recipe states in `where` what the images are not."""
        for name in Pictures._fields:
            given, fixed = stated.get(name), getattr(self._source, name)
            if None not in (given, fixed) and given != fixed:
                raise ValueError(
                    f"{name} must be {fixed}, as in data {self._source.name!r}, got {given} in "
                    f"{where} of recipe {self._recipe!r}; correct it there, or leave it out"
                )

    def pictures(self, stated: Mapping[str, Any]) -> Pictures:
        """What a base or a space of a recipe states of its images, completed from these."""
        return Pictures(
            img_size=stated.get("img_size") or self._source.img_size or self._size(stated),
            in_chans=stated.get("in_chans") or self._source.in_chans or self._channels(),
            num_classes=stated.get("num_classes") or self._source.num_classes,
        )

    def sized(self, choices: Sized, pictures: Pictures, where: str) -> Sized:
        """A base or a space of a recipe for these pictures. Raises ValueError where its patches do
        not suit them."""
        try:
            return choices.model_validate({**dict(choices), **pictures._asdict()})
        except ValidationError as error:
            raise ValueError(
                f"{where} of recipe {self._recipe!r} with data {self._source.name!r}: "
                f"{one_line(error)}; --img-size enlarges the pictures"
            ) from None

    def train_config(self) -> TrainConfig:
        """The training of these images: with their mean and deviation where the channels were
        derived, unless it starts from weights, which were trained with ImageNet's."""
        changes: dict[str, Any] = {"img_size": 0} if self._size_is_given else {}
        if "in_chans" in self._derived and not (self._train.mean or self._train.init):
            changes |= {"mean": self._look.mean, "std": self._look.std}
            for name in ("mean", "std"):
                self._derived[name] = " ".join(map(str, changes[name]))
        return self._train.model_copy(update=changes)

    def notes(self) -> list[str]:
        """A line of what was derived."""
        if not self._derived:
            return []
        derived = ", ".join(f"{name} {value}" for name, value in self._derived.items())
        return [f"derived from {self._look.pictures} pictures looked at: {derived}"]

    def _channels(self) -> int:
        self._derived["in_chans"] = str(self._look.in_chans)
        return self._look.in_chans

    def _size(self, stated: Mapping[str, Any]) -> int:
        if self._train.img_size:
            self._size_is_given = True
            return self._train.img_size
        side = self._look.short_side
        patches = patches_of(stated) if stated else []
        whole = math.lcm(*patches) if patches else COARSE if side >= COARSE_FROM else FINE
        size = min(side, MAX_SIZE) // whole * whole
        if size < (whole if patches else SMALLEST_SIZE):
            what = f"patches of {max(patches)} pixels" if patches else "any patches"
            larger = whole * -(-ENLARGED_SIZE // whole)
            raise ValueError(
                f"data {self._source.name!r} has pictures that are too small for {what}: the "
                f"median of their shorter sides is {side} pixels; --img-size {larger} enlarges them"
            )
        self._derived["img_size"] = f"{size} (the median of their shorter sides is {side})"
        return size


def _around_deit(
    search: SearchConfig, size: DeitSize, pictures: Pictures, *, pretrained: bool
) -> SearchConfig:
    """The search in the compact set around a DeiT. Limits on cost that were given stay."""
    max_macs, max_params = compact_set.limits(size, pictures).bounds
    return search.model_copy(
        update={
            "space": compact_set.compact_set(size, pictures, pretrained=pretrained),
            "max_gmacs": search.max_gmacs or max_macs / 1e9,
            "max_params_m": search.max_params_m or max_params / 1e6,
        }
    )


def _set_note(search: SearchConfig, size: DeitSize) -> str:
    patches = " or ".join(map(str, search.space.patch_size))
    return (
        f"compact set around deit_{size}: patches of {patches} pixels, at most "
        f"{search.max_gmacs:.4g} GMACs and {search.max_params_m:.4g} M parameters"
    )
