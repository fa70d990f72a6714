"""The arithmetic of cost.py against the network that is built."""

from __future__ import annotations

import random

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from psvit_ray.arch.cost import count_macs, count_params
from psvit_ray.arch.presets import PRESETS, preset
from psvit_ray.arch.spec import ArchSpec, Pooling, StageSpec
from psvit_ray.model import PSViT


def random_spec(rng: random.Random, pooling: Pooling) -> ArchSpec:
    """Any small spec: odd grids, one to three stages, group sizes 1 to 3, every operator."""

    def stage() -> StageSpec:
        heads = rng.randint(1, 4)
        groups = tuple(rng.randint(1, 3) for _ in range(rng.randint(1, 2)))
        return StageSpec(
            embed_dim=heads * rng.choice((4, 6)),
            num_heads=heads,
            hidden_dim=rng.randint(5, 50),
            share_groups=groups,
        )

    patch = rng.choice((1, 2, 4))
    return ArchSpec(
        img_size=patch * rng.randint(3, 9),
        patch_size=patch,
        in_chans=rng.choice((1, 3)),
        num_classes=rng.randint(1, 20),
        pooling=pooling,
        pool_op=rng.choice(("conv", "max", "avg")),
        layer_scale=rng.random() < 0.5,
        stages=tuple(stage() for _ in range(rng.randint(1, 3))),
    )


def measured(spec: ArchSpec) -> tuple[int, int]:
    """MACs and parameters of the network, which computes nothing on the meta device."""
    with torch.device("meta"):
        model = PSViT(spec, attention="explicit").eval()
        images = torch.empty(1, spec.in_chans, spec.img_size, spec.img_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2, sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("pooling", ["1d", "2d"])
def test_costs_by_arithmetic_are_the_counters(
    pooling: Pooling, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PSViT, "init_weights", lambda self, **_: None)  # slow on the meta device
    rng = random.Random(0)
    specs = {spec.spec_id: spec for spec in (random_spec(rng, pooling) for _ in range(40))}
    assert len(specs) >= 35
    for spec in specs.values():
        assert (count_macs(spec), count_params(spec)) == measured(spec), spec


@pytest.mark.parametrize("name", PRESETS)
def test_costs_of_a_preset_are_the_counters(name: str) -> None:
    assert (count_macs(PRESETS[name]), count_params(PRESETS[name])) == measured(PRESETS[name])


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_presets_pool_share_and_cost_what_deit_does(size: str) -> None:
    with torch.device("meta"):
        deit = timm.create_model(f"deit_{size}_patch16_224")
    assert count_params(preset(f"deit_{size}")) == sum(p.numel() for p in deit.parameters())
    published = {"tiny": 1.254e9, "small": 4.603e9, "base": 17.57e9}[size]
    for pooling in ("1d", "2d"):
        spec = preset(f"psvit_{pooling}_{size}")
        assert spec.pooling == pooling
        assert 0.85 <= count_macs(spec) / published <= 1.02
        assert len(spec.stages) == 3
        assert all(max(stage.share_groups) > 1 for stage in spec.stages)


def test_an_unknown_preset_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'psvit_2d_tinny'; nearest is 'psvit_2d_tiny'"):
        preset("psvit_2d_tinny")
