"""Learning from a teacher: the losses by their formulas, and what the teacher is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.functional import normalize

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.engine import run_training
from psvit_ray.training.loss import DistillationKind, Teacher, distillation_loss
from psvit_ray.training.source import load_source
from tests.helpers.networks import (
    NAMES,
    TIMM,
    exported,
    facts_of,
    saved,
    spec,
    timms,
    with_random_weights,
)

CPU = torch.device("cpu")


def logits(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(5, 10, generator=generator, dtype=torch.float64)


def images(channels: int = 3, size: int = 32) -> Tensor:
    return torch.randn(4, channels, size, size, generator=torch.Generator().manual_seed(2))


def teacher_of(path: Path, facts: Any = None, **train: Any) -> Teacher:
    """For a student of 32 pixels and ten classes."""
    if facts is not None:
        exported(path, facts)
        train["teacher"] = str(path)
    teacher = Teacher.of(facts_of(spec(), **train), CPU)
    assert teacher is not None
    return teacher


# Losses


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_soft_is_tau_squared_times_the_divergence_of_an_image(tau: float) -> None:
    student, teacher = logits(0), logits(1)
    p, q = (torch.exp(x / tau) for x in (teacher, student))
    p, q = (x / x.sum(dim=1, keepdim=True) for x in (p, q))
    expected = tau**2 * (p * torch.log(p / q)).sum(dim=1)
    torch.testing.assert_close(distillation_loss("soft", student, teacher, tau), expected)


def test_soft_at_any_temperature_has_the_gradient_of_the_logits_difference() -> None:
    """Hinton et al., arXiv 1503.02531, section 2.1: for a high temperature (z - v) / K, for logits
    of mean zero."""
    student, teacher = (x - x.mean(dim=1, keepdim=True) for x in (logits(0), logits(1)))
    student.requires_grad_()
    distillation_loss("soft", student, teacher, 1e4).sum().backward()
    torch.testing.assert_close(student.grad, (student - teacher) / 10, rtol=0, atol=1e-3)


def test_hard_is_the_cross_entropy_with_the_teachers_answer() -> None:
    student, teacher = logits(0), logits(1)
    answers = [max(range(10), key=lambda k: row[k]) for row in teacher.tolist()]
    log_p = student - student.exp().sum(dim=1, keepdim=True).log()
    expected = torch.stack([-row[answer] for row, answer in zip(log_p, answers, strict=True)])
    torch.testing.assert_close(distillation_loss("hard", student, teacher, tau=7.0), expected)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_alpha_is_the_teachers_part_of_the_sum_over_images(
    tmp_path: Path, kind: DistillationKind
) -> None:
    teacher = teacher_of(
        tmp_path / "t", facts_of(spec("2|1", pooling="2d")),
        distillation=kind, distillation_alpha=0.3, distillation_tau=2.0,
    )  # fmt: skip
    x, student = images(), logits(0)[:4].float()
    said = distillation_loss(kind, student, teacher.network.model(x), 2.0).sum()
    mixed = teacher.mixed(torch.tensor(5.0), x, student)
    torch.testing.assert_close(mixed, 0.7 * 5 + 0.3 * said)
    weights = torch.tensor([0.5, 2.0, 0.0, 1.0])
    each = distillation_loss(kind, student, teacher.network.model(x), 2.0)
    weighed = teacher.mixed(torch.tensor(5.0), x, student, weights)
    torch.testing.assert_close(weighed, 0.7 * 5 + 0.3 * (weights * each).sum())


# What the teacher is shown


def test_a_teacher_of_the_same_images_sees_the_same_numbers(tmp_path: Path) -> None:
    teacher = teacher_of(tmp_path / "t", facts_of(spec("4")))
    with torch.no_grad():
        assert torch.equal(teacher.logits(images()), teacher.network.model(images()))


def test_a_teacher_has_its_own_size_and_normalisation(tmp_path: Path) -> None:
    """timm's network of 160 pixels, mean and deviation 0.5."""
    facts = facts_of(spec(), NAMES[:7], teacher=TIMM, teacher_checkpoint=checkpoint(tmp_path))
    teacher = Teacher.of(facts, CPU)
    assert teacher is not None
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    shown = normalize(pixels, facts.preprocessing.mean, facts.preprocessing.std)
    resized = F.interpolate(pixels, (160, 160), mode="bicubic", antialias=True)
    expected = timms(7)(normalize(resized, [0.5] * 3, [0.5] * 3))
    torch.testing.assert_close(teacher.logits(shown), expected, atol=1e-4, rtol=1e-4)


