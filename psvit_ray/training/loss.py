"""What a step minimises. Shapes: B images, K classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from psvit_ray.data.transforms import seeded
from psvit_ray.training.config import TrainConfig

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, K) and targets, (B,) classes or (B, K) shares, to the sum over the images."""


def base_loss(config: TrainConfig) -> Loss:
    """Of the labels alone."""
    if config.bce_loss:
        return _binary

    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        # Mixup has smoothed the shares already.
        smoothing = 0.0 if targets.is_floating_point() else config.smoothing
        return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)

    return cross_entropy


def _binary(logits: Tensor, targets: Tensor) -> Tensor:
    """Every class that has a share is right (DeiT III, losses of its main.py)."""
    if not targets.is_floating_point():
        targets = F.one_hot(targets, logits.shape[1])
    each = F.binary_cross_entropy_with_logits(logits, (targets > 0).float(), reduction="none")
    return each.mean(dim=1).sum()


class Mixing:
    """timm's Mixup and CutMix, by a seed of the step. Pairs form within a worker's share."""

    def __init__(self, config: TrainConfig, num_classes: int) -> None:
        self._smoothing = config.smoothing
        self._num_classes = num_classes
        self._mixup = Mixup(
            mixup_alpha=config.mixup,
            cutmix_alpha=config.cutmix,
            prob=config.mixup_prob,
            switch_prob=config.mixup_switch_prob,
            label_smoothing=config.smoothing,
            num_classes=num_classes,
        )

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, S, S), in place, and labels (B,) to shares of classes (B, K)."""
        seeded(seed)
        even = len(images) // 2 * 2  # timm mixes pairs; one image that is over stays as it is
        mixed, shares = self._mixup(images[:even], labels[:even])
        alone = mixup_target(labels[even:], self._num_classes, 1.0, self._smoothing)
        images[:even] = mixed
        return images, torch.cat([shares, alone])


def mixing(config: TrainConfig, num_classes: int) -> Mixing | None:
    return Mixing(config, num_classes) if config.mixup or config.cutmix else None
