"""The paths of a command, checked before what works on them is imported: torch alone takes seconds.

Nothing here reads an image or a weight: what stands under a path is checked where it is read.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from psvit_ray.commands.options import (
    CompareJob,
    EvaluateJob,
    ExportJob,
    LatencyJob,
    PredictJob,
    PrepareJob,
    RecipeJob,
    RedundancyJob,
    ReportJob,
)
from psvit_ray.data.sources import load_data, unlabelled
from psvit_ray.export.model_files import read_config
from psvit_ray.search import description
from psvit_ray.storage import files, outputs
from psvit_ray.storage.folder import Folder
from psvit_ray.text.secrets import without_secrets

PREDICTION_SUFFIXES = (".csv", ".jsonl")
"""Suffixes of the file that `psvit predict` writes."""

RECIPE_SUFFIXES = (".yaml", ".yml")
"""Suffixes of the file that `psvit recipe` writes."""


def check_paths(job: object) -> None:
    """Raises ValueError for a path of `job` that holds nothing, or that cannot be written to."""
    match job:
        case CompareJob():
            for name in filter(None, (job.search, job.baseline_search)):
                description.check_name(Folder.at(job.launch.storage), name)
        case ReportJob():
            storage = Folder.at(job.storage)
            if job.open and not storage.is_local:
                raise ValueError(f"open must be used with a storage on this machine, got {storage}")
            for name in job.name:
                description.check_name(storage, name)
        case PrepareJob(verify=False) if job.data:
            out = outputs.writable(job.out, "out")
            load_data.check_exists(job.data)
            if Path(job.data).is_dir() and f"{out}/".startswith(f"{Folder.at(job.data)}/"):
                raise ValueError(f"out must be outside data, got {out} in {job.data}")
        case ExportJob():
            _check_new_folder(job.out)
            description.read_training(Folder.at(job.run))
        case EvaluateJob():
            _check_new_folder(job.out)
            read_config(Folder.at(job.model))
            load_data.check_exists(job.data)
        case RedundancyJob():
            _check_new_folder(job.out)
            is_folder = "/" in job.model or Path(job.model).exists()
            if is_folder and not job.model.startswith("timm:"):
                read_config(Folder.at(job.model))
            load_data.check_exists(job.data)
        case RecipeJob():
            if suffix_of(Folder.at(job.out)) not in RECIPE_SUFFIXES:
                raise ValueError(
                    f"out must end in {' or '.join(RECIPE_SUFFIXES)}, by which a recipe is known, "
                    f"got {without_secrets(job.out)!r}"
                )
            _check_new_file(job.out)
        case PredictJob():
            if suffix_of(Folder.at(job.out)) not in PREDICTION_SUFFIXES:
                known, given = " or ".join(PREDICTION_SUFFIXES), without_secrets(job.out)
                raise ValueError(f"out must end in {known}, got {given!r}")
            _check_new_file(job.out)
            read_config(Folder.at(job.model))
            unlabelled.check_exists(job.data)
        case LatencyJob():
            _check_new_file(job.out)


def suffix_of(file: Folder) -> str:
    """The suffix of a file's name, in small letters."""
    return PurePosixPath(files.parent(file)[1]).suffix.lower()


def _check_new_folder(out: str) -> None:
    outputs.check_new_folder(outputs.writable(out, "out"))


def _check_new_file(out: str) -> None:
    outputs.writable(files.parent(Folder.at(out))[0].uri, "out")
    outputs.check_new_file(Folder.at(out))
