"""Training as DeiT's: the engine against a plain loop of timm's parts."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.data import Mixup, create_transform
from timm.data.random_erasing import RandomErasing
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data.loading.loader import GlobalBatchSampler
from psvit_ray.data.loading.seeds import mix_seed
from psvit_ray.data.loading.transforms import seed_generators
from psvit_ray.data.sources.image_source import Source
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.engine import run_training
from psvit_ray.training.state import build_model
from tests.helpers.pictures import IMAGENET, Pictures

IMAGES, STEPS = 12, 50  # an epoch is one step, so that each step's loss is reported
DEIT = ArchSpec.model_validate(
    {
        **{"img_size": 32, "patch_size": 8, "num_classes": 10, "pooling": "1d"},
        "stages": [
            {"embed_dim": 64, "num_heads": 4, "hidden_dim": 256, "share_groups": (1,) * 4},
        ],
    }
)
CONFIG = TrainConfig(
    epochs=STEPS,
    batch_size=IMAGES,
    lr=5e-4,
    lr_base_size=IMAGES // 2,
    warmup_epochs=5,
    min_lr=1e-5,
    weight_decay=0.05,
    smoothing=0.1,
    mixup=0.8,
    cutmix=1.0,
    drop_path=0.1,
    model_ema_decay=0.99,
    model_ema_warmup=True,
    train_crop_mode="rrc",
    train_interpolation="bicubic",
    hflip=0.5,
    color_jitter=0.3,
    aa="rand-m9-mstd0.5-inc1",
    reprob=0.25,
    aug_repeats=3,
    crop_pct=0.875,
)


def plain_loop() -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of the steps and the averaged weights at the end."""
    small: dict[str, Any] = {
        **{"img_size": 32, "patch_size": 8, "num_classes": 10, "embed_dim": 64, "depth": 4},
        **{"num_heads": 4, "drop_path_rate": 0.1},
    }
    model = timm.create_model("deit_tiny_patch16_224", **small).train()
    first = build_model(Configuration(spec=DEIT, train=CONFIG)).state_dict()
    model.load_state_dict({n.replace("stages.0.blocks", "blocks"): w for n, w in first.items()})
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    warmup = 5
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=STEPS - warmup,
        lr_min=1e-5,
        warmup_t=warmup,
        warmup_lr_init=1e-3 / (warmup + 1),
        warmup_prefix=True,
        t_in_epochs=False,
    )
    transform: Any = create_transform(
        32,
        is_training=True,
        use_prefetcher=True,
        color_jitter=0.3,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        **IMAGENET,
    )
    erase = RandomErasing(0.25, mode="pixel", device="cpu")
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=10)
    criterion, ema = SoftTargetCrossEntropy(), ModelEmaV3(model, 0.99, use_warmup=True)
    mean, std = (255 * torch.tensor(IMAGENET[name]).view(3, 1, 1) for name in ("mean", "std"))
    table, sampler, losses = (
        Pictures(IMAGES),
        GlobalBatchSampler(IMAGES, IMAGES, seed=0, repeats=3),
        [],
    )
    for step in range(STEPS):
        sampler.set_position(step + 1)
        ((indices, seeds),) = (draws.T for draws in sampler)
        images = []
        for index, seed in zip(indices.tolist(), seeds.tolist(), strict=True):
            seed_generators(seed)
            image = (torch.as_tensor(transform(table.read(index))).float() - mean) / std
            random.seed(seed)
            torch.manual_seed(seed)
            images.append(erase(image))
        seed_generators(mix_seed(0, step, 0))
        batch, targets = mixup(torch.stack(images), torch.as_tensor(table.labels[indices]))
        torch.manual_seed(mix_seed(0, step, 0))
        schedule.step_update(step)
        loss = criterion(model(batch), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(model, step=step + 1)
        losses.append(loss.item())
    return losses, ema.module.state_dict()


def test_fifty_steps_of_the_deit_recipe_have_the_losses_of_a_plain_loop_of_timm() -> None:
    table: Any = Pictures(IMAGES)
    source = Source("drawn", tuple("0123456789"), table, table, None)
    reports = list(run_training(Configuration(spec=DEIT, train=CONFIG), source))
    losses, averaged = plain_loop()
    assert [report.metrics["train/loss"] for report in reports] == pytest.approx(losses, abs=1e-5)
    assert np.ptp(losses) > 0.1
    saved = reports[-1].checkpoint()
    for name, weight in saved.evaluated.items():
        theirs = averaged[name.replace("stages.0.blocks", "blocks")]
        torch.testing.assert_close(weight, theirs, rtol=0, atol=1e-4)
