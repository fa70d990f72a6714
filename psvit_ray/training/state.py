"""All of a run that changes from step to step."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from psvit_ray.data.loading.loader import mix_seed
from psvit_ray.data.loading.transforms import Preprocessing
from psvit_ray.data.sources.image_source import Source
from psvit_ray.export.networks import load_network
from psvit_ray.model.pretrained import LoadedWeights, load_pretrained
from psvit_ray.model.psvit import PSViT
from psvit_ray.model.supernet import Supernet
from psvit_ray.training.checkpoint import Checkpoint, RunInfo
from psvit_ray.training.config import Configuration, SupernetConfig, TrainConfig

GREY_MEAN, GREY_STD = (0.449,), (0.226,)  # of ImageNet's channels taken together


def build_model(configuration: Configuration) -> PSViT:
    """The network with its first weights, which are a function of the seed."""
    torch.manual_seed(mix_seed(configuration.train.seed))
    return PSViT(configuration.trained_spec, **_rates(configuration.train))


def build_supernet(config: SupernetConfig, train: TrainConfig) -> Supernet:
    """With its first weights, which are a function of the seed."""
    torch.manual_seed(mix_seed(train.seed))
    return Supernet(config.space, **_rates(train))


def _rates(train: TrainConfig) -> dict[str, Any]:
    return {
        "drop_rate": train.drop,
        "attn_drop_rate": train.attn_drop,
        "drop_path_rate": train.drop_path,
    }


def load_init(model: PSViT, config: TrainConfig) -> LoadedWeights | None:
    """Puts the weights to start from into a network; None where none are named. Raises ValueError
    where they cannot be read, or nothing of them fits."""
    if not config.init:
        return None
    network = load_network(config.init, config.init_checkpoint, field="init")
    try:
        return load_pretrained(model, network.model.state_dict())
    except ValueError as error:
        raise ValueError(f"init {config.init}: {error}") from None


def run_info(configuration: Configuration, source: Source) -> RunInfo:
    """Classes from the data; preprocessing from the configuration, else from the data, else
    ImageNet's. Raises ValueError for channels that no picture has."""
    train, spec = configuration.train, configuration.trained_spec
    usual = (
        (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        if spec.in_chans == 3
        else (GREY_MEAN, GREY_STD)
    )
    preprocessing = Preprocessing(
        img_size=spec.img_size,
        in_chans=spec.in_chans,
        mean=train.mean or source.mean or usual[0],
        std=train.std or source.std or usual[1],
        interpolation=train.interpolation,
        crop_pct=1.0 if source.img_size else train.crop_pct,  # such images come as they are
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
    """Of the epoch under way, over all workers: what its end will report."""

    loss_sum: float = 0.0
    images: int = 0
    bad: int = 0
    running_loss: float | None = None
    """Of about the last hundred steps, over epochs too."""

    def next_epoch(self) -> None:
        self.loss_sum, self.images, self.bad = 0.0, 0, 0


@dataclass
class TrainState:
    """Network, averaged weights, optimizer, and how far they have come."""

    run: RunInfo
    model: PSViT | Supernet
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    step: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)

    @classmethod
    def of(cls, run: RunInfo, device: torch.device, start: Checkpoint | None) -> TrainState:
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
        """The network that metrics speak of; of a supernet, that of the configuration's spec."""
        model: nn.Module = self.ema.module if self.ema else self.model
        return model.extract(self.run.configuration.spec) if isinstance(model, Supernet) else model

    def checkpoint(self) -> Checkpoint:
        """As it is now: later steps do not change it."""
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
        return {name: _copied(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_copied(one) for one in value]
    return value
