"""Small networks: timm's, ours with random weights, trained and exported ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import timm.data
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from psvit_ray.arch.spec import ArchSpec, StageSpec, parse_pattern
from psvit_ray.data.loading.transforms import Preprocessing
from psvit_ray.model import PSViT
from psvit_ray.training.checkpoint import Checkpoint, RunInfo
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.engine import run_training
from psvit_ray.training.exporting import export_checkpoint, training_info
from psvit_ray.training.source import load_source
from psvit_ray.training.state import TrainState

DIM, HIDDEN = 32, 48
SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "num_classes": 10}
DEPTH: dict[str, Any] = {"embed_dim": DIM, "depth": 4, "num_heads": 2, "mlp_ratio": HIDDEN / DIM}
NAMES = tuple("0123456789")
TIMM = "timm:test_vit.r160_in1k"  # timm's smallest
DIGITS_SPECS = {
    "2d": ArchSpec(
        img_size=8,
        patch_size=2,
        in_chans=1,
        num_classes=10,
        pooling="2d",
        pool_op="conv",
        layer_scale=True,
        stages=(
            StageSpec(embed_dim=16, num_heads=2, hidden_dim=32, share_groups=(1, 2)),
            StageSpec(embed_dim=24, num_heads=2, hidden_dim=48, share_groups=(1,)),
        ),
    ),
    "1d": ArchSpec(
        img_size=8,
        patch_size=2,
        in_chans=1,
        num_classes=10,
        pooling="1d",
        pool_op="max",
        stages=(
            StageSpec(embed_dim=16, num_heads=2, hidden_dim=32, share_groups=(2,)),
            StageSpec(embed_dim=24, num_heads=2, hidden_dim=48, share_groups=(1, 1)),
        ),
    ),
}


def vit(**kwargs: Any) -> VisionTransformer:
    """A DeiT of four layers in which every parameter matters (timm starts biases at 0)."""
    return with_random_weights(VisionTransformer(**{**SMALL, **DEPTH, **kwargs}))


def with_random_weights(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.2 * noise + (1.0 if parameter.ndim == 1 else 0.0)
    return model.eval()


def spec(pattern: str = "1-1-1-1", *dims: int, **frame: Any) -> ArchSpec:
    stages = tuple(
        StageSpec(embed_dim=dim, num_heads=2, hidden_dim=HIDDEN * dim // DIM, share_groups=groups)
        for dim, groups in zip(dims or (DIM,) * 3, parse_pattern(pattern), strict=False)
    )
    return ArchSpec.model_validate({**SMALL, "pooling": "1d", "stages": stages, **frame})


def psvit(arch: ArchSpec) -> PSViT:
    torch.manual_seed(1)
    return PSViT(arch).eval()


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def facts_of(arch: ArchSpec, class_names: tuple[str, ...] = NAMES, **train: Any) -> RunInfo:
    mean, std = train.pop("mean", (0.4, 0.5, 0.6)), train.pop("std", (0.2, 0.2, 0.3))
    return RunInfo(
        configuration=Configuration(spec=arch, train=TrainConfig(**train)),
        class_names=class_names,
        preprocessing=Preprocessing(
            img_size=arch.img_size, in_chans=arch.in_chans, mean=mean, std=std
        ),
    )


def exported(folder: Path, facts: RunInfo) -> PSViT:
    """Writes the folder of a network with random weights, and returns the network."""
    state = TrainState.of(facts, torch.device("cpu"), None)
    assert isinstance(state.model, PSViT)
    with_random_weights(state.model)  # in evaluation mode, too
    checkpoint = state.checkpoint()
    folder.mkdir()
    export_checkpoint(folder, checkpoint, training_info(checkpoint, which="last"))
    return state.model


def timms(num_classes: int = 1000) -> nn.Module:
    return with_random_weights(timm.create_model("test_vit", num_classes=num_classes))


def saved(path: Path, content: Any) -> str:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return str(path)


def trained(spec: ArchSpec, epochs: int = 1) -> list[Checkpoint]:
    """After each epoch, with averaged weights."""
    train = TrainConfig(
        epochs=epochs, data_fraction=0.1, warmup_epochs=0, lr=0.01, model_ema_decay=0.9
    )
    configuration = Configuration(spec=spec, train=train)
    return [
        report.checkpoint() for report in run_training(configuration, load_source(configuration))
    ]
