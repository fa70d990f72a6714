"""`config.json` of an exported folder: everything about the model but its weights."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Literal

from pydantic import Field, model_validator

from psvit_ray.arch.spec import ArchSpec, Value
from psvit_ray.data.loading.transforms import Preprocessing
from psvit_ray.data.splits.layout import DataLayout

TIMM_FIELDS = (
    "architecture",
    "num_classes",
    "num_features",
    "global_pool",
    "label_names",
    "model_args",
    "pretrained_cfg",
)
"""Fields of `config.json` that timm reads (`timm_config`), beside those of `ExportConfig`."""

CheckpointChoice = Literal["best", "last"]


class TrainingInfo(Value):
    """The training run that the weights come from."""

    name: str
    """Name of the run."""
    run_id: str
    """Id of the run in MLflow; empty if it was not recorded there."""
    which: CheckpointChoice
    """Checkpoint of the run: the best on the hold-out, or the last."""
    data: str
    """Data that the run was given, without secrets."""
    data_digest: str = ""
    """Digest of the images of the data, as `SplitFile.digest`; empty in exports of older
    versions."""
    epochs: int
    """Configured epochs."""
    epoch: int
    """Completed epochs."""
    step: int
    """Completed optimizer steps."""
    seed: int
    """Seed of weights, order and augmentation."""
    holdout_top1: float | None
    """Top-1 on the hold-out in percent; None if it was not measured with these weights."""
    test_top1: float | None
    """Top-1 on the test images in percent; None if it was not measured with these weights."""
    macs: int
    """Multiply-accumulates of one image."""
    params: int
    """Number of parameters."""
    settings: dict[str, Any]
    """The whole training configuration, as `TrainConfig` has it."""

    @property
    def layout(self) -> DataLayout:
        """Layout of the training data; the default one in exports of older versions."""
        names = DataLayout.model_fields
        return DataLayout(**{name: self.settings.get(name, "") for name in names})


class ExportConfig(Value):
    """The content of `config.json`, without the fields for timm, which repeat it."""

    format_version: Literal[1] = 1
    """Version of this format."""
    spec: ArchSpec
    """Architecture of the model."""
    preprocessing: Preprocessing
    """Preprocessing of images in evaluation."""
    class_names: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    sha256: dict[str, str] = Field(default_factory=dict)
    """Hashes of the files with weights, and of `splits.parquet`, by name."""
    training: TrainingInfo
    """Training run of the weights."""

    @model_validator(mode="before")
    @classmethod
    def _without_timms_fields(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if name not in TIMM_FIELDS}

    def faults(self) -> list[str]:
        """Contradictions between the fields, one line each; empty if there are none."""
        spec, given, names = self.spec, self.preprocessing, self.class_names
        pairs = {
            "class_names": (len(names), spec.num_classes),
            "preprocessing.img_size": (given.img_size, spec.img_size),
            "preprocessing.in_chans": (given.in_chans, spec.in_chans),
            "preprocessing.mean": (len(given.mean), spec.in_chans),
            "preprocessing.std": (len(given.std), spec.in_chans),
        }
        unfit = [
            f"{field} must be {expected} as in spec, got {got}"
            for field, (got, expected) in pairs.items()
            if got != expected
        ]
        if twice := sorted(name for name, number in Counter(names).items() if number > 1):
            unfit.append(f"class_names must differ, got {twice[0]!r} twice")
        if not all(map(math.isfinite, given.mean)):
            unfit.append(f"preprocessing.mean must be numbers, got {given.mean}")
        if not all(math.isfinite(value) and value > 0 for value in given.std):
            unfit.append(f"preprocessing.std must be above 0, got {given.std}")
        if strange := [name for name in self.sha256 if "/" in name or name in ("", ".", "..")]:
            unfit.append(f"sha256 must name files of the folder, got {strange[0]!r}")
        return unfit
