"""Work on the finalists of a one-shot search: exporting the weights that they inherit, scoring test
images, exporting the winner."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data.sources.image_source import Source
from psvit_ray.export.model_files import CONFIG
from psvit_ray.runtime.cluster.cluster import amounts_per_worker
from psvit_ray.runtime.session.session import Session
from psvit_ray.runtime.tracking.mlflow_tracker import Tracker
from psvit_ray.runtime.train.trainer import CHECKPOINTS
from psvit_ray.runtime.tune.config import Trials
from psvit_ray.search.oneshot.finalists import finalists, winner
from psvit_ray.search.oneshot.subnets import load_supernet
from psvit_ray.search.record import Record
from psvit_ray.storage.folder import Folder
from psvit_ray.training.checkpoint import Checkpoint, last_checkpoint
from psvit_ray.training.config import Configuration
from psvit_ray.training.engine import run_training
from psvit_ray.training.execution import Execution
from psvit_ray.training.exporting import export_checkpoint, training_info
from psvit_ray.training.results import EpochResult
from psvit_ray.training.source import load_source

INHERITED = "inherited"
MODEL = "model"


def export_inherited(
    session: Session, specs: Sequence[ArchSpec], supernet_checkpoint: Callable[[], Checkpoint]
) -> dict[ArchSpec, str]:
    """Exports each spec with the weights that it has in the supernet. Returns the folder of
    each."""
    folders = {spec: session.folder / INHERITED / spec.spec_id for spec in specs}
    lacking = [spec for spec, folder in folders.items() if folder.read(CONFIG) is None]
    if lacking:
        checkpoint = supernet_checkpoint()
        supernet = load_supernet(checkpoint)
        configuration = checkpoint.run.configuration
        for spec in lacking:
            alone = Configuration(spec=spec, train=configuration.train)
            subnet = dataclasses.replace(
                checkpoint,
                run=checkpoint.run.model_copy(update={"configuration": alone}),
                model=supernet.extract(spec).state_dict(),
                ema=None,
                curve=[],
            )
            export_to(folders[spec], subnet, session)
    return {spec: folder.uri for spec, folder in folders.items()}


def export_to(folder: Folder, checkpoint: Checkpoint, session: Session, **known: Any) -> None:
    """Exports the network of a checkpoint to a folder: replaces the network there, and leaves other
    files. It counts once `config.json` is there.

    `facts` are further fields of `training_facts`.
    """
    training = training_info(checkpoint, which="last", name=session.name, **known)
    with tempfile.TemporaryDirectory() as work:
        export_checkpoint(
            Path(work),
            checkpoint,
            training,
            splits=session.data.split_file(),
        )
        folder.delete(CONFIG)
        for path in sorted(Path(work).iterdir(), key=lambda path: path.name == CONFIG):
            folder.write(path.name, path.read_bytes())


def score_test(session: Session, records: Sequence[Record], trials: Trials) -> list[Record]:
    """The records with the scores of their trained networks on the test images, which are used only
    here, after the choice."""
    resources = amounts_per_worker(trials.resources)
    task: Any = ray.remote(_evaluate_on_test)
    untested = [record for record in records if record.test_top1 is None]
    refs = {
        record.key: task.options(
            num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0), max_retries=3
        ).remote(
            record.configuration.model_dump_json(),
            (session.folder / CHECKPOINTS / record.key).uri,
            int(resources["CPU"]),
        )
        for record in untested
    }
    tracker = Tracker(session.experiment, session.fence)
    tested = []
    for record in records:
        if record.key in refs:
            record = record.reported(ray.get(refs[record.key]))
            session.store.put(record)
            tracker.put(record)
        tested.append(record)
    tracker.close("completed")
    return tested


def _evaluate_on_test(configuration: str, checkpoints: str, threads: int) -> EpochResult:
    """The last report of a training, made again with the test images."""
    torch.set_num_threads(threads)
    config = Configuration.model_validate_json(configuration)
    on_gpu = bool(ray.get_gpu_ids())
    execution = Execution(torch.device("cuda" if on_gpu else "cpu"), accelerated=on_gpu)
    start = last_checkpoint(Folder(checkpoints))
    *_, last = run_training(
        config, load_source(config), execution=execution, start=start, test=True
    )
    return last.result()


def export_winner(
    session: Session, records: Sequence[Record], source: Source, trials: Trials
) -> list[Record]:
    """Exports the winner's network to `model/`. All seeds of the winner and of the best DeiT are
    scored on the test images, where the data has any. Returns the records with these scores."""
    chosen = winner(records)
    if chosen is None:
        return list(records)
    if source.test:
        groups = finalists(records)
        deit = [finalist for finalist in groups if finalist.kind == "baseline"][:1]
        best = [finalist for finalist in groups if chosen in finalist.runs]
        tested = score_test(
            session, [run for finalist in deit + best for run in finalist.runs], trials
        )
        now = {record.key: record for record in [*records, *tested]}
        records, chosen = [now[record.key] for record in records], now[chosen.key]
    export_to(
        session.folder / MODEL,
        last_checkpoint(session.folder / CHECKPOINTS / chosen.key),
        session,
        run_id=chosen.run_id,
        test_top1=chosen.test_top1,
    )
    return list(records)
