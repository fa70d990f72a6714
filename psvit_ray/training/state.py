"""All of a run that changes from step to step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import nn

from psvit_ray.data.loader import mix_seed
from psvit_ray.model.psvit import PSViT
from psvit_ray.training.checkpoint import Checkpoint
from psvit_ray.training.config import Configuration


def build_model(configuration: Configuration) -> PSViT:
    """The network with its first weights, which are a function of the seed."""
    config = configuration.train
    torch.manual_seed(mix_seed(config.seed))
    return PSViT(
        configuration.spec,
        drop_rate=config.drop,
        attn_drop_rate=config.attn_drop,
        drop_path_rate=config.drop_path,
    )


@dataclass
class State:
    """Network, averaged weights, optimizer, and how far they have come."""

    configuration: Configuration
    model: PSViT
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    epoch: int
    step: int
    curve: list[dict[str, Any]]

    @classmethod
    def of(
        cls, configuration: Configuration, device: torch.device, start: Checkpoint | None
    ) -> State:
        config = configuration.train
        model = build_model(configuration).to(device)
        model.set_grad_checkpointing(config.grad_checkpointing)
        optimizer = create_optimizer_v2(
            model, opt="adamw", lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        ema = ModelEmaV3(model, config.model_ema_decay, True) if config.model_ema_decay else None
        if start:
            model.load_state_dict(start.model)
            optimizer.load_state_dict(start.optimizer)
            if ema and start.ema:
                ema.module.load_state_dict(start.ema)
        if config.compile:
            model.compile_blocks()
        epoch, step, curve = (start.epoch, start.step, list(start.curve)) if start else (0, 0, [])
        return cls(configuration, model, ema, optimizer, epoch, step, curve)

    @property
    def evaluated(self) -> nn.Module:
        return self.ema.module if self.ema else self.model

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(
            configuration=self.configuration,
            epoch=self.epoch,
            step=self.step,
            model=self.model.state_dict(),
            ema=self.ema.module.state_dict() if self.ema else None,
            optimizer=self.optimizer.state_dict(),
            curve=self.curve,
        )
