"""The configuration of a training: everything that decides a run but its architecture."""

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
from psvit_ray.data.images.options import Decoder
from psvit_ray.data.loading.augmentation import Augmentation, Probability
from psvit_ray.data.splits.layout import DataSettings, PositiveFraction, Seed
from psvit_ray.storage.folder import Folder
from psvit_ray.text.secrets import without_secrets
from psvit_ray.training.results import MetricName

MAX_VALUE = 1_000_000_000
"""Largest value of anything that is counted or measured: more is a slip, and would overflow a clock
or a generator."""
PositiveNumber = Annotated[Finite, Field(gt=0, le=MAX_VALUE)]
NonNegativeNumber = Annotated[Finite, Field(ge=0, le=MAX_VALUE)]
Fraction = Annotated[Finite, Field(ge=0, lt=1)]
PositiveCount = Annotated[int, Field(ge=1, le=MAX_VALUE)]
NonNegativeCount = Annotated[int, Field(ge=0, le=MAX_VALUE)]
Epochs = Annotated[int, Field(ge=1, le=1_000_000)]
"""Epochs, up to a thousand times those of the longest published trainings."""
BatchSize = Annotated[int, Field(ge=1, le=1_000_000)]
"""Images of a batch; LAMB's authors trained with 65,536."""
Processes = Annotated[int, Field(ge=1, le=1_024)]
"""Processes or threads of one host: all are started at once."""
ProcessesOrZero = Annotated[int, Field(ge=0, le=1_024)]
"""Processes or threads of one host, or none."""
NumWorkers = Annotated[int, Field(ge=1, le=100_000)]
"""Workers of a cluster."""
PixelsOrZero = Annotated[int, Field(ge=0, le=MAX_IMG_SIZE)]
"""Side of an image in pixels, or 0 for a default."""
Runs = Annotated[int, Field(ge=1, le=1_000_000)]
"""Configurations of a search, each of which is a record, a folder and a run in MLflow."""
Repeats = Annotated[int, Field(ge=1, le=1_000)]
"""Repeats of each configuration or image: all are listed before the first begins."""


