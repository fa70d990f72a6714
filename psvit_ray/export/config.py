"""What an exported folder says of its model: `config.json`."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any, Literal

from pydantic import Field

from psvit_ray.arch.spec import ArchSpec, Value
from psvit_ray.data.loading.transforms import Preprocessing
from psvit_ray.data.splits.layout import DataLayout

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
ONNX = "model.onnx"
TORCH_EXPORT = "model.pt2"

CheckpointChoice = Literal["best", "last"]


class TrainingInfo(Value):
    """What is known of the run that the weights come from. Top-1 is in percent, and None where it
    was not measured with these weights."""

    name: str
    """Of the run."""
    run_id: str
    """In MLflow; empty where the run is not there."""
    which: CheckpointChoice
    """Of the run's checkpoints: the best on the hold-out, or the last."""
    data: str
    data_digest: str = ""
    """Names the images of the data, as in `SplitFile.digest`; empty in a folder of before it was
    kept."""
    epochs: int
    """That the run was to have."""
    epoch: int
    """That were done."""
    step: int
    seed: int
    holdout_top1: float | None
    test_top1: float | None
    macs: int
    params: int
    settings: dict[str, Any]
    """The whole training configuration."""

    @property
    def layout(self) -> DataLayout:
        """How the data of the training was laid out; an older export says nothing of it."""
        names = DataLayout.model_fields
        return DataLayout(**{name: self.settings.get(name, "") for name in names})


class ExportConfig(Value):
    """`config.json`."""

    format_version: Literal[1] = 1
    spec: ArchSpec
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    sha256: dict[str, str] = Field(default_factory=dict)
    """Of the files with weights, and of `splits.parquet`."""
    training: TrainingInfo

    def faults(self) -> list[str]:
        """Everything in which it contradicts itself, a line each; empty if nothing."""
        spec, given, names = self.spec, self.preprocessing, self.class_names
        both = {
            "class_names": (len(names), spec.num_classes),
            "preprocessing.img_size": (given.img_size, spec.img_size),
            "preprocessing.in_chans": (given.in_chans, spec.in_chans),
            "preprocessing.mean": (len(given.mean), spec.in_chans),
            "preprocessing.std": (len(given.std), spec.in_chans),
        }
        unfit = [
            f"{field} must be {of_spec} as in spec, got {ours}"
            for field, (ours, of_spec) in both.items()
            if ours != of_spec
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
