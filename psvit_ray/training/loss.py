"""Losses: of the labels, of labels mixed by Mixup and CutMix, and of a teacher beside the labels
(DeiT: Touvron et al., arXiv 2012.12877, section 4).

Shapes: B images, C channels, S the side of an image, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from psvit_ray.data.loading.transforms import seed_generators
from psvit_ray.export.networks import Network, load_network
from psvit_ray.training.checkpoint import RunInfo
from psvit_ray.training.config import TrainConfig

Loss = Callable[[Tensor, Tensor], Tensor]
"""Takes logits (B, K) and targets, (B,) classes or (B, K) probabilities; returns the sum of the
losses over the images."""


def base_loss(config: TrainConfig, weights: ClassWeights | None = None) -> Loss:
    """The loss of the labels, without a teacher."""
    if config.bce_loss:

        def binary(logits: Tensor, targets: Tensor) -> Tensor:
            of_images = weights.of_images(targets) if weights else None
            return weighted_sum(_binary(logits, targets), of_images)

        return binary

    def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
        # Mixup has smoothed the probabilities already.
        smoothing = 0.0 if targets.is_floating_point() else config.smoothing
        if weights:
            targets, smoothing = weights.of_targets(targets), 0.0
        return F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)

    return cross_entropy


def _binary(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of each image (B,), in which each class of positive probability is a
    target (DeiT III's main.py)."""
    if not targets.is_floating_point():
        targets = F.one_hot(targets, logits.shape[1])
    losses = F.binary_cross_entropy_with_logits(logits, (targets > 0).float(), reduction="none")
    return losses.mean(dim=1)


@dataclass(frozen=True)
class ClassWeights:
    """Weights of the classes in the loss. That of an image is its label's, and of a mixed one its
    labels' in their parts: label smoothing, which gives every class a little of every image, does
    not enter, or the rare classes would draw from all images of the frequent ones."""

    weights: Tensor
    """Weight of each class (K,), with a mean of 1 over the training images."""
    smoothing: float
    """Label smoothing that is in probabilities, and that labels are to get."""

    @classmethod
    def of(cls, config: TrainConfig, labels: np.ndarray, num_classes: int) -> ClassWeights | None:
        """The weights for training images with these labels, (N,), on the host; None if the
        configuration asks for none. A class without images has none to weigh: 0."""
        if config.class_weights == "none":
            return None
        counts = np.bincount(labels, minlength=num_classes)
        there = counts > 0
        weights = np.where(there, len(labels) / (there.sum() * np.maximum(counts, 1)), 0)
        return cls(torch.from_numpy(weights).float(), config.smoothing)

    def to(self, device: torch.device) -> ClassWeights:
        return replace(self, weights=self.weights.to(device))

    def of_images(self, targets: Tensor) -> Tensor:
        """Weight of each image (B,), of targets as a `Loss` takes them."""
        return self._shares(targets).sum(dim=1)

    def of_targets(self, targets: Tensor) -> Tensor:
        """The targets (B, K), smoothed, each label's part with the weight of its class: a cross-
        entropy with them is the weighted one."""
        shares = self._shares(targets)
        rest = self.smoothing / len(self.weights) * shares.sum(dim=1, keepdim=True)
        return (1 - self.smoothing) * shares + rest

    def _shares(self, targets: Tensor) -> Tensor:
        """Weight of each label's part in each image (B, K)."""
        if not targets.is_floating_point():
            return F.one_hot(targets, len(self.weights)) * self.weights
        parts = (targets - self.smoothing / len(self.weights)) / (1 - self.smoothing)
        return parts * self.weights


class Mixing:
    """timm's Mixup and CutMix with a seed for each step. A worker mixes images of its own share of
    the batch."""

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
        """Mixes images (B, C, S, S) in place, and turns labels (B,) into probabilities (B, K)."""
        seed_generators(seed)
        even = len(images) // 2 * 2  # timm mixes pairs; the last image of an odd batch is not mixed
        mixed, targets = self._mixup(images[:even], labels[:even])
        rest = mixup_target(labels[even:], self._num_classes, 1.0, self._smoothing)
        images[:even] = mixed
        return images, torch.cat([targets, rest])


def make_mixing(config: TrainConfig, num_classes: int) -> Mixing | None:
    """Mixup and CutMix as configured; None if both are off."""
    return Mixing(config, num_classes) if config.mixup or config.cutmix else None


DistillationKind = Literal["soft", "hard"]