class TrainConfig(Augmentation, DataSettings):
    """Settings of the training of one network. Names are those of timm's `train.py` where it has
    one."""

    img_size: PixelsOrZero = 0
    """Side of the images in training and evaluation, in pixels; 0 takes the architecture's. A
    smaller size gives a cheaper proxy; costs are still reported for the architecture's own size."""
    seed: Seed = 0
    """Seed of the initial weights, the order of the images and their augmentation."""

    init: str = ""
    """Initial weights: an exported folder, or timm:NAME. Parameters that do not fit keep their
    random initialisation."""
    init_checkpoint: str = ""
    """File with the weights of timm:NAME in `init`, instead of those that timm downloads."""

    metric: MetricName = "top1"
    """Measure on the hold-out that configurations, candidates and the checkpoints of a run are
    ranked by: top-1, loss, balanced top-1 (mean recall of the classes), AUROC (two classes), or F1
    (with two classes that of the rarer one, else the mean over the classes)."""
    class_weights: Literal["none", "balanced"] = "none"
    """Weights of the images in the loss: none, or balanced, so that all classes weigh the same
    (images / (classes * images of the class)). A mixed image weighs as its labels do in their
    parts; what is distilled weighs as the labels."""
    sampler: Literal["shuffled", "balanced"] = "shuffled"
    """Images of an epoch: all of them once, or as many draws with each class equally often, so that
    rare images come several times, augmented differently, and frequent ones in turn."""

    epochs: Epochs = 20
    """Epochs to train."""
    batch_size: BatchSize = 64
    """Images of one optimizer step, over all workers."""
    micro_batch_size: NonNegativeCount = 0
    """Most images that a worker passes through the network at once; gradients of a larger share of
    the batch are accumulated. 0 takes the whole share at once."""
    opt: Literal["adamw", "lamb"] = "adamw"
    """Optimizer."""
    opt_eps: PositiveNumber = 1e-8
    """Epsilon of the optimizer."""
    lr: PositiveNumber = 2e-3
    """Peak learning rate."""
    lr_base_size: NonNegativeCount = 0
    """Batch size that `lr` is meant for: the learning rate is lr * batch_size / lr_base_size. 0
    takes `lr` for every batch size."""
    min_lr: NonNegativeNumber = 1e-5
    """Learning rate at the end of the cosine schedule."""
    warmup_epochs: NonNegativeNumber = 2.0
    """Epochs of linear warm-up before the cosine schedule; at most half of `epochs` are taken."""
    weight_decay: NonNegativeNumber = 0.05
    """Decoupled weight decay; as in timm, biases, norms and embeddings have none."""
    layer_decay: PositiveFraction = 1.0
    """Factor between the learning rates of a layer and of the next, for fine-tuning; 1 gives all
    layers the same."""
    clip_grad: NonNegativeNumber = 0.0
    """Largest gradient norm, to which larger gradients are clipped; 0 does not clip."""
    model_ema_decay: Fraction = 0.0
    """Decay of the exponential moving average (EMA) of the weights, which is then evaluated and
    exported; 0 keeps no average."""
    model_ema_warmup: bool = False
    """Begin with a smaller EMA decay, for trainings that are short beside it."""

    smoothing: Fraction = 0.1
    """Label smoothing."""
    bce_loss: bool = False
    """Use binary cross-entropy for each class instead of cross-entropy, as in DeiT III."""
    mixup: NonNegativeNumber = 0.0
    """Alpha of Mixup; 0 switches it off."""
    cutmix: NonNegativeNumber = 0.0
    """Alpha of CutMix; 0 switches it off."""
    mixup_prob: Probability = 1.0
    """Probability that a batch is mixed, where Mixup or CutMix is on."""
    mixup_switch_prob: Probability = 0.5
    """Probability of CutMix rather than Mixup, where both are on."""
    drop: Fraction = 0.0
    """Dropout rate before the head."""
    attn_drop: Fraction = 0.0
    """Dropout rate of the attention weights."""
    drop_path: Fraction = 0.0
    """Stochastic depth: drop rate of the last layer; those of earlier layers grow linearly from
    0."""

    aug_repeats: Repeats = 1
    """Repeated augmentation: each image of an epoch comes this many times, augmented differently.
    The number of steps stays the same, so that an epoch has only a part of the images."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Interpolation of images that are resized for evaluation."""
    crop_pct: PositiveFraction = 0.875
    """Fraction of the shorter side that the center crop of evaluation keeps."""
    mean: Annotated[tuple[Probability, ...], tyro.conf.Suppress] = ()
    """Mean of each channel, from 0 to 1; by default that of the data, if known, else ImageNet's."""
    std: Annotated[tuple[PositiveNumber, ...], tyro.conf.Suppress] = ()
    """Standard deviation of each channel; by default that of the data, if known, else
    ImageNet's."""

    teacher: str = ""
    """Teacher for distillation: an exported folder, or timm:NAME."""
    teacher_checkpoint: str = ""
    """File with the weights of timm:NAME in `teacher`, instead of those that timm downloads."""
    distillation: Literal["soft", "hard"] = "hard"
    """Targets of the distillation: the teacher's probabilities (soft), or the class that it
    predicts (hard)."""
    distillation_alpha: Probability = 0.5
    """Weight of the distillation loss; the loss of the labels has 1 minus it."""
    distillation_tau: PositiveNumber = 1.0
    """Temperature of soft distillation."""

    amp: bool = False
    """Train and evaluate under bfloat16 autocast, on GPUs only."""
    compile: bool = False
    """Compile each block with `torch.compile`, on GPUs only."""
    grad_checkpointing: bool = False
    """Save memory by recomputing activations in the backward pass."""
    grad_compression: Literal["none", "bf16"] = "none"
    """Compression of gradients between workers: bf16 sends half the bytes, rounded."""
    num_loaders: ProcessesOrZero = 0
    """DataLoader processes of each worker; 0 loads images in the worker itself."""
    decoder: Decoder = "pil"
    """Library that decodes images; torchcodec decodes JPEG only, and Pillow all else."""
    shuffle_window: PositiveCount = 4_096
    """Images that are shuffled with each other, and so kept in memory, when reading Parquet; row
    groups come in random order."""
    max_bad_fraction: Fraction = 0.05
    """Largest fraction of unreadable images; more of them end the run."""
    max_loss_spike: NonNegativeNumber = 0.0
    """Largest ratio of a step's loss to the running mean; a larger one ends the run. 0 allows
    any."""

    checkpoint_every: NonNegativeCount = 1
    """Epochs between checkpoints; 0 writes one at the end of the last epoch only."""
    checkpoint_steps: NonNegativeCount = 0
    """Steps between further checkpoints within epochs; 0 writes none."""
    checkpoint_minutes: NonNegativeNumber = 0.0
    """Minutes between further checkpoints; 0 writes none."""
    keep_checkpoints: PositiveCount = 2
    """Newest checkpoints to keep, beside the best one."""

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

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
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

    @model_validator(mode="after")
    def _check_balance(self) -> Self:
        if self.sampler == "balanced" and self.class_weights == "balanced":
            raise ValueError(
                "class_weights must be none with sampler=balanced, which makes classes weigh the "
                "same already, got 'balanced'"
            )
        if self.sampler == "balanced" and self.aug_repeats > 1:
            raise ValueError(f"aug_repeats must be 1 with sampler=balanced, got {self.aug_repeats}")
        return self

    @property
    def data_settings(self) -> DataSettings:
        """The settings of the data alone: equal for all configurations that are trained on it."""
        fields = DataSettings.model_fields
        return DataSettings.model_validate({name: getattr(self, name) for name in fields})

    @property
    def peak_lr(self) -> float:
        """Peak learning rate for `batch_size`."""
        scale = self.batch_size / self.lr_base_size if self.lr_base_size else 1.0
        return self.lr * scale


