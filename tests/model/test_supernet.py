"""One set of weights for a space: what a subnet computes, and which weights it touches."""

from __future__ import annotations

import random
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from psvit_ray.arch.space import SearchSpace
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.model.psvit import PSViT
from psvit_ray.model.supernet import LeadingParts, Supernet

SPACE = SearchSpace.model_validate(
    {
        "img_size": 8,
        "in_chans": 1,
        "num_classes": 5,
        "patch_size": [1, 2],
        "pooling": ["1d", "2d"],
        "pool_op": ["conv", "max", "avg"],
        "layer_scale": True,
        "num_stages": [1, 2, 3],
        "stages": [
            {"depth": [1, 3], "embed_dim": [12, 8], "head_dim": [2, 4], "mlp_ratio": [2, 1.5]},
            {"depth": [2], "embed_dim": [8, 16], "head_dim": [4], "mlp_ratio": [1]},
            {"depth": [1, 2], "embed_dim": [24], "head_dim": [4, 8], "mlp_ratio": [1, 2]},
        ],
    }
)
LARGEST = ({"depth": [3], "embed_dim": [12], "head_dim": [2], "mlp_ratio": [2], "max_group": 1},)


def drawn(number: int, pooling: str, **changes: object) -> list[ArchSpec]:
    space = SearchSpace.model_validate({**dict(SPACE), "pooling": (pooling,), **changes})
    rng = random.Random(0)
    return [space.sample(rng) for _ in range(number)]


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    torch.manual_seed(0)
    supernet = Supernet(SPACE)
    with torch.no_grad():  # away from zeros and ones, which would hide a part that is missing
        for parameter in supernet.parameters():
            parameter.normal_(std=0.3)
    return supernet


def images(number: int = 2) -> Tensor:
    return torch.randn(number, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pooling", ["1d", "2d"])
def test_a_subnet_is_what_is_extracted(supernet: Supernet, pooling: str) -> None:
    """Logits to 1e-5, of 30 specs; and gradients fall on the weights that are used alone, each as
    large as that of the network extracted."""
    x = images()
    for spec in drawn(30, pooling):
        supernet.zero_grad()
        alone = supernet.extract(spec)
        assert isinstance(alone, PSViT)
        assert alone.spec == spec
        logits = supernet(x, spec)
        torch.testing.assert_close(logits, alone(x), rtol=0, atol=1e-5)
        logits.square().sum().backward()
        alone(x).square().sum().backward()
        touched = [p.grad for p in supernet.parameters() if p.grad is not None]
        ours, theirs = (
            sum(grad.double().square().sum().item() for grad in grads)
            for grads in (touched, [p.grad for p in alone.parameters() if p.grad is not None])
        )
        assert ours == pytest.approx(theirs, rel=1e-4)
        assert sum(grad.numel() for grad in touched) == sum(p.numel() for p in alone.parameters())


def test_an_extracted_network_is_a_copy(supernet: Supernet) -> None:
    (spec,) = drawn(1, "2d")
    before, alone = supernet(images(), spec), supernet.extract(spec)
    with torch.no_grad():
        for parameter in alone.parameters():
            parameter.add_(1)
    assert torch.equal(supernet(images(), spec), before)


def test_every_weight_is_used_by_some_spec(supernet: Supernet) -> None:
    supernet.zero_grad()
    for pooling, num_stages in product(("1d", "2d"), (1, 2, 3)):
        for spec in drawn(30, pooling, num_stages=(num_stages,)):
            supernet(images(1), spec).square().sum().backward()
    unused = [name for name, p in supernet.named_parameters() if p.grad is None]
    assert unused == []


def test_a_step_leaves_unused_parts_alone(supernet: Supernet) -> None:
    """Neither weight decay nor momentum of earlier steps moves them."""
    torch.manual_seed(0)
    supernet = Supernet(SPACE)
    optimizer = torch.optim.AdamW(supernet.parameters(), lr=0.1, weight_decay=0.5)
    large, small = (
        next(spec for spec in drawn(200, "2d") if spec.stages[0].embed_dim == dim)
        for dim in (12, 8)
    )
    for spec in (large, small):
        before = {name: p.detach().clone() for name, p in supernet.named_parameters()}
        optimizer.zero_grad()
        supernet(images(), spec).square().sum().backward()
        optimizer.step()
        for name, parameter in supernet.named_parameters():
            assert torch.equal(parameter, before[name]) == (parameter.grad is None), name


def test_only_positions_and_class_tokens_and_vectors_are_not_decayed(supernet: Supernet) -> None:
    named = supernet.no_weight_decay()
    for name, parameter in supernet.named_parameters():
        kind = name.split(".")[1].rpartition("/")[2]
        assert (name in named) == (kind in ("pos_embed", "cls_token")), name
        assert kind in ("weight", "bias", "gamma", "pos_embed", "cls_token")
        assert (parameter.ndim == 1) == (kind in ("bias", "gamma") or "/norm" in name), name


def test_first_weights_are_those_of_the_largest() -> None:
    """Of the kinds that have one: a subnet of largest widths starts as a PSViT would."""
    torch.manual_seed(3)
    ours = Supernet(SPACE)
    torch.manual_seed(3)
    (largest,) = drawn(1, "1d", num_stages=(1,), patch_size=(1,), stages=LARGEST)
    first = PSViT(largest).state_dict()
    theirs = ours.extract(largest).state_dict()
    assert all(torch.equal(theirs[name], weight) for name, weight in first.items())


def test_a_spec_outside_the_space_is_refused(supernet: Supernet) -> None:
    (spec,) = drawn(1, "2d")
    stage = spec.stages[0].model_copy(update={"hidden_dim": 7})
    outside = spec.model_copy(update={"stages": (stage, *spec.stages[1:])})
    for use in (supernet.extract, lambda one: supernet(images(), one)):
        with pytest.raises(ValueError, match=r"is not in the space: stage1\.mlp_ratio must be one"):
            use(outside)


def test_leading_parts_are_a_leading_part() -> None:
    whole = torch.arange(60.0).reshape(5, 3, 4)
    parts = LeadingParts(whole, [[2, 5], [3], [1, 3, 4]])
    assert len(parts.pieces) == 6
    for a in (2, 5):
        for c in (1, 3, 4):
            assert torch.equal(parts.take((a, 3, c)), whole[:a, :, :c])
    one = LeadingParts(whole, [[5], [3], [4]])
    assert isinstance(one.take((5, 3, 4)), nn.Parameter)