def test_a_teacher_of_colour_sees_grey_images_in_three_channels(tmp_path: Path) -> None:
    exported(tmp_path / "t", facts_of(spec()))
    facts = facts_of(spec(in_chans=1), teacher=str(tmp_path / "t"), mean=(0.3,), std=(0.4,))
    teacher = Teacher.of(facts, CPU)
    assert teacher is not None
    pixels = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(3))
    network = teacher.network
    expected = network.model(normalize(pixels.expand(-1, 3, -1, -1), network.mean, network.std))
    shown = normalize(pixels, [0.3], [0.4])
    torch.testing.assert_close(teacher.logits(shown), expected, atol=1e-5, rtol=1e-5)


def test_a_teacher_does_not_learn(tmp_path: Path) -> None:
    """Of a convolutional network, whose running statistics training mode would move."""
    theirs = with_random_weights(timm.create_model("test_efficientnet", num_classes=10))
    path = saved(tmp_path / "w.pth", theirs.state_dict())
    teacher = teacher_of(tmp_path, teacher="timm:test_efficientnet", teacher_checkpoint=path)
    student = torch.zeros(4, 10, requires_grad=True)
    teacher.mixed(student.sum(), images(), student).backward()
    assert student.grad is not None
    assert student.grad.abs().sum() > 0
    for name, value in teacher.network.model.state_dict(keep_vars=True).items():
        assert value.grad is None
        assert torch.equal(value, theirs.state_dict()[name])


def checkpoint(folder: Path) -> str:
    return saved(folder / "w.pth", timms(7).state_dict())


# What cannot be a teacher


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    exported(tmp_path / "t", facts_of(spec()))
    folder = str(tmp_path / "t")
    with pytest.raises(
        ValueError, match=r"^teacher must know the 10 .* got timm:test_vit.* with 7$"
    ):
        teacher_of(tmp_path, teacher=TIMM, teacher_checkpoint=checkpoint(tmp_path))
    with pytest.raises(
        ValueError, match=r"^teacher must know the 3 classes of the data, got .* 10$"
    ):
        Teacher.of(facts_of(spec(num_classes=3), NAMES[:3], teacher=folder), CPU)
    other = (*NAMES[:8], "nine", "eight")
    with pytest.raises(
        ValueError, match=r"in their order, got .* with '8' in place 9, not 'nine'$"
    ):
        Teacher.of(facts_of(spec(), other, teacher=folder), CPU)


def test_a_teacher_of_grey_images_is_refused_for_colour(tmp_path: Path) -> None:
    grey = facts_of(spec(in_chans=1), mean=(0.5,), std=(0.5,))
    with pytest.raises(
        ValueError, match=r"^teacher must take images of 3 channels, got .* with 1$"
    ):
        teacher_of(tmp_path / "t", grey)


def test_no_teacher_is_none() -> None:
    assert Teacher.of(facts_of(spec()), CPU) is None


# In a run


def test_a_run_learns_from_its_teacher_as_far_as_alpha_says(tmp_path: Path) -> None:
    arch = ArchSpec.model_validate(
        {
            **{"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 10, "pooling": "2d"},
            "stages": [
                {"embed_dim": 16, "num_heads": 2, "hidden_dim": 16, "share_groups": (1,)},
            ],
        }
    )
    exported(tmp_path / "t", facts_of(arch, mean=(0.305,), std=(0.376,)))

    def losses(**train: Any) -> list[float]:
        config = TrainConfig(
            epochs=2, warmup_epochs=1, batch_size=30, data_fraction=0.1, smoothing=0, **train
        )
        configuration = Configuration(spec=arch, train=config)
        reports = run_training(configuration, load_source(configuration))
        return [report.metrics["train/loss"] for report in reports]

    alone = losses()
    named = {"teacher": str(tmp_path / "t"), "distillation": "hard"}
    assert losses(**named, distillation_alpha=0.0) == alone
    taught = losses(**named, distillation_alpha=1.0)
    assert taught != pytest.approx(alone, abs=1e-2)
    in_parts = losses(**named, distillation_alpha=1.0, micro_batch_size=7)
    assert in_parts == pytest.approx(taught, abs=1e-4)