class PathConfig(Value):
    """The paths (specs of a supernet) that a step trains, drawn by seed and step: the same on every
    worker."""

    paths: Literal["sandwich", "single"] = "sandwich"
    """Paths of a supernet that a step trains: the largest, the smallest and some drawn ones (the
    sandwich rule of Yu & Huang, arXiv 1903.05134), or a single drawn one."""
    drawn_paths: Repeats = 2
    """Drawn paths of a sandwich, beside the largest and the smallest."""
    inplace_distillation: bool = False
    """Train all paths of a sandwich but the largest on its predictions instead of the labels. For
    much of a short training these are no better than chance."""
    draw_evenly_over: Literal["families", "specs", "macs"] = "families"
    """Distribution of the drawn paths: uniform over families (kinds of pooling and patch sizes,
    which have weights of their own) and then over the specs of one, uniform over all specs, or
    uniform over the logarithm of MACs, as most specs have middling ones."""


class SupernetConfig(Value):
    """A supernet: one set of weights, trained for every spec of a space within limits."""

    space: SearchSpace
    limits: Limits = Limits()
    paths: PathConfig = PathConfig()


UNSUPPORTED_IN_SUPERNET = ("init", "img_size", "layer_decay", "compile")
"""Fields of `TrainConfig` that must keep their defaults in the training of a supernet."""


class Configuration(Value):
    """A training run: an architecture and how it is trained."""

    spec: ArchSpec
    """Architecture to train; of a supernet the spec that is evaluated after each epoch."""
    train: TrainConfig = TrainConfig()
    supernet: SupernetConfig | None = None
    """Supernet to train in place of a single architecture."""

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
            default, got = TrainConfig.model_fields[name].default, getattr(self.train, name)
            if got != default:
                raise ValueError(f"{name} must be {default!r} for a supernet, got {got!r}")
        return self

    @property
    def trained_spec(self) -> ArchSpec:
        """The architecture that is trained: `spec`, for images of the size in `train`."""
        if not self.train.img_size:
            return self.spec
        return ArchSpec.model_validate({**dict(self.spec), "img_size": self.train.img_size})

    @property
    def key(self) -> str:
        """Key of the configuration, which names its record, folder and MLflow run. Fields at their
        defaults do not enter, as in `ArchSpec.spec_id`."""
        config = json.dumps(self.train.model_dump(exclude_defaults=True), sort_keys=True)
        named = f"{self.spec.spec_id} {config}"
        if self.supernet:
            named += self.supernet.model_dump_json(exclude_defaults=True)
        return hashlib.sha256(named.encode()).hexdigest()[:12]
