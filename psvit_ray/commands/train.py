"""Trains one configuration in Ray Train, and scores the test images once, at the end.

psvit train --arch outputs/NAME/best.yaml --workers 2
psvit train --recipe digits --arch "2|2-1|1" --epochs 30
"""

from __future__ import annotations

from pathlib import Path

from psvit_ray.commands import command_line
from psvit_ray.commands.fitting import few_images_notes, fitted
from psvit_ray.commands.options import TrainJob
from psvit_ray.commands.shorter import shorter_note
from psvit_ray.data.sources.load_data import load_data
from psvit_ray.runtime.train.config import WorkerRange
from psvit_ray.text.printable import printable
from psvit_ray.training.config import Configuration
from psvit_ray.training.source import check_fits


def work(job: TrainJob) -> int:
    # What is wrong is said before torch, Ray and MLflow are imported, which takes many seconds.
    spec = command_line.read_arch(job.arch, job.base)
    source = load_data(job.train)
    if job.arch is None or job.arch[:1].isdigit():  # by a pattern, with the widths of the base
        job, fit_notes = fitted(job, source)
        spec = command_line.read_arch(job.arch, job.base)
    elif job.size:
        raise ValueError(f"size must be left out with an arch that has widths, got {job.arch!r}")
    else:
        fit_notes = few_images_notes(source, job.train)
    spec = command_line.fit_arch(spec, job.arch, source)
    configuration = Configuration(spec=spec, train=job.train)
    check_fits(configuration, source)
    from psvit_ray.data.loading.loader import shuffle_advice
    from psvit_ray.runtime.cluster.cluster import amounts_per_worker, gpu_settings_note
    from psvit_ray.runtime.session.session import exit_code, open_session
    from psvit_ray.runtime.train.trainer import train
    from psvit_ray.training.engine import check_networks

    loaded = check_networks(configuration, source)
    workers = WorkerRange.of(job.workers)
    with open_session(
        job.launch,
        default_name=f"{Path(job.recipe).stem}-train",
        identity=configuration.model_dump(mode="json"),
        source=source,
        num_workers=workers.min_workers,
        resources=job.resources,
        role="training",
    ) as session:
        resources = amounts_per_worker(job.resources)
        sections = command_line.recipe_sections(job.recipe, job.arch)
        notes = [
            shorter_note(sections, job),
            *source.notes,
            *fit_notes,
            shuffle_advice(source.train, job.train.shuffle_window),
        ]
        notes += [f"init: {loaded}"] if loaded else []
        notes += [gpu_settings_note(job.train, resources)]
        print("\n".join(printable(note) for note in notes if note))
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
        if record.status == "interrupted":
            print(f"goes on with: {job.resume_command(session.name)}")
        return exit_code(trained.signal) or 1
    metric, values = record.metric, {"hold-out": record.value, "test": record.test_value}
    commonest = {"always the commonest class": record.commonest}
    print(
        ", ".join(
            f"{split} {metric.title} {metric.number(value)}"
            for split, value in (values | commonest).items()
            if value is not None
        )
    )
    print(f"weights and record: {session.folder}")
    return 0
