"""The recipes: they parse, their headers count right, their augmentation exists, and the optimizers
that they ask for come back exactly from a file."""

from __future__ import annotations

import copy
import io
import re
import shlex
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from timm.optim import create_optimizer_v2
from torch.utils.flop_counter import FlopCounterMode

from psvit_ray.arch.cost import count_macs
from psvit_ray.arch.presets import PRESETS
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.commands.command_line import RECIPES
from psvit_ray.data.loading.transforms import Preprocessing, seed_generators, train_transform
from psvit_ray.model import PSViT
from psvit_ray.search.candidates import spread_over_macs
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.state import build_model
from tests.helpers.command_line import parse
from tests.helpers.networks import images, spec

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
IMAGENET = ["deit", "deit3", "distill", "finetune", "short"]
IMAGENET_TRAIN = 1_281_167


def train_job(name: str, *flags: str) -> Any:
    return parse(shlex.join(["train_psvit", "--recipe", name, *flags]))


def header(name: str) -> str:
    """The comment at the top, as one line."""
    text = (RECIPES / f"{name}.yaml").read_text()
    lines = re.split(r"\n(?:only_for|base|train):", text)[0].splitlines()
    assert all(line.startswith("#") for line in lines)
    return " ".join(line.removeprefix("#").strip() for line in lines)


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    assert found, f"{pattern} is not in the header"
    return float(found[1].replace(",", ""))


# Parsing


@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_of_a_header_is_a_sentence_for_the_list(name: str) -> None:
    first = (RECIPES / f"{name}.yaml").read_text().partition("\n")[0]
    assert first.startswith("# ")
    assert first.endswith(".")


def test_these_are_all_recipes_for_imagenet() -> None:
    assert set(NAMES) - {"digits", "digits_deit", "digits_whole", "images"} == set(IMAGENET)


def test_the_space_that_is_trained_whole_has_as_many_as_its_header_says() -> None:
    search = parse("rank_study --recipe digits_whole").search
    specs = spread_over_macs(search.space, search.limits, 100, search.search_seed)
    assert len(set(specs)) == 100 == search.space.size().count
    assert number(r"A space of (\d+) PSViTs", header("digits_whole")) == 100


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_a_training_job_and_names_no_default_wrongly(name: str) -> None:
    content = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    train = train_job(name).train
    assert type(train) is TrainConfig
    said = TrainConfig(**content["train"]).model_dump()
    assert train.model_dump() == said
    assert train.data.endswith(content["train"]["data"])


@pytest.mark.parametrize(
    ("name", "preset", "changes"),
    [
        ("deit", "deit_tiny", {}),
        ("deit3", "deit_small", {"layer_scale": True}),
        ("short", "deit_small", {"pooling": "2d"}),
        ("finetune", "deit_tiny", {}),
        ("distill", "psvit_2d_tiny", {}),
    ],
)
def test_the_base_is_the_network_that_the_header_speaks_of(
    name: str, preset: str, changes: dict[str, Any]
) -> None:
    expected = ArchSpec.model_validate({**dict(PRESETS[preset]), **changes})
    assert train_job(name).base == expected