def distillation_loss(
    kind: DistillationKind, student: Tensor, teacher: Tensor, tau: float = 1.0
) -> Tensor:
    """Distillation loss of each image (B,) from the logits (B, K) of student and teacher.

    `soft` is tau^2 times the Kullback-Leibler divergence of the student's probabilities from the
    teacher's, both at temperature `tau` (DeiT's equation 2; its losses.py also divides by K).
    `hard` is the cross-entropy with the class that the teacher predicts, whatever `tau`.
    """
    if kind == "hard":
        return F.cross_entropy(student, teacher.argmax(dim=1), reduction="none")
    log_probs, targets = (F.log_softmax(logits / tau, dim=1) for logits in (student, teacher))
    return tau**2 * F.kl_div(log_probs, targets, reduction="none", log_target=True).sum(dim=1)


def weighted_sum(losses: Tensor, weights: Tensor | None) -> Tensor:
    """Sum of the losses (B,), each times its image's weight where there are weights (B,)."""
    return (losses if weights is None else losses * weights).sum()


@dataclass(frozen=True)
class Teacher:
    """A trained network whose predictions the student learns. It sees the student's images, with
    crop, erasing and mixing, resized and normalised as it needs them."""

    network: Network
    scale: Tensor
    """Factor (C, 1, 1) from the student's normalisation to the teacher's."""
    shift: Tensor
    """Shift (C, 1, 1) from the student's normalisation to the teacher's, added after `scale`."""
    kind: DistillationKind
    alpha: float
    """Weight of the teacher's part of the loss, from 0 to 1."""
    tau: float
    """Temperature of soft distillation."""
    amp: bool
    """Whether the teacher runs under bfloat16 autocast."""

    @classmethod
    def of(cls, run: RunInfo, device: torch.device, *, amp: bool = False) -> Teacher | None:
        """The teacher of a run, on `device`; None if the run has none.

        Raises ValueError if there is no such network, or if its classes or channels are not those
        of the run.
        """
        config = run.configuration.train
        if not config.teacher:
            return None
        network = load_network(config.teacher, config.teacher_checkpoint, field="teacher")
        _check_teacher(network, run)
        network.model.requires_grad_(False).to(device)
        mean, std, teacher_mean, teacher_std = (
            torch.tensor(values, dtype=torch.float64)[:, None, None]
            for values in (run.preprocessing.mean, run.preprocessing.std)
            + (network.mean, network.std)
        )
        return cls(
            network=network,
            # A grey image spreads over the three channels of a teacher of colour images.
            scale=(std / teacher_std).float().to(device),
            shift=((mean - teacher_mean) / teacher_std).float().to(device),
            kind=config.distillation,
            alpha=config.distillation_alpha,
            tau=config.distillation_tau,
            amp=amp,
        )

    def mixed(
        self, loss: Tensor, images: Tensor, logits: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """(1 - alpha) times the labels' `loss` plus alpha times the distillation loss, both sums
        over the images. `images` (B, C, S, S) are the student's, `logits` (B, K) its output,
        `weights` (B,) those of the images."""
        distillation = distillation_loss(self.kind, logits, self.logits(images), self.tau)
        return (1 - self.alpha) * loss + self.alpha * weighted_sum(distillation, weights)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """The teacher's logits (B, K) for the student's normalised images (B, C, S, S)."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp):
            return self.network.model(self._adapted(images)).float()

    def _adapted(self, images: Tensor) -> Tensor:
        """The student's images in the teacher's normalisation and size."""
        images = images * self.scale + self.shift
        size = self.network.img_size
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        return images


def _check_teacher(teacher: Network, run: RunInfo) -> None:
    """Raises ValueError if the teacher's classes or channels are not those of the run."""
    expected, got = run.class_names, teacher.class_names
    if teacher.num_classes != len(expected):
        raise ValueError(
            f"teacher must know the {len(expected):,} classes of the data, got {teacher.name} with "
            f"{teacher.num_classes:,}"
        )
    if got is not None and got != expected:
        index = next(i for i in range(len(expected)) if got[i] != expected[i])
        raise ValueError(
            f"teacher must know the classes of the data in their order, got {teacher.name} with "
            f"{got[index]!r} in place {index + 1}, not {expected[index]!r}"
        )
    if teacher.in_chans not in (run.preprocessing.in_chans, 3):
        raise ValueError(
            f"teacher must take images of {run.preprocessing.in_chans} channels, got "
            f"{teacher.name} with {teacher.in_chans}"
        )
