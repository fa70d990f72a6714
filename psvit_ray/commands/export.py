"""Makes a folder to deploy of a training: weights with a hash, configuration, a model card.

    psvit export --run outputs/NAME --out model/
    psvit export --run outputs/NAME --out model/ --onnx --torch-export
    psvit export --run outputs/NAME --out model/ --register flowers --alias champion

    model, transform = psvit_ray.load("model/")

The weights are those that metrics speak of (averaged ones where there are any). Other formats are
checked against the network; where one answers otherwise, nothing is written and the job ends with
1. A registered model is served by `mlflow models serve`: pictures in, labels and probabilities out.
"""

from __future__ import annotations

import contextlib
import shlex
import sys

from psvit_ray.commands.options import ExportJob
from psvit_ray.data.splits import split_file
from psvit_ray.export import formats
from psvit_ray.export.config import CheckpointChoice, TrainingInfo
from psvit_ray.export.formats import ConversionError
from psvit_ray.runtime.tracking import registry, store_uri
from psvit_ray.runtime.train.trainer import CHECKPOINTS
from psvit_ray.search.description import read_training
from psvit_ray.search.record import Record
from psvit_ray.storage import files
from psvit_ray.storage.folder import Folder
from psvit_ray.storage.outputs import new_folder
from psvit_ray.text.secrets import without_secrets
from psvit_ray.training.checkpoint import Checkpoint, CheckpointManager
from psvit_ray.training.exporting import export_checkpoint, training_info

PORT = 5001
ASK = (
    """printf '{"dataframe_split": {"columns": ["image"], "data": [["%s"]]}}' """
    """"$(base64 < photo.jpg | tr -d '\\n')" | """
    f"curl -H 'Content-Type: application/json' -d @- http://127.0.0.1:{PORT}/invocations"
)
"""Shell command that asks a served model about a file."""


def work(job: ExportJob) -> int:
    if job.alias and not job.register_as:
        raise ValueError("alias needs --register")
    run, out = Folder.at(job.run), Folder.at(job.out)
    if job.onnx:
        formats.check_onnx_installed()
    record = read_training(run)
    checkpoint = checkpoint_of(run, job.which)
    splits = split_file.read_split_file(run)
    storage, name = files.parent(run)
    training = training_info(
        checkpoint,
        which=job.which,
        name=name,
        run_id=record.run_id,
        test_top1=record.test_top1,
    )
    store = ""
    if job.register_as:
        store = store_uri.resolve_uri(job.tracking_uri, storage)
        registry.check(store, record.run_id, job.register_as, job.alias)
    version = ""
    try:
        with new_folder(out) as folder:
            exported = export_checkpoint(
                folder,
                checkpoint,
                training,
                splits=splits,
                onnx=job.onnx,
                torch_export=job.torch_export,
            )
            if job.register_as:
                version = registry.register(
                    exported, folder, tracking_uri=store, name=job.register_as, alias=job.alias
                )
    except (ConversionError, OSError) as error:
        print(f"error: nothing was exported: {without_secrets(str(error))}", file=sys.stderr)
        return 1
    print(summary(training, record, out))
    if job.register_as:
        what = f"{job.register_as}@{job.alias}" if job.alias else f"{job.register_as}/{version}"
        print(f"registered: {job.register_as}, version {version}")
        where, model = shlex.quote(without_secrets(store)), shlex.quote(f"models:/{what}")
        serve = f"mlflow models serve -m {model} --env-manager local --port {PORT}"
        print(f"serve: MLFLOW_TRACKING_URI={where} {serve}")
        print(f"ask: {ASK}")
    return 0


def checkpoint_of(run: Folder, which: CheckpointChoice) -> Checkpoint:
    """Raises ValueError where there is none, or it is broken."""
    with contextlib.closing(CheckpointManager(run / CHECKPOINTS)) as kept:
        checkpoint = kept.best() if which == "best" else kept.newest()
        if checkpoint is None:
            hint = "; --which last takes what there is" if which == "best" and kept.newest() else ""
            raise ValueError(f"run must have ended an epoch, got {run}, which has not{hint}")
    return checkpoint


def summary(training: TrainingInfo, record: Record, out: Folder) -> str:
    top1 = [
        f"{split} top-1 {value:.2f}" if value is not None else f"{split} top-1 not measured"
        for split, value in (("hold-out", training.holdout_top1), ("test", training.test_top1))
    ]
    state = "" if record.status == "completed" else f"; the run is {record.status}"
    return (
        f"{record.pattern}: {', '.join(top1)}, after {training.epoch} of {training.epochs} "
        f"epochs{state}"
        f"\nexported: {out}"
    )