def test_deit_is_as_published() -> None:
    """The defaults of DeiT's main.py; with 4 x 256 images, as its README has it."""
    train = train_job("deit").train
    published = {
        **{"epochs": 300, "batch_size": 1024, "opt": "adamw", "opt_eps": 1e-8, "min_lr": 1e-5},
        **{"warmup_epochs": 5, "weight_decay": 0.05, "clip_grad": 0, "model_ema_decay": 0.99996},
        **{"smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0, "mixup_prob": 1.0, "drop": 0},
        **{"mixup_switch_prob": 0.5, "drop_path": 0.1, "aa": "rand-m9-mstd0.5-inc1"},
        **{"reprob": 0.25, "remode": "pixel", "recount": 1, "aug_repeats": 3, "hflip": 0.5},
        **{"train_interpolation": "bicubic", "interpolation": "bicubic", "crop_pct": 0.875},
        **{"train_crop_mode": "rrc", "scale": (0.08, 1.0), "ratio": (3 / 4, 4 / 3)},
    }
    assert {name: getattr(train, name) for name in published} == published
    assert train.peak_lr == pytest.approx(5e-4 * 1024 / 512)


def test_distill_is_deit_with_a_teacher() -> None:
    deit, distill = (train_job(name).train.model_dump() for name in ("deit", "distill"))
    assert {name for name in deit if deit[name] != distill[name]} == {"teacher", "micro_batch_size"}
    assert (distill["distillation"], distill["distillation_alpha"]) == ("hard", 0.5)
    assert timm.models.get_pretrained_cfg(distill["teacher"].removeprefix("timm:"))


@pytest.mark.parametrize("name", IMAGENET)
def test_the_commands_of_a_header_parse(name: str) -> None:
    flags = re.findall(r"psvit train (.*)", joined_lines(name))
    assert flags
    for words in flags:
        assert parse(f"train_psvit {words}").recipe == name


def joined_lines(name: str) -> str:
    text = (RECIPES / f"{name}.yaml").read_text()
    return re.sub(r" \\\n# *", " ", text)


# Headers


@pytest.mark.parametrize("name", IMAGENET)
def test_the_cost_in_a_header_is_the_arithmetic(name: str) -> None:
    told, recipe = header(name), train_job(name)
    macs = count_macs(recipe.base)
    assert number(r"([\d.]+) GMACs an image x 3", told) == round(macs / 1e9, 3)
    dataset = number(r" x ([\d,]+) images x", told)
    assert number(r"x ([\d,]+) epochs =", told) == recipe.train.epochs
    teacher = 0.0
    if recipe.train.teacher:
        teacher = number(r"\+ ([\d.]+) GMACs of the teacher", told) * 1e9
        assert teacher == round(flops_of(recipe.train.teacher.removeprefix("timm:")) / 2, -6)
    total = (3 * macs + teacher) * dataset * recipe.train.epochs
    assert number(r"epochs = ([\d.]+e\+\d+) MACs", told) == pytest.approx(total, rel=1e-3)

    rate = number(r"(?:at|say,) ([\d,]+) images/s", told)
    hours = number(r"images/s\): ([\d.]+) at", told)
    assert number(r"Hours = ([\d,]+) x", told) == dataset
    assert number(r"Hours = [\d,]+ x ([\d,]+) /", told) == recipe.train.epochs
    assert hours == pytest.approx(dataset * recipe.train.epochs / rate / 3600, abs=0.05)


@pytest.mark.parametrize("name", [name for name in IMAGENET if name != "finetune"])
def test_the_images_in_a_header_are_those_trained_on(name: str) -> None:
    train = train_job(name).train
    held_out = train.holdout if train.val_as_test else 0
    assert number(r" x ([\d,]+) images x", header(name)) == round(IMAGENET_TRAIN * (1 - held_out))


def flops_of(name: str) -> int:
    with torch.device("meta"):
        model, image = timm.create_model(name).eval(), torch.empty(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counter:
            model(image)
    return counter.get_total_flops()


# Augmentation


@pytest.mark.parametrize("name", IMAGENET)
def test_the_augmentation_of_a_recipe_gives_images(name: str) -> None:
    train = train_job(name).train
    size = Preprocessing(img_size=64, in_chans=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    transform = train_transform(train, size)
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (80, 100, 3), dtype=np.uint8))
    cut = []
    for seed in range(20):
        seed_generators(seed)
        cut.append(torch.as_tensor(transform(picture)))
    assert {(tuple(x.shape), x.dtype) for x in cut} == {((3, 64, 64), torch.uint8)}
    assert not any(torch.equal(cut[0], other) for other in cut[1:])


def test_3_augment_has_its_colour_jitter_and_random_augment_always_acts() -> None:
    size = Preprocessing(img_size=64, in_chans=3, mean=(0.5,) * 3, std=(0.5,) * 3)
    steps = str(train_transform(train_job("deit3").train, size))
    assert "ColorJitter(brightness=(0.7, 1.3)" in steps
    assert all(kind in steps for kind in ("Solarize", "Desaturate", "GaussianBlurRand"))
    steps = str(train_transform(train_job("short").train, size))
    assert steps.count("p=1.0)") + steps.count("p=1.0, ") == 15
    assert "RandAugment(n=2" in steps


# Optimizers


def optimizer_of(model: PSViT, name: str, layer_decay: float | None = None) -> Any:
    extra: dict[str, Any] = {"fused": True} if name == "adamw" else {}
    return create_optimizer_v2(
        model, opt=name, lr=1e-2, weight_decay=0.05, layer_decay=layer_decay, **extra
    )


@pytest.mark.parametrize("name", ["adamw", "lamb"])
@pytest.mark.parametrize("pooling", ["1d", "2d"])
def test_layer_decay_falls_with_depth_and_spares_what_must_not_decay(
    name: str, pooling: str
) -> None:
    model = PSViT(spec("1|2|1", 32, 48, 64, pooling=pooling, layer_scale=True))
    optimizer = optimizer_of(model, name, layer_decay=0.5)
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = {
        names[parameter]: group for group in optimizer.param_groups for parameter in group["params"]
    }
    assert groups.keys() == set(names.values())
    layers = [
        ("patch_embed", "pos_embed", "cls_token"),
        ("stages.0.blocks.0",),
        ("stages.1.pool", "stages.1.blocks.0"),
        ("stages.1.blocks.1",),
        ("stages.2.pool", "stages.2.blocks.0", "norm"),  # as timm's ViT has it
        ("head",),
    ]
    for depth, modules in enumerate(layers):
        found = {n: group["lr_scale"] for n, group in groups.items() if n.startswith(modules)}
        assert set(found.values()) == {0.5 ** (5 - depth)}, found
    plain = {"pos_embed", "cls_token"}
    for name_, group in groups.items():
        decays = model.get_parameter(name_).ndim > 1 and name_ not in plain
        assert group["weight_decay"] == (0.05 if decays else 0)


def steps(model: PSViT, optimizer: Any, first: int, last: int) -> None:
    for step in range(first, last):
        optimizer.zero_grad()
        targets = torch.tensor([step % 10, 3])
        torch.nn.functional.cross_entropy(model(images()), targets).backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + step) * group.get("lr_scale", 1.0)
        optimizer.step()


@pytest.mark.parametrize("name", ["adamw", "lamb"])
@pytest.mark.parametrize("layer_decay", [None, 0.75])
def test_an_optimizer_out_of_a_file_goes_on_as_if_nothing_had_happened(
    name: str, layer_decay: float | None
) -> None:
    model = build_model(Configuration(spec=spec("1|2", 32, 48), train=TrainConfig()))
    optimizer = optimizer_of(model, name, layer_decay)
    steps(model, optimizer, 0, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(model)
    resumed = optimizer_of(other, name, layer_decay)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    steps(model, optimizer, 3, 6)
    steps(other, resumed, 3, 6)
    for parameter, same in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, same)
    assert_equal(optimizer.state_dict(), resumed.state_dict())


def assert_equal(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def test_lamb_clips_the_gradient_as_deit_iiis_does() -> None:
    assert optimizer_of(PSViT(spec()), "lamb").defaults["max_grad_norm"] == 1.0
