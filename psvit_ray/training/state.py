"""The state of a run: network, averaged weights, optimizer and position."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from psvit_ray.data.loading.seeds import mix_seed
from psvit_ray.data.loading.transforms import Preprocessing
from psvit_ray.data.sources.image_source import Source
from psvit_ray.export.networks import load_network
from psvit_ray.model.pretrained import LoadedWeights, load_pretrained
from psvit_ray.model.psvit import PSViT
from psvit_ray.model.supernet import Supernet
from psvit_ray.training.checkpoint import Checkpoint, RunInfo
from psvit_ray.training.config import Configuration, SupernetConfig, TrainConfig

GREY_MEAN, GREY_STD = (0.449,), (0.226,)  # over all channels of ImageNet


def build_model(configuration: Configuration) -> PSViT:
    """The network with its initial weights, which are a function of the seed."""
    torch.manual_seed(mix_seed(configuration.train.seed))
    return PSViT(configuration.trained_spec, **_rates(configuration.train))


def build_supernet(config: SupernetConfig, train: TrainConfig) -> Supernet:
    """The supernet with its initial weights, which are a function of the seed."""
    torch.manual_seed(mix_seed(train.seed))
    return Supernet(config.space, **_rates(train))


def _rates(train: TrainConfig) -> dict[str, Any]:
    return {
        "drop_rate": train.drop,
        "attn_drop_rate": train.attn_drop,
        "drop_path_rate": train.drop_path,
    }


def load_init(model: PSViT, config: TrainConfig) -> LoadedWeights | None:
    """Copies the weights of `config.init` into a network, and returns what was taken; None if there
    is no `init`. Raises ValueError if they cannot be read, or if none of them fits."""
    if not config.init:
        return None
    network = load_network(config.init, config.init_checkpoint, field="init")
    try:
        return load_pretrained(model, network.model.state_dict())
    except ValueError as error:
        raise ValueError(f"init {config.init}: {error}") from None


def run_info(configuration: Configuration, source: Source) -> RunInfo:
    """The description of a run: classes are those of the data; mean and deviation are those of the
    configuration, else of the data, else ImageNet's. Raises ValueError for numbers of channels that
    no picture has."""
    train, spec = configuration.train, configuration.trained_spec
    default_mean, default_std = (
        (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        if spec.in_chans == 3
        else (GREY_MEAN, GREY_STD)
    )
    preprocessing = Preprocessing(
        img_size=spec.img_size,
        in_chans=spec.in_chans,
        mean=train.mean or source.mean or default_mean,
        std=train.std or source.std or default_std,
        interpolation=train.interpolation,
        crop_pct=1.0 if source.img_size else train.crop_pct,  # images of one size are not cropped
        tones=source.tones,
        background=train.background,
    )
    return RunInfo(
        configuration=configuration,
        class_names=source.class_names,
        preprocessing=preprocessing,
        data_digest=source.digest,
    )


@dataclass
class Progress:
    """Sums of the unfinished epoch, over all workers."""

    loss_sum: float = 0.0
    """Sum of the losses of the images."""
    images: int = 0
    """Images that were trained on."""
    bad: int = 0
    """Images that could not be read."""
    running_loss: float | None = None
    """Running mean of the loss over about a hundred steps, across epochs; None before the first
    step."""

    def next_epoch(self) -> None:
        """Sets the sums to zero."""
        self.loss_sum, self.images, self.bad = 0.0, 0, 0


@dataclass
class TrainState:
    """Network, averaged weights, optimizer and position of a run."""

    run: RunInfo
    model: PSViT | Supernet
    ema: ModelEmaV3 | None
    """Averaged weights; None if weights are not averaged."""
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    """Completed epochs."""
    step: int = 0
    """Completed optimizer steps."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """Reports of the completed epochs."""
    progress: Progress = field(default_factory=Progress)

    @classmethod
    def of(cls, run: RunInfo, device: torch.device, start: Checkpoint | None) -> TrainState:
        """The state of a run that begins, or that resumes from the checkpoint `start`. Raises
        ValueError if the weights of `init` cannot be used."""
        config, supernet = run.configuration.train, run.configuration.supernet
        model: PSViT | Supernet
        if supernet:
            model = build_supernet(supernet, config)
        else:
            model = build_model(run.configuration)
            if start is None:
                load_init(model, config)
        model.set_grad_checkpointing(config.grad_checkpointing)
        model.to(device)
        fused: dict[str, Any] = {"fused": True} if config.opt == "adamw" else {}
        optimizer = create_optimizer_v2(
            model,
            opt=config.opt,
            lr=config.peak_lr,
            weight_decay=config.weight_decay,
            eps=config.opt_eps,
            layer_decay=config.layer_decay if config.layer_decay < 1 else None,
            **fused,
        )
        ema = None
        if config.model_ema_decay:
            ema = ModelEmaV3(model, config.model_ema_decay, use_warmup=config.model_ema_warmup)
        state = cls(run, model, ema, optimizer)
        if start:
            state._go_on_from(start)
        return state

    def _go_on_from(self, start: Checkpoint) -> None:
        self.model.load_state_dict(start.model)
        self.optimizer.load_state_dict(start.optimizer)
        if self.ema and start.ema:
            self.ema.module.load_state_dict(start.ema)
        self.epoch, self.step, self.curve = start.epoch, start.step, list(start.curve)
        self.progress = Progress(**start.progress)

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated, with the averaged weights if there are any; of a supernet,
        the network of the configuration's spec."""
        model: nn.Module = self.ema.module if self.ema else self.model
        return model.extract(self.run.configuration.spec) if isinstance(model, Supernet) else model

    def checkpoint(self) -> Checkpoint:
        """A copy of the state in host memory, which later steps do not change."""
        return Checkpoint(
            run=self.run,
            epoch=self.epoch,
            step=self.step,
            model=_copied(self.model.state_dict()),
            ema=_copied(self.ema.module.state_dict()) if self.ema else None,
            optimizer=_copied(self.optimizer.state_dict()),
            curve=list(self.curve),
            progress=copy.copy(vars(self.progress)),
        )


def _copied(value: Any) -> Any:
    """Tensors copied to the host, in dicts and lists of whatever depth."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value
