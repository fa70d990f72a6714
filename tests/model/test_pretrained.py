"""Weights of another network in a PSViT: what fits is taken, the rest is said."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from psvit_ray.arch.presets import PRESETS
from psvit_ray.model import LoadedWeights, PSViT, load_pretrained
from tests.helpers.networks import (
    DEPTH,
    DIM,
    SMALL,
    images,
    psvit,
    spec,
    vit,
    with_random_weights,
)


def assert_same_logits(ours: nn.Module, theirs: nn.Module, size: int = 32) -> None:
    with torch.no_grad():
        expected = theirs(images(size))
        assert expected.std() > 0.1  # logits that a missing part would move
        torch.testing.assert_close(ours(images(size)), expected, atol=1e-5, rtol=1e-5)


def whole(model: nn.Module) -> LoadedWeights:
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return LoadedWeights(numbers, numbers, other_shape=(), no_source=(), unused=())


# Unpooled and unshared: everything


def test_a_vit_of_timms_is_taken_whole() -> None:
    ours, theirs = psvit(spec()), vit()
    assert load_pretrained(ours, theirs.state_dict()) == whole(ours)
    assert_same_logits(ours, theirs)


def test_a_preset_takes_timms_network_of_that_name_whole() -> None:
    with torch.device("meta"):
        ours = PSViT(PRESETS["deit_tiny"])
        theirs = timm.create_model("deit_tiny_patch16_224")
    assert load_pretrained(ours, theirs.state_dict()) == whole(ours)


def test_a_psvit_is_taken_whole() -> None:
    arch = spec("2|1-2|1", 32, 48, 64, pooling="2d", layer_scale=True)
    theirs = with_random_weights(PSViT(arch))
    ours = psvit(arch)
    assert load_pretrained(ours, theirs.state_dict()) == whole(ours)
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize("theirs_scaled", [True, False])
@pytest.mark.parametrize("ours_scaled", [True, False])
def test_layer_scales_of_one_side_alone_change_no_logit(
    ours_scaled: bool, theirs_scaled: bool
) -> None:
    theirs = vit(init_values=0.5 if theirs_scaled else None)
    ours = psvit(spec(layer_scale=ours_scaled))
    assert load_pretrained(ours, theirs.state_dict()) == whole(ours)
    assert_same_logits(ours, theirs)


def test_a_class_token_without_a_position_has_one_of_zeros() -> None:
    theirs, ours = vit(no_embed_class=True), psvit(spec())
    assert load_pretrained(ours, theirs.state_dict()) == whole(ours)
    assert_same_logits(ours, theirs)


# In part


@pytest.mark.parametrize("no_embed_class", [False, True])
def test_positions_of_another_grid_are_resized_as_timm_does(no_embed_class: bool) -> None:
    weights = vit(no_embed_class=no_embed_class).state_dict()
    theirs = vit(no_embed_class=no_embed_class, img_size=48)
    theirs.load_state_dict(checkpoint_filter_fn(weights, theirs))
    ours = psvit(spec(img_size=48))
    loaded = load_pretrained(ours, weights)
    assert loaded.resized == (4, 6)
    assert str(loaded).endswith("from these weights, positions resized from 4x4 to 6x6")
    assert_same_logits(ours, theirs, size=48)


def test_a_head_of_other_classes_stays_and_nothing_else_does() -> None:
    theirs, ours = vit(num_classes=7), psvit(spec())
    before = copy.deepcopy(ours.head.state_dict())
    loaded = load_pretrained(ours, theirs.state_dict())
    assert (loaded.other_shape, loaded.no_source, loaded.unused) == (("head",), (), ())
    assert loaded.num_params - loaded.num_taken == 10 * DIM + 10
    assert all(torch.equal(before[name], new) for name, new in ours.head.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(
            ours.forward_features(images()), theirs.forward_features(images())
        )
    assert str(loaded).splitlines() == [
        f"{loaded.num_taken:,} of {loaded.num_params:,} parameters are from these weights",
        "left at first values: head (another shape)",
    ]


def test_a_follower_takes_the_values_of_its_layer_but_no_queries_and_keys() -> None:
    theirs, ours = vit(), psvit(spec("1-3"))
    loaded = load_pretrained(ours, theirs.state_dict())
    assert loaded == whole(ours)
    expected = {
        name.replace("blocks.", "stages.0.blocks.", 1): weight
        for name, weight in theirs.state_dict().items()
    }
    for layer in (2, 3):
        for kind in ("weight", "bias"):
            qkv = expected.pop(f"stages.0.blocks.{layer}.attn.qkv.{kind}")
            expected[f"stages.0.blocks.{layer}.attn.v.{kind}"] = qkv[2 * DIM :]
    assert all(torch.equal(weight, expected[n]) for n, weight in ours.state_dict().items())


def test_a_leader_takes_of_a_follower_only_its_values() -> None:
    theirs, ours = with_random_weights(PSViT(spec("4"))), psvit(spec("1-3"))
    first = copy.deepcopy(ours.blocks[1].attn.qkv.weight)
    loaded = load_pretrained(ours, theirs.state_dict())
    assert loaded.no_source == ("stages.0.blocks.1.attn.q", "stages.0.blocks.1.attn.k")
    assert loaded.num_params - loaded.num_taken == 2 * (DIM * DIM + DIM)
    assert torch.equal(ours.blocks[1].attn.qkv.weight[: 2 * DIM], first[: 2 * DIM])
    assert torch.equal(ours.blocks[1].attn.qkv.weight[2 * DIM :], theirs.blocks[1].attn.v.weight)


def test_a_pooled_network_takes_the_stage_that_has_the_width() -> None:
    theirs, ours = vit(), psvit(spec("1-1|2|1", DIM, 48, 64, pooling="2d"))
    first = copy.deepcopy(ours.state_dict())
    loaded = load_pretrained(ours, theirs.state_dict())
    taken = [name for name, weight in ours.state_dict().items() if not weight.equal(first[name])]
    begin = ("pos_embed", "patch_embed.", "stages.0.")
    assert taken == [name for name in first if name.startswith(begin)]
    assert theirs.pos_embed is not None
    assert torch.equal(ours.pos_embed, theirs.pos_embed[:, 1:])
    for block, timms in zip(ours.blocks[:2], theirs.blocks[:2], strict=True):
        assert all(w.equal(timms.state_dict()[name]) for name, w in block.state_dict().items())
    assert loaded.num_taken == sum(first[name].numel() for name in taken)
    assert str(loaded).splitlines()[1] == (
        "left at first values: stages.1.blocks, norm, head (another shape), "
        "stages.1.pool, stages.2 (not in the weights); not used: cls_token"
    )


def test_layers_go_by_stage_where_there_are_as_many_and_else_by_depth() -> None:
    theirs = with_random_weights(PSViT(spec("1-1-1|1|1")))
    by_stage, by_depth = psvit(spec("1|1|1")), psvit(spec("1|1-1-1"))
    load_pretrained(by_stage, theirs.state_dict())
    load_pretrained(by_depth, theirs.state_dict())

    def matrices(model: PSViT) -> list[Tensor]:
        return [block.mlp.fc1.weight for block in model.blocks]

    layers = matrices(theirs)
    for ours, expected in (
        (by_stage, [layers[0], layers[3], layers[4]]),
        (by_depth, [layers[0], layers[1], layers[2], layers[3]]),
    ):
        assert all(map(torch.equal, matrices(ours), expected))


def test_of_a_distilled_deit_the_second_token_is_left() -> None:
    theirs = with_random_weights(VisionTransformerDistilled(**SMALL, **DEPTH))
    ours = psvit(spec())
    loaded = load_pretrained(ours, theirs.state_dict())
    assert (loaded.num_taken, loaded.unused) == (loaded.num_params, ("dist_token", "head_dist"))
    assert torch.equal(ours.pos_embed[:, 0], theirs.pos_embed[:, 0])
    assert torch.equal(ours.pos_embed[:, 1:], theirs.pos_embed[:, 2:])


def test_a_bias_is_not_taken_without_its_matrix() -> None:
    theirs, ours = vit(mlp_ratio=2), psvit(spec())
    loaded = load_pretrained(ours, theirs.state_dict())
    assert loaded.other_shape == tuple(f"stages.0.blocks.{i}.mlp" for i in range(4))
    blocks: Any = ours.blocks
    assert not blocks[0].mlp.fc2.bias.any()  # as at first, though theirs has as many


def test_what_fits_nowhere_is_refused_and_changes_nothing() -> None:
    ours = psvit(spec())
    first = copy.deepcopy(ours.state_dict())
    with pytest.raises(ValueError, match=r"fits: cls_token is \(1, 1, 64\) there and \(1, 1, 32\)"):
        load_pretrained(ours, vit(embed_dim=64, num_classes=5).state_dict())
    with pytest.raises(
        ValueError, match=r"nothing of these weights fits: they have conv_stem.weig"
    ):
        load_pretrained(ours, timm.create_model("test_efficientnet").state_dict())
    assert all(torch.equal(weight, first[name]) for name, weight in ours.state_dict().items())
