"""Conversion of timm's DeiT and ViT to a PSViT, which unpooled and unshared is the same network."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention, Mlp
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from psvit_ray.arch.spec import ArchSpec, StageSpec
from psvit_ray.model.psvit import PSViT


def from_timm(model: VisionTransformer) -> PSViT:
    """The one-stage PSViT that computes the same function as `model`, with a copy of its weights.

    `model` is one of timm's `deit_*`, `deit3_*` or `vit_*` with a class token. Rates of dropout and
    stochastic depth are not copied. Raises ValueError for a network that no ArchSpec describes.
    """
    _check_plain(model)
    block: Any = model.blocks[0]
    patch = model.patch_embed
    spec = ArchSpec(
        img_size=patch.img_size[0],
        patch_size=patch.patch_size[0],
        in_chans=model.in_chans,
        num_classes=model.num_classes,
        pooling="1d",
        layer_scale=not isinstance(block.ls1, nn.Identity),
        stages=(
            StageSpec(
                embed_dim=model.embed_dim,
                num_heads=block.attn.num_heads,
                hidden_dim=block.mlp.fc1.out_features,
                share_groups=(1,) * len(model.blocks),
            ),
        ),
    )
    weights = {
        name.replace("blocks.", "stages.0.blocks.", 1): value
        for name, value in model.state_dict().items()
    }
    if model.no_embed_class:  # DeiT III: the class token has no position, here a zero one
        no_position = torch.zeros_like(weights["cls_token"])
        weights["pos_embed"] = torch.cat((no_position, weights["pos_embed"]), dim=1)
    psvit = PSViT(spec).to(model.pos_embed)
    _check_same_parts(weights, psvit.state_dict())
    psvit.load_state_dict(weights, strict=True)
    return psvit.train(model.training)


def _check_plain(model: VisionTransformer) -> None:
    """Raises ValueError if `model` differs from a PSViT in something other than parameters."""
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"from_timm takes a timm VisionTransformer, got {type(model).__name__}")
    block: Any = model.blocks[0]
    patch = model.patch_embed
    kinds = (type(block), type(block.attn), type(block.mlp))
    reasons = {
        "no class token": model.cls_token is None,
        "a distillation token": hasattr(model, "dist_token"),
        f"{model.num_reg_tokens} register tokens": model.num_reg_tokens > 0,
        "no position embedding": model.pos_embed is None,
        "no classifier (num_classes=0)": model.num_classes == 0,
        f"global_pool={model.global_pool!r}, not 'token'": model.global_pool != "token",
        "images that are not square": len({*patch.img_size}) > 1 or len({*patch.patch_size}) > 1,
        "images of any size": model.dynamic_img_size,
        "blocks other than timm's Block of Attention and Mlp": kinds != (Block, Attention, Mlp),
        "an activation other than GELU": type(getattr(block.mlp, "act", None)) is not nn.GELU,
        "norms with another eps": getattr(block.norm1, "eps", None) != 1e-6,
    }
    if differences := [reason for reason, holds in reasons.items() if holds]:
        raise ValueError(f"from_timm: no ArchSpec describes a model with {', '.join(differences)}")


def _check_same_parts(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raises ValueError unless both state dicts have the same names and shapes."""
    different = [
        f"{name} ({_shape_text(given, name)}, not {_shape_text(expected, name)})"
        for name in sorted(given.keys() | expected.keys())
        if _shape_text(given, name) != _shape_text(expected, name)
    ]
    if different:
        raise ValueError(
            f"from_timm: no ArchSpec describes this model; {len(different)} of its parameters "
            f"differ from a PSViT's: {', '.join(different[:3])}"
        )


def _shape_text(weights: dict[str, Tensor], name: str) -> str:
    return str(tuple(weights[name].shape)) if name in weights else "none"
