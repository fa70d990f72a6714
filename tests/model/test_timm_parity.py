"""Unpooled and unshared, a PSViT is timm's DeiT."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

from psvit_ray.arch.cost import count_params
from psvit_ray.arch.presets import PRESETS
from psvit_ray.model import PSViT, from_timm


def with_random_weights(name: str, **kwargs: Any) -> nn.Module:
    """A timm model in which every parameter matters (timm starts biases at 0)."""
    model = timm.create_model(name, **kwargs).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter_name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        ones = ".norm" in parameter_name or parameter_name.endswith(("norm.weight", "gamma"))
        parameter.data = noise * 0.05 + (1.0 if ones and "bias" not in parameter_name else 0.0)
    return model


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("deit_tiny_patch16_224", {}),
        ("deit_small_patch16_224", {}),
        ("deit_base_patch16_224", {"img_size": 96}),
        ("vit_tiny_patch16_224", {"init_values": 0.1, "img_size": 96, "in_chans": 1}),
        ("deit3_small_patch16_224", {"img_size": 96}),
    ],
)
@torch.no_grad()
def test_logits_are_timms(name: str, kwargs: dict[str, Any]) -> None:
    theirs = with_random_weights(name, **kwargs)
    ours = from_timm(theirs)
    images = torch.randn(
        1, kwargs.get("in_chans", 3), *[kwargs.get("img_size", 224)] * 2,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    expected = theirs(images)
    assert expected.std() > 0.1  # logits that a missing part would move
    strategies = ("explicit", "fused", "auto") if "tiny" in name else ("auto",)
    for strategy in strategies:
        for block in ours.blocks:
            block.attn.strategy = strategy
        torch.testing.assert_close(ours(images), expected, atol=1e-4, rtol=0)


def test_from_timm_takes_the_presets_shape_and_copies_the_weights() -> None:
    theirs = timm.create_model("deit_tiny_patch16_224")
    ours = from_timm(theirs)
    assert ours.spec == PRESETS["deit_tiny"]
    assert count_params(ours.spec) == sum(p.numel() for p in theirs.parameters())
    with torch.no_grad():
        theirs.head.weight.zero_()
    assert ours.head.weight.std() > 0
    assert ours.training == theirs.training


TINY = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "num_heads": 2, "depth": 1}


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"reg_tokens": 4}, "4 register tokens"),
        ({"qk_norm": True}, r"stages.0.blocks.0.attn.k_norm.bias \(\(16,\), not none\)"),
        ({"qkv_bias": False}, r"attn.qkv.bias \(none, not \(96,\)\)"),
        ({"global_pool": "avg"}, "global_pool='avg'"),
        ({"global_pool": "avg", "class_token": False}, "no class token"),
        ({"pre_norm": True}, "norm_pre.bias"),
        ({"act_layer": "gelu_tanh"}, "activation other than GELU"),
        ({"num_classes": 0}, "no classifier"),
        ({"final_norm": False}, "norm.bias"),
        ({"mlp_layer": timm.layers.SwiGLU}, "blocks other than"),
    ],
)
def test_what_no_spec_describes_is_refused(kwargs: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        from_timm(timm.models.VisionTransformer(**TINY, **kwargs))


def test_a_distilled_model_and_another_class_are_refused() -> None:
    with pytest.raises(ValueError, match="distillation token"):
        from_timm(timm.create_model("deit_tiny_distilled_patch16_224"))
    with pytest.raises(ValueError, match="takes a timm VisionTransformer, got PSViT"):
        from_timm(PSViT(PRESETS["deit_tiny"]))
