"""Everything of a run but its architecture."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Annotated, Literal, Self

import tyro
from pydantic import Field, ValidationInfo, field_validator, model_validator

from psvit_ray.arch.cost import Limits
from psvit_ray.arch.space import SearchSpace
from psvit_ray.arch.spec import MAX_IMG_SIZE, ArchSpec, Finite, Value
from psvit_ray.data.images.options import (
    BACKGROUND,
    Colour,
    Decoder,
    format_tone_range,
    parse_tone_range,
)
from psvit_ray.data.loading.augmentation import Augmentation, Probability
from psvit_ray.data.splits.layout import DataLayout
from psvit_ray.storage.folder import Folder
from psvit_ray.text.secrets import without_secrets

MAX_VALUE = 1_000_000_000
"""Of anything that is counted or measured: more is a slip, and would overflow a clock or a
generator somewhere below."""
PositiveNumber = Annotated[Finite, Field(gt=0, le=MAX_VALUE)]
NonNegativeNumber = Annotated[Finite, Field(ge=0, le=MAX_VALUE)]
Fraction = Annotated[Finite, Field(ge=0, lt=1)]
PositiveFraction = Annotated[Finite, Field(gt=0, le=1)]
PositiveCount = Annotated[int, Field(ge=1, le=MAX_VALUE)]
NonNegativeCount = Annotated[int, Field(ge=0, le=MAX_VALUE)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What every generator takes (torch's has 64 bits)."""
Epochs = Annotated[int, Field(ge=1, le=1_000_000)]
"""A thousand times those of the longest published trainings."""
BatchSize = Annotated[int, Field(ge=1, le=1_000_000)]
"""LAMB's authors trained with 65,536."""
Processes = Annotated[int, Field(ge=1, le=1_024)]
ProcessesOrZero = Annotated[int, Field(ge=0, le=1_024)]
"""Processes or threads of one host: all are started at once."""
NumWorkers = Annotated[int, Field(ge=1, le=100_000)]
"""Of a cluster."""
PixelsOrZero = Annotated[int, Field(ge=0, le=MAX_IMG_SIZE)]
Runs = Annotated[int, Field(ge=1, le=1_000_000)]
"""Configurations of a search, each of which is a record, a folder and a run in MLflow."""
Repeats = Annotated[int, Field(ge=1, le=1_000)]
"""Of each configuration or image: they are listed before the first begins."""


