"""What a step minimises: the loss of labels, Mixup and CutMix, and that of a teacher beside the
labels (DeiT: Touvron et al., arXiv 2012.12877, section 4).

Shapes: B images, C channels, S the side of an image, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from timm.data.mixup import Mixup, mixup_target
from torch import Tensor

from psvit_ray.data.loading.transforms import seed_generators
from psvit_ray.export.networks import Network, load_network
from psvit_ray.training.checkpoint import RunInfo
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
        seed_generators(seed)
        even = len(images) // 2 * 2  # timm mixes pairs; one image that is over stays as it is
        mixed, shares = self._mixup(images[:even], labels[:even])
        alone = mixup_target(labels[even:], self._num_classes, 1.0, self._smoothing)
        images[:even] = mixed
        return images, torch.cat([shares, alone])


def make_mixing(config: TrainConfig, num_classes: int) -> Mixing | None:
    return Mixing(config, num_classes) if config.mixup or config.cutmix else None


DistillationKind = Literal["soft", "hard"]


def distillation_loss(
    kind: DistillationKind, student: Tensor, teacher: Tensor, tau: float = 1.0
) -> Tensor:
    """Logits (B, K) of both to a loss for each image (B,).

    `soft`: tau^2 times the divergence (Kullback-Leibler) of the student's probabilities from the
    teacher's, both at temperature `tau` (the paper's equation 2; DeiT's losses.py divides it by K
    besides). `hard`: cross-entropy with the teacher's answer, whatever `tau`.
    """
    if kind == "hard":
        return F.cross_entropy(student, teacher.argmax(dim=1), reduction="none")
    ours, theirs = (F.log_softmax(logits / tau, dim=1) for logits in (student, teacher))
    return tau**2 * F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)


@dataclass(frozen=True)
class Teacher:
    """A network that is not trained. It sees what the student sees, crop, erasing and mixing
    included, in its own size and normalisation."""

    network: Network
    scale: Tensor
    """With `shift`, (C, 1, 1): the student's normalisation to the teacher's."""
    shift: Tensor
    kind: DistillationKind
    alpha: float
    """The teacher's part of the loss."""
    tau: float
    amp: bool

    @classmethod
    def of(cls, run: RunInfo, device: torch.device, *, amp: bool = False) -> Teacher | None:
        """That of a run, on `device`; None where it has none.

        Raises ValueError where there is no such network, or it does not know the same classes or
        take the same images.
        """
        config = run.configuration.train
        if not config.teacher:
            return None
        network = load_network(config.teacher, config.teacher_checkpoint, field="teacher")
        _check_teacher(network, run)
        network.model.requires_grad_(False).to(device)
        mean, std, their_mean, their_std = (
            torch.tensor(values, dtype=torch.float64)[:, None, None]
            for values in (run.preprocessing.mean, run.preprocessing.std)
            + (network.mean, network.std)
        )
        return cls(
            network=network,
            # A grey image spreads over the three channels of a teacher of colour images.
            scale=(std / their_std).float().to(device),
            shift=((mean - their_mean) / their_std).float().to(device),
            kind=config.distillation,
            alpha=config.distillation_alpha,
            tau=config.distillation_tau,
            amp=amp,
        )

    def mixed(self, loss: Tensor, images: Tensor, logits: Tensor) -> Tensor:
        """The labels' loss and the teacher's, both sums over the images: (1 - alpha) and alpha of
        them. `images` (B, C, S, S) as the student sees them, `logits` (B, K) what it says."""
        each = distillation_loss(self.kind, logits, self.logits(images), self.tau)
        return (1 - self.alpha) * loss + self.alpha * each.sum()

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) normalised for the student to the teacher's logits (B, K)."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.amp):
            return self.network.model(self._as_its_own(images)).float()

    def _as_its_own(self, images: Tensor) -> Tensor:
        images = images * self.scale + self.shift
        size = self.network.img_size
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True)
        return images


def _check_teacher(teacher: Network, run: RunInfo) -> None:
    """Raises ValueError."""
    ours, theirs = run.class_names, teacher.class_names
    if teacher.num_classes != len(ours):
        raise ValueError(
            f"teacher must know the {len(ours):,} classes of the data, got {teacher.name} with "
            f"{teacher.num_classes:,}"
        )
    if theirs is not None and theirs != ours:
        place = next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if len({*pair}) > 1)
        raise ValueError(
            f"teacher must know the classes of the data in their order, got {teacher.name} with "
            f"{theirs[place]!r} in place {place + 1}, not {ours[place]!r}"
        )
    if teacher.in_chans not in (run.preprocessing.in_chans, 3):
        raise ValueError(
            f"teacher must take images of {run.preprocessing.in_chans} channels, got "
            f"{teacher.name} with {teacher.in_chans}"
        )
