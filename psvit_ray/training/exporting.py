"""Export of a checkpoint to a model folder (`psvit_ray.export`)."""

from __future__ import annotations

from pathlib import Path

from psvit_ray.arch.cost import count_macs, count_params
from psvit_ray.data.splits.split_file import SplitFile
from psvit_ray.export import model_folder
from psvit_ray.export.config import CheckpointChoice, ExportConfig, TrainingInfo
from psvit_ray.export.model_folder import ExportedModel
from psvit_ray.text.secrets import without_secrets, without_secrets_in
from psvit_ray.training.checkpoint import Checkpoint
from psvit_ray.training.config import TrainConfig
from psvit_ray.training.results import TOP1


def training_info(
    checkpoint: Checkpoint,
    *,
    which: CheckpointChoice,
    name: str = "",
    run_id: str = "",
    test_top1: float | None = None,
) -> TrainingInfo:
    """The description of a checkpoint's run for an exported folder.

    `name` and `run_id` are those of the run, the latter in MLflow. `test_top1` is the score at the
    end of the run, in percent; it is left out if the checkpoint is an earlier one.
    """
    configuration = checkpoint.run.configuration
    train, spec = configuration.train, configuration.trained_spec
    last = checkpoint.curve[-1] if checkpoint.curve else {}
    measured = last.get("step") == checkpoint.step
    return TrainingInfo(
        name=name,
        run_id=run_id,
        which=which,
        data=without_secrets(train.data),
        data_digest=checkpoint.run.data_digest,
        epochs=train.epochs,
        epoch=checkpoint.epoch,
        step=checkpoint.step,
        seed=train.seed,
        holdout_top1=last["metrics"][TOP1] if measured else None,
        test_top1=test_top1 if measured and checkpoint.epoch == train.epochs else None,
        macs=count_macs(spec),
        params=count_params(spec),
        settings=without_secrets_in(train.model_dump(mode="json")),
    )


def export_checkpoint(
    folder: Path,
    checkpoint: Checkpoint,
    training: TrainingInfo,
    *,
    splits: SplitFile | None = None,
    onnx: bool = False,
    torch_export: bool = False,
) -> ExportedModel:
    """Exports the evaluated weights of a checkpoint (the averaged ones, if there are any) to the
    empty folder `folder`. Arguments and errors are those of `write_model_folder`."""
    config = ExportConfig(
        spec=checkpoint.run.configuration.trained_spec,
        preprocessing=checkpoint.run.preprocessing,
        class_names=checkpoint.run.class_names,
        training=training,
    )
    return model_folder.write_model_folder(
        folder,
        config,
        checkpoint.evaluated,
        default_settings=TrainConfig().model_dump(mode="json"),
        splits=splits,
        onnx=onnx,
        torch_export=torch_export,
    )
