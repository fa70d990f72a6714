"""DeiT and ViT weights of timm in a PSViT: unpooled and unshared, it is the same network."""

from __future__ import annotations

import torch
from timm.models import VisionTransformer
from timm.models.vision_transformer import Block
from torch import nn

from psvit_ray.arch.spec import ArchSpec, StageSpec
from psvit_ray.model.psvit import PSViT


def from_timm(model: VisionTransformer) -> PSViT:
    """The one-stage PSViT that computes what `model` does, with a copy of its weights.

    Takes timm's `deit_*`, `deit3_*` and `vit_*` with a class token. Rates (dropout, stochastic
    depth) are not taken over. Raises ValueError for a network that no ArchSpec describes.
    """
    _check_plain(model)
    block, patch = model.blocks[0], model.patch_embed
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
    ours = PSViT(spec).to(model.pos_embed)
    ours.load_state_dict(weights, strict=True)
    return ours.train(model.training)


def _check_plain(model: VisionTransformer) -> None:
    """Raise ValueError if `model` has a part that a PSViT has not."""
    if not isinstance(model, VisionTransformer):
        raise ValueError(f"from_timm takes a timm VisionTransformer, got {type(model).__name__}")
    if not all(type(block) is Block for block in model.blocks):
        raise ValueError("from_timm takes timm's plain pre-norm blocks, got other blocks")
    block, patch = model.blocks[0], model.patch_embed
    reasons = {
        "a distillation token": hasattr(model, "dist_token"),
        "no class token": model.cls_token is None,
        f"{model.num_reg_tokens} register tokens": model.num_reg_tokens > 0,
        f"global_pool={model.global_pool!r}, not 'token'": model.global_pool != "token",
        "no classifier (num_classes=0)": model.num_classes == 0,
        "no position embedding": model.pos_embed is None,
        "a norm before the blocks": not isinstance(model.norm_pre, nn.Identity),
        "a norm of the patches": not isinstance(patch.norm, nn.Identity),
        "no norm after the blocks": not isinstance(model.norm, nn.LayerNorm),
        "a norm after the pooling": not isinstance(model.fc_norm, nn.Identity),
        "images that are not square": len({*patch.img_size}) > 1 or len({*patch.patch_size}) > 1,
        "dynamic image sizes": model.dynamic_img_size,
        "no bias of the patches": patch.proj.bias is None,
        "norms of q and k": not isinstance(block.attn.q_norm, nn.Identity),
        "a norm in attention": not isinstance(block.attn.norm, nn.Identity),
        "gated attention": block.attn.gate is not None,
        "no qkv bias": block.attn.qkv.bias is None,
        "no bias after attention": block.attn.proj.bias is None,
        "a head width other than width / heads": block.attn.attn_dim != model.embed_dim,
        "a norm in the MLP": not isinstance(block.mlp.norm, nn.Identity),
        "an activation other than GELU": type(block.mlp.act) is not nn.GELU,
        "norms with another eps": block.norm1.eps != 1e-6,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        raise ValueError(f"from_timm: no ArchSpec describes this model: {', '.join(found)}")