class TrainConfig(Augmentation, DataLayout):
    """How one network is trained. Names are those of timm's `train.py` where it has one."""

    data: str = "digits"
    """digits, a folder of classes, Parquet (file, folder or pattern), or torchvision:NAME:ROOT."""
    holdout: Annotated[Finite, Field(gt=0, lt=1)] = 0.2
    """Part of the training images cut off as hold-out where the data has none of its own; searches
    rank on it."""
    val_as_test: bool = False
    """Keep the data's validation split for the final score, as is usual with ImageNet, and cut the
    hold-out from the training images."""
    data_fraction: PositiveFraction = 1.0
    """Part of the remaining training images that is used: below 1, a cheap proxy."""
    img_size: PixelsOrZero = 0
    """Side of the images trained on, in pixels; 0 is the architecture's. Below it, a cheap proxy:
    costs are reported for the architecture as it stands."""
    split_seed: Seed = 0
    """Of the hold-out and of `data_fraction`."""
    seed: Seed = 0
    """Of weights, order and augmentation."""

    init: str = ""
    """Weights to start from: an exported folder, or timm:NAME. What fits is taken."""
    init_checkpoint: str = ""
    """File with the weights of `init`'s timm:NAME, instead of those that timm fetches."""

    epochs: Epochs = 20
    """Passes over the training images."""
    batch_size: BatchSize = 64
    """Images of one optimizer step, over all workers."""
    micro_batch_size: NonNegativeCount = 0
    """Most images whose gradient a worker computes at once; a larger share of a step is
    accumulated. 0 takes the whole share."""
    opt: Literal["adamw", "lamb"] = "adamw"
    """Optimizer."""
    opt_eps: PositiveNumber = 1e-8
    """Its epsilon."""
    lr: PositiveNumber = 2e-3
    """Peak learning rate."""
    lr_base_size: NonNegativeCount = 0
    """`lr` is that of this batch size, and scales linearly with `batch_size`; 0 takes `lr` as it
    is."""
    min_lr: NonNegativeNumber = 1e-5
    """Learning rate at the end of the cosine."""
    warmup_epochs: NonNegativeNumber = 2.0
    """Linear warm-up before the cosine."""
    weight_decay: NonNegativeNumber = 0.05
    """Decoupled, on matrices only (timm's rule)."""
    layer_decay: PositiveFraction = 1.0
    """Each layer's learning rate is this much of the next one's, as in fine-tuning."""
    clip_grad: NonNegativeNumber = 0.0
    """Largest gradient norm; 0 clips nothing."""
    model_ema_decay: Fraction = 0.0
    """Decay of the averaged weights that are then the ones evaluated; 0 keeps none."""
    model_ema_warmup: bool = False
    """Begin with a smaller decay, for a run too short for its decay."""

    smoothing: Fraction = 0.1
    """Label smoothing."""
    bce_loss: bool = False
    """Binary cross-entropy of each class instead of cross-entropy, as in DeiT III."""
    mixup: NonNegativeNumber = 0.0
    """Mixup's alpha; 0 is off."""
    cutmix: NonNegativeNumber = 0.0
    """CutMix's alpha; 0 is off."""
    mixup_prob: Probability = 1.0
    """How many batches are mixed, where any are."""
    mixup_switch_prob: Probability = 0.5
    """How many of the mixed batches are by CutMix, where both are on."""
    drop: Fraction = 0.0
    """Dropout."""
    attn_drop: Fraction = 0.0
    """Dropout of attention."""
    drop_path: Fraction = 0.0
    """Stochastic depth of the last layer, growing linearly from 0."""

    aug_repeats: Repeats = 1
    """Repeated augmentation: an epoch has as many images, each so many times; in as many epochs
    every image has come so often."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Of evaluation."""
    crop_pct: PositiveFraction = 0.875
    """Part of the shorter side that evaluation keeps."""
    tone_range: str = ""
    """Values that are black and white in pictures of more than 8 bits, as LOW:HIGH, such as 0:4095;
    by default what a sample of the training images shows (8 to 16 bits; floats of 0:1, -1:1 or
    0:255). A picture with values outside is not used."""
    background: Colour = BACKGROUND
    """Colour that transparent pictures are put on, by name or as #rrggbb."""
    mean: Annotated[tuple[Probability, ...], tyro.conf.Suppress] = ()
    """Of each channel, in 0 to 1; by default the data's own, or ImageNet's."""
    std: Annotated[tuple[PositiveNumber, ...], tyro.conf.Suppress] = ()
    """Standard deviation of each channel; by default as `mean`."""

    teacher: str = ""
    """Network to learn from beside the labels: an exported folder, or timm:NAME."""
    teacher_checkpoint: str = ""
    """File with the weights of `teacher`'s timm:NAME, instead of those that timm fetches."""
    distillation: Literal["soft", "hard"] = "hard"
    """From the teacher's probabilities, or from its answer."""
    distillation_alpha: Probability = 0.5
    """The teacher's part of the loss."""
    distillation_tau: PositiveNumber = 1.0
    """Temperature of the teacher's probabilities."""

    amp: bool = False
    """bfloat16 autocast."""
    compile: bool = False
    """`torch.compile`, block by block."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass, to save memory."""
    grad_compression: Literal["none", "bf16"] = "none"
    """How gradients travel between workers: bf16 sends half the bytes, rounded."""
    num_loaders: ProcessesOrZero = 0
    """DataLoader processes of each worker; 0 loads in the worker itself."""
    decoder: Decoder = "pil"
    """What decodes images."""
    shuffle_window: PositiveCount = 4_096
    """Images among which is shuffled, where they lie in Parquet row groups: the groups come in
    random order, and so many images are mixed with each other and kept in memory."""
    max_bad_fraction: Fraction = 0.05
    """More unreadable images than this end the run."""
    max_loss_spike: NonNegativeNumber = 0.0
    """A step whose loss is more than so many times the running mean ends the run; 0 allows all."""

    checkpoint_every: NonNegativeCount = 1
    """Epochs between checkpoints; 0 writes none at an epoch's end but the last."""
    checkpoint_steps: NonNegativeCount = 0
    """Steps between checkpoints; 0 does not count them."""
    checkpoint_minutes: NonNegativeNumber = 0.0
    """Minutes between checkpoints; 0 does not look at the clock."""
    keep_checkpoints: PositiveCount = 2
    """Newest checkpoints that are kept, beside the best."""

    @field_validator("data", "init", "init_checkpoint", "teacher", "teacher_checkpoint")
    @classmethod
    def _locate(cls, where: str, info: ValidationInfo) -> str:
        """Paths are made absolute: a worker may have another working directory."""
        if (shown := without_secrets(where)) != where:
            raise ValueError(
                f"{info.field_name} must be without user and password, as it is written down with "
                f"the run, got {shown!r}; give them in the environment"
            )
        if not where or where.startswith("timm:"):
            return where
        *kind, path = where.split(":", 2) if where.startswith("torchvision") else [where]
        is_path = "/" in path or os.path.exists(path)  # Path.exists raises where a name is too long
        return ":".join([*kind, Folder.at(path).uri]) if is_path else where

    @field_validator("tone_range")
    @classmethod
    def _check_tone_range(cls, text: str) -> str:
        return format_tone_range(parse_tone_range(text)) if text else text

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.warmup_epochs >= self.epochs and self.epochs > 1:
            raise ValueError(
                f"warmup_epochs must be less than epochs={self.epochs}, got {self.warmup_epochs}"
            )
        if self.min_lr > self.peak_lr:
            raise ValueError(f"min_lr must be at most lr={self.peak_lr:g}, got {self.min_lr}")
        return self

    @model_validator(mode="after")
    def _check_loss(self) -> Self:
        if self.bce_loss and self.smoothing:
            raise ValueError(f"smoothing must be 0 with bce_loss, got {self.smoothing}")
        if self.init_checkpoint and not self.init.startswith("timm:"):
            raise ValueError(f"init must be timm:NAME with init_checkpoint, got {self.init!r}")
        if self.teacher_checkpoint and not self.teacher.startswith("timm:"):
            raise ValueError(
                f"teacher must be timm:NAME with teacher_checkpoint, got {self.teacher!r}"
            )
        return self

    @property
    def peak_lr(self) -> float:
        scale = self.batch_size / self.lr_base_size if self.lr_base_size else 1.0
        return self.lr * scale


