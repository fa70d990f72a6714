"""Recipes that leave to the data what follows from it: the size, channels and classes of `base` and
`search.space`, or both as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from psvit_ray.arch.compact_set import Pictures, compact_set, usual_psvit
from psvit_ray.arch.spec import MAX_IMG_SIZE

ANY_IMAGES = "images"
"""Recipe of jobs on other data than digits."""
DIGITS = "digits"
ONLY_FOR = "only_for"
"""Key of a recipe that is for one data set; its value is the name of that."""
UNKNOWN_PICTURES = Pictures(img_size=224, in_chans=3, num_classes=1000)
"""What stands for the pictures until the data is read."""
LARGEST_GRID = 32


def leaves_space_open(sections: Mapping[str, Any]) -> bool:
    """Whether a recipe has a search and no space: it searches the compact set for its images."""
    return "search" in sections and "space" not in sections["search"]


def is_fitted(job: type[BaseModel]) -> bool:
    """Whether jobs of a kind are fitted to their images, and so take a recipe that is open."""
    return "size" in job.model_fields


def usual_recipe(job: type[BaseModel], data: str | None) -> str:
    """The recipe of a job for which none is given, on `data` as its flag says."""
    if is_fitted(job) and data and data != DIGITS:
        return ANY_IMAGES
    return str(job.model_fields["recipe"].default)


def provisional(job: type[BaseModel], recipe: str, sections: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a recipe with values for what it leaves open, until the data is read. Raises
    ValueError for a job that is not fitted to its images."""
    sections = dict(sections)
    if leaves_space_open(sections):
        if "search" in job.model_fields and not is_fitted(job):
            raise ValueError(
                f"recipe {recipe!r} leaves its space to the data; psvit recipe --data DIR --out "
                "my.yaml writes a recipe that has one"
            )
        if is_fitted(job):
            space = compact_set("tiny", UNKNOWN_PICTURES).model_dump(mode="json")
            sections["search"] = {**sections["search"], "space": space}
            sections.setdefault(
                "base", usual_psvit("tiny", UNKNOWN_PICTURES).model_dump(mode="json")
            )
    elif is_fitted(job):
        if "search" in sections:
            search = sections["search"]
            sections["search"] = {**search, "space": _sized(search["space"])}
        if "base" in sections:
            sections["base"] = _sized(sections["base"])
    return sections


def patches_of(choices: Any) -> list[int]:
    """The patch sizes of a base or a space as a recipe has them; empty where there are none."""
    patches = choices.get("patch_size", 16) if isinstance(choices, dict) else []
    several = patches if isinstance(patches, list) else [patches]
    return several if all(type(patch) is int and patch > 0 for patch in several) else []


def _sized(choices: Any) -> Any:
    """A base or a space, with a size that all its patches divide where it has none."""
    if not (patches := patches_of(choices)) or "img_size" in choices:
        return choices
    whole = math.lcm(*patches)
    return {**choices, "img_size": min(whole * LARGEST_GRID, MAX_IMG_SIZE // whole * whole)}
