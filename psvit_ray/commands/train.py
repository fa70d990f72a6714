"""Trains one configuration in Ray Train, and scores the test images once, at the end.

    python jobs/train_psvit.py --arch outputs/NAME/best.yaml --workers 2
    python jobs/train_psvit.py --recipe digits --arch "2|2-1|1" --epochs 30

--arch is a preset, a pattern (its widths are those of the recipe's base), a spec.json, an exported
folder, or the best.yaml of a search, whose training settings then come before the recipe's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import tyro
from pydantic import field_validator

from psvit_ray.arch.spec import ArchSpec, Value
from psvit_ray.commands import command_line
from psvit_ray.data.loading.loader import shuffle_advice
from psvit_ray.runtime.cluster.cluster import amounts_per_worker, gpu_settings_note
from psvit_ray.runtime.cluster.config import WorkerResources
from psvit_ray.runtime.session.config import SessionConfig
from psvit_ray.runtime.session.session import exit_code, open_session
from psvit_ray.runtime.train.config import WorkerRange
from psvit_ray.runtime.train.trainer import train
from psvit_ray.text.printable import printable
from psvit_ray.training.config import Configuration, PositiveNumber, TrainConfig
from psvit_ray.training.engine import check_networks
from psvit_ray.training.source import check_source, source_from_settings


class TrainJob(Value):
    """Train one PSViT or DeiT with Ray Train."""

    recipe: str = "digits"
    """Name in psvit_ray/recipes, or path of a YAML file: the defaults of everything below."""
    arch: str | None = None
    """Preset, pattern such as 2-2|2-1-2|2, spec.json, best.yaml or exported folder; by default the
    recipe's base."""
    base: Annotated[ArchSpec | None, tyro.conf.Suppress] = None
    train: TrainConfig = TrainConfig()
    workers: str = "1"
    """Training workers (DDP): a number, or MIN:MAX to go on with fewer when a host is lost, and
    with more when one comes. Batch and learning rate stay."""
    patience_s: PositiveNumber = 300.0
    """Seconds after which a worker that does not come to a step is named, and all are restarted."""
    resources: WorkerResources = WorkerResources()
    launch: SessionConfig = SessionConfig()

    @field_validator("workers")
    @classmethod
    def _check_workers(cls, text: str) -> str:
        WorkerRange.of(text)
        return text


def work(job: TrainJob) -> int:
    source = source_from_settings(job.train)
    configuration = Configuration(
        spec=command_line.resolve_arch(job.arch, job.base, source), train=job.train
    )
    check_source(configuration, source)
    loaded = check_networks(configuration, source)
    workers = WorkerRange.of(job.workers)
    with open_session(
        job.launch,
        default_name=f"{Path(job.recipe).stem}-train",
        identity=configuration.model_dump(mode="json"),
        source=source,
        num_workers=workers.min_workers,
        resources=job.resources,
    ) as session:
        resources = amounts_per_worker(job.resources)
        said = [*source.notes, shuffle_advice(source.train, job.train.shuffle_window)]
        said += [f"init: {loaded}"] if loaded else []
        said += [gpu_settings_note(job.train, resources)]
        print("\n".join(printable(note) for note in said if note))
        trained = train(
            session,
            configuration,
            workers=workers,
            resources_per_worker=resources,
            patience_s=job.patience_s,
            wait_minutes=job.resources.wait_minutes,
        )
    record = trained.record
    print(
        f"{record.pattern}: {record.gmacs * 1e3:.3f} MMACs, {record.params_m:.3f} M parameters,"
        f" {record.epochs_done} of {job.train.epochs} epochs"
    )
    if record.status != "completed":
        print(f"{record.status}: {record.reason}")
        return exit_code(trained.signal) or 1
    test = "" if record.test_top1 is None else f", test top-1 {record.test_top1:.2f}"
    print(f"hold-out top-1 {record.top1:.2f}{test}")
    print(f"weights and record: {session.folder}")
    return 0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs `psvit train` with these arguments, by default those of the process, and exits."""
    command_line.run(TrainJob, work, argv)