class PathConfig(Value):
    """Which specs of a supernet a step trains: drawn by seed and step, the same on every worker."""

    paths: Literal["sandwich", "single"] = "sandwich"
    """Of a supernet's step: the largest, the smallest and some drawn (Yu & Huang, arXiv
    1903.05134), or one drawn."""
    drawn_paths: Repeats = 2
    """How many of a sandwich are drawn."""
    inplace_distillation: bool = False
    """In a sandwich, all but the largest learn from its answer instead of the labels. In a short
    training its answers are long no better than chance."""
    draw_evenly_over: Literal["families", "specs", "macs"] = "families"
    """families: each pooling kind and patch size, whose weights are its own, is as likely as any
    other, and each of its specs; specs: each of all; macs: each cost, where most specs are of
    middling cost."""


class SupernetConfig(Value):
    """One set of weights that is trained for every spec of a space within limits."""

    space: SearchSpace
    limits: Limits = Limits()
    paths: PathConfig = PathConfig()


UNSUPPORTED_IN_SUPERNET = ("init", "img_size", "layer_decay", "compile")


class Configuration(Value):
    """One thing to train: an architecture and everything else of its run."""

    spec: ArchSpec
    train: TrainConfig = TrainConfig()
    supernet: SupernetConfig | None = None
    """Where it is given, its weights are trained, and `spec` is the one of its specs that is
    evaluated at the end of each epoch."""

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        self.trained_spec  # noqa: B018  # a size that the patches do not divide raises here
        return self

    @model_validator(mode="after")
    def _check_supernet(self) -> Self:
        if self.supernet is None:
            return self
        self.supernet.space.encode(self.spec)
        for name in UNSUPPORTED_IN_SUPERNET:
            usual, got = TrainConfig.model_fields[name].default, getattr(self.train, name)
            if got != usual:
                raise ValueError(f"{name} must be {usual!r} for a supernet, got {got!r}")
        return self

    @property
    def trained_spec(self) -> ArchSpec:
        """What is trained: `spec`, on images of the size that `train` asks for."""
        if not self.train.img_size:
            return self.spec
        return ArchSpec.model_validate({**dict(self.spec), "img_size": self.train.img_size})

    @property
    def key(self) -> str:
        """Names the record, the folder and the MLflow run. Fields at their defaults do not enter,
        as in `ArchSpec.spec_id`."""
        config = json.dumps(self.train.model_dump(exclude_defaults=True), sort_keys=True)
        named = f"{self.spec.spec_id} {config}"
        if self.supernet:
            named += self.supernet.model_dump_json(exclude_defaults=True)
        return hashlib.sha256(named.encode()).hexdigest()[:12]
