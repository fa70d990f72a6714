"""Everything of a run but its architecture."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Self

from pydantic import Field, model_validator

from psvit_ray.arch.spec import ArchSpec, Value

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveFraction = Annotated[float, Field(gt=0, le=1)]
Number = Annotated[int, Field(ge=1)]
NumberOrZero = Annotated[int, Field(ge=0)]


class TrainConfig(Value):
    """How one network is trained. Names are those of timm's `train.py` where it has one."""

    data: str = "digits"
    """Source of images."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Part of the training images cut off as hold-out, on which searches rank."""
    data_fraction: PositiveFraction = 1.0
    """Part of the remaining training images that is used: below 1, a cheap proxy."""
    split_seed: NumberOrZero = 0
    """Of the hold-out and of `data_fraction`. The test images are always the same."""
    seed: NumberOrZero = 0
    """Of weights, order and augmentation."""

    epochs: Number = 20
    """Passes over the training images."""
    batch_size: Number = 64
    """Images of one optimizer step, over all workers and accumulation steps."""
    grad_accum_steps: Number = 1
    """Parts in which a worker computes the gradient of one step, to save memory."""
    lr: Positive = 2e-3
    """Peak learning rate."""
    min_lr: NonNegative = 1e-5
    """Learning rate at the end of the cosine."""
    warmup_epochs: NonNegative = 2.0
    """Linear warm-up before the cosine."""
    weight_decay: NonNegative = 0.05
    """AdamW's, on matrices only (timm's rule)."""
    clip_grad: NonNegative = 0.0
    """Largest gradient norm; 0 clips nothing."""
    model_ema_decay: Fraction = 0.0
    """Decay of the averaged weights that are then the ones evaluated; 0 keeps none."""

    smoothing: Fraction = 0.1
    """Label smoothing."""
    mixup: NonNegative = 0.0
    """Mixup's alpha; 0 is off."""
    cutmix: NonNegative = 0.0
    """CutMix's alpha; 0 is off."""
    shift: NumberOrZero = 0
    """Each training image is moved by up to this many pixels along each axis."""
    drop: Fraction = 0.0
    """Dropout."""
    attn_drop: Fraction = 0.0
    """Dropout of attention."""
    drop_path: Fraction = 0.0
    """Stochastic depth of the last layer, growing linearly from 0."""

    amp: bool = False
    """bfloat16 autocast."""
    compile: bool = False
    """`torch.compile`, block by block."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""
    num_loaders: NumberOrZero = 0
    """DataLoader processes of each worker; 0 loads in the worker itself."""
    checkpoint_every: Number = 1
    """Epochs between checkpoints."""

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.warmup_epochs >= self.epochs and self.epochs > 1:
            raise ValueError(
                f"warmup_epochs must be less than epochs={self.epochs}, got {self.warmup_epochs}"
            )
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr must be at most lr={self.lr}, got {self.min_lr}")
        if self.batch_size < self.grad_accum_steps:
            raise ValueError(
                f"grad_accum_steps must be at most batch_size={self.batch_size}, "
                f"got {self.grad_accum_steps}"
            )
        return self


class Configuration(Value):
    """One thing to train: an architecture and everything else of its run."""

    spec: ArchSpec
    train: TrainConfig = TrainConfig()

    @property
    def key(self) -> str:
        """Names the record, the folder and the MLflow run. Fields at their defaults do not enter,
        as in `ArchSpec.spec_id`."""
        config = json.dumps(self.train.model_dump(exclude_defaults=True), sort_keys=True)
        return hashlib.sha256(f"{self.spec.spec_id} {config}".encode()).hexdigest()[:12]
