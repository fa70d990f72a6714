"""Writes a recipe for a data set: what a search derives from the images, to edit and to run.

psvit recipe --data photos/ --out my.yaml
psvit tune --recipe my.yaml
"""

from __future__ import annotations

import shlex
from typing import Any

import yaml
from pydantic import BaseModel

from psvit_ray.commands.command_line import read_recipe
from psvit_ray.commands.fitting import fitted
from psvit_ray.commands.options import RecipeJob
from psvit_ray.commands.shorter import shorter_note
from psvit_ray.data.sources.load_data import load_data
from psvit_ray.storage import files
from psvit_ray.storage.folder import Folder
from psvit_ray.text.printable import printable
from psvit_ray.training.config import Configuration
from psvit_ray.training.source import check_fits

WIDTH = 90
KEPT = {"train": ("data",), "search": ("space",)}
HINTS = {
    "base": "widths of a pattern given as --arch, such as 2-2|2-2-2|2",
    "train": "how each configuration is trained",
    "search": "what may vary, and how much is tried",
    "oneshot": "with --strategy oneshot",
    "space": "architectures to choose from",
    "overrides": "training settings that are searched beside the architecture",
    "stages": "layers on one token grid; a token pooling stands between two stages",
    "img_size": "images are resized to this side, in pixels",
    "num_classes": "as many as the images have",
    "patch_size": "divides img_size",
    "max_gmacs": "DeiT's, in billions; a configuration over it is never trained",
    "max_params_m": "twice DeiT's, in millions",
    "mean": "of each channel of these images, from 0 to 1",
    "num_trials": "configurations to try",
    "lr": "peak learning rate",
    "grace_epochs": "epochs before a configuration may be stopped",
}


def work(job: RecipeJob) -> int:
    source = load_data(job.train)
    job, notes = fitted(job, source)
    job.search.check(job.train)
    check_fits(Configuration(spec=job.search.space.smallest()[0], train=job.train), source)
    notes = [note for note in [shorter_note(read_recipe(job.recipe), job), *notes] if note]
    above, name = files.parent(Folder.at(job.out))
    above.write(name, recipe_text(job, source.name, notes).encode())
    print(*map(printable, [*source.notes, *notes]), sep="\n")
    print(f"written: {job.out}\npsvit tune --recipe {shlex.quote(job.out)}")
    return 0


def recipe_text(job: RecipeJob, data: str, notes: list[str]) -> str:
    """The recipe of a fitted job as YAML with comments, below the notes of what was derived. Of
    the settings at their defaults only those that the recipe of the job states are written."""
    stated = read_recipe(job.recipe)
    sections: dict[str, Any] = {"base": job.base.model_dump(mode="json")} if job.base else {}
    for name in ("train", "search", "oneshot"):
        part: BaseModel = getattr(job, name)
        changed = part.model_dump(exclude_defaults=True)
        kept = {*stated.get(name, ()), *changed, *KEPT.get(name, ())}
        sections[name] = part.model_dump(mode="json", include=kept, exclude_none=True)
    heading = [f"A search for the images of {data}.", *notes]
    comments = "".join(f"# {printable(line)}\n" for line in heading)
    text = yaml.safe_dump(sections, sort_keys=False, width=WIDTH, default_flow_style=None)
    return comments + "".join(map(_commented, text.splitlines()))


def _commented(line: str) -> str:
    """A line of YAML, with a comment where its key has one."""
    key = line.strip().partition(":")[0]
    return f"{line}  # {HINTS[key]}\n" if key in HINTS else f"{line}\n"
