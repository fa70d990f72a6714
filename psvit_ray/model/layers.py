"""Layers of a PSViT: attention with a map that neighbouring layers share, and token pooling.

Shapes: B images, N tokens (a G x G grid in 2-D), C channels, H heads, D = C // H.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
import torch.fx
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm, LayerScale, Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from psvit_ray.arch.spec import PoolOp

Strategy = Literal["auto", "explicit", "fused"]


class ExplicitMap(NamedTuple):
    """An attention map as softmax weights, computed once: each layer of the group takes one matrix
    product."""

    weights: Tensor  # (B, H, N, N)

    def apply(self, v: Tensor, dropout: nn.Dropout) -> Tensor:
        """Values (B, H, N, D) to their weighted sums (B, H, N, D)."""
        weights: Tensor = dropout(self.weights)
        return weights @ v


class FusedMap(NamedTuple):
    """An attention map as queries and keys: each layer of the group calls the fused kernel, which
    recomputes the map but never writes it to memory."""

    q: Tensor  # (B, H, N, D)
    k: Tensor  # (B, H, N, D)

    def apply(self, v: Tensor, dropout: nn.Dropout) -> Tensor:
        """Values (B, H, N, D) to their weighted sums (B, H, N, D)."""
        rate = dropout.p if dropout.training else 0.0
        return F.scaled_dot_product_attention(self.q, self.k, v, dropout_p=rate)


AttentionMap = ExplicitMap | FusedMap
"""The map that a share group's leader passes to its followers: a tuple of tensors, so that compile,
export and checkpoint pass it through. With dropout each layer draws its own mask."""


def make_map(q: Tensor, k: Tensor, strategy: Strategy, num_layers: int) -> AttentionMap:
    """The map of queries and keys (B, H, N, D), in the form that is faster for the `num_layers`
    layers that use it."""
    if strategy == "auto" and isinstance(q, torch.fx.Proxy):
        strategy = "fused"  # a traced graph has no device yet, and this is right on any
    elif strategy == "auto":
        strategy = choose_strategy(
            q.device.type, q.dtype, q.shape[-2], num_layers, gradients=q.requires_grad
        )
    if strategy == "fused":
        return FusedMap(q, k)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B, H, N, N)
    # Autocast computes a softmax in float32: cast back once here, not in every layer.
    return ExplicitMap(scores.softmax(dim=-1).to(q.dtype))


# `auto`: tokens up to which `explicit` is the faster, for groups of 1, 2, and 3 or more layers,
# by (half precision, gradients wanted). Measured on one x86 core, torch 2.14, C=192, H=3, medians
# of 9 to 60 interleaved calls, 16, 49, 64, 196 and 784 tokens; beyond 784 the map's memory decides.
# explicit / fused images/s at 1, 2, 3 layers and 49 tokens: float32 forward 0.65, 1.01, 1.16, with
# gradients 0.76, 1.00, 1.12; bfloat16 1.3, 2.4, 3.0 and 5.4, 7.2, 8.2; at 784 tokens: float32 0.52,
# 0.69, 1.10 and 0.72, 0.93, 1.04; bfloat16 1.5, 2.3, 2.8 and 1.4, 2.0, 2.4.
_EXPLICIT_ON_CPU_UP_TO = {
    (False, False): (0, 196, 784),
    (False, True): (0, 64, 784),
    (True, False): (784, 784, 784),
    (True, True): (784, 784, 784),
}


def choose_strategy(
    device_type: str, dtype: torch.dtype, num_tokens: int, num_layers: int, *, gradients: bool
) -> Literal["explicit", "fused"]:
    """The strategy behind `auto` for a share group of `num_layers` layers; under autocast `dtype`
    is autocast's. A fixed rule, as with measurements at run time ranks could differ and a resume
    would not be exact.

    Other devices than CPUs always take `fused`, which was reasoned and not measured: flash kernels
    keep the map out of memory, whose bandwidth limits a GPU first.
    """
    if device_type != "cpu":
        return "fused"
    half = dtype in (torch.bfloat16, torch.float16)
    limits = _EXPLICIT_ON_CPU_UP_TO[half, gradients]
    return "explicit" if num_tokens <= limits[min(num_layers, 3) - 1] else "fused"


class Attention(nn.Module):
    """Multi-head self-attention of a share group's leader (`qkv`) or of a follower (`v` only).

    With the strategy `explicit`, `attn_drop` is called on the map (B, H, N, N) in every layer,
    where forward hooks and timm's `AttentionExtract` read it, as in timm's own attention.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        group_size: int | None = 1,
        attn_drop: float = 0.0,
        strategy: Strategy = "auto",
        **dd: Any,
    ) -> None:
        """`group_size` is the number of layers that use this leader's map; None makes a
        follower; `dd` are the device and
        dtype of the parameters."""
        super().__init__()
        self.num_heads = num_heads
        self.group_size = group_size
        self.strategy = strategy
        if group_size is None:
            self.v = nn.Linear(dim, dim, **dd)
        else:
            self.qkv = nn.Linear(dim, 3 * dim, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)

    def forward(
        self, x: Tensor, attention: AttentionMap | None = None
    ) -> tuple[Tensor, AttentionMap]:
        """Output (B, N, C) for tokens (B, N, C), and the map that was used. A leader computes it; a
        follower needs its leader's as `attention`."""
        if self.group_size is None:
            v = self.v(x)
        else:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            attention = make_map(self._heads(q), self._heads(k), self.strategy, self.group_size)
        assert attention is not None, "a follower needs its leader's map"
        x = attention.apply(self._heads(v), self.attn_drop)
        return self.proj(x.transpose(1, 2).flatten(2)), attention

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, N, D)


class Block(nn.Module):
    """A pre-norm transformer layer (timm's `Block`) that also returns the attention map it used."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        *,
        group_size: int | None = 1,
        layer_scale: bool = False,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        strategy: Strategy = "auto",
        **dd: Any,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, **dd)
        self.attn = Attention(
            dim, num_heads, group_size=group_size, attn_drop=attn_drop, strategy=strategy, **dd
        )
        self.ls1 = LayerScale(dim, **dd) if layer_scale else nn.Identity()
        self.norm2 = LayerNorm(dim, **dd)
        self.mlp = Mlp(dim, hidden_dim, **dd)
        self.ls2 = LayerScale(dim, **dd) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(
        self, x: Tensor, attention: AttentionMap | None = None
    ) -> tuple[Tensor, AttentionMap]:
        """Output (B, N, C) for tokens (B, N, C), and the map, as `Attention`."""
        y, attention = self.attn(self.norm1(x), attention)
        x = x + self.drop_path(self.ls1(y))
        x = x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))
        return x, attention


class Stage(nn.Module):
    """A token pooling (none before the first stage), then layers in share groups."""

    def __init__(self, pool: nn.Module, blocks: list[Block], share_groups: tuple[int, ...]) -> None:
        super().__init__()
        self.share_groups = share_groups
        self.pool = pool
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, grad_checkpointing: bool = False) -> Tensor:
        """Tokens of the stage before (B, N, C) to tokens of this one (B, N', C')."""
        x = self.pool(x)
        blocks = iter(self.blocks)
        for size in self.share_groups:
            group = list(islice(blocks, size))
            # A group is recomputed as a whole: its map is never stored across a checkpoint, and
            # recomputed once, not once a layer.
            if grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(run_group, group, x, use_reentrant=False)
            else:
                x = run_group(group, x)
        return x


def run_group(group: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Runs the blocks of a share group, leader first, on tokens (B, N, C)."""
    attention = None
    for block in group:
        x, attention = block(x, attention)
    return x


class TokenPool2d(nn.Module):
    """Token pooling that halves each side of the token grid (odd sides round up) and changes the
    width."""

    def __init__(self, dim: int, dim_out: int, *, grid_size: int, op: PoolOp, **dd: Any) -> None:
        super().__init__()
        self.grid_size = grid_size
        self.conv, self.pool = _conv_and_pool(2, dim, dim_out, op, dd)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, N, C) to tokens (B, N/4, C')."""
        x = x.transpose(1, 2).unflatten(2, (self.grid_size, self.grid_size))  # (B, C, G, G)
        return self.pool(self.conv(x)).flatten(2).transpose(1, 2)  # (B, N/4, C')


class TokenPool1d(nn.Module):
    """Token pooling that halves the sequence of patch tokens (an odd length rounds up) and changes
    the width. The class token bypasses the pool."""

    def __init__(self, dim: int, dim_out: int, *, op: PoolOp, **dd: Any) -> None:
        super().__init__()
        self.cls_proj = nn.Linear(dim, dim_out, **dd)
        self.conv, self.pool = _conv_and_pool(1, dim, dim_out, op, dd)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B, 1 + N, C), the class token first, to tokens (B, 1 + N/2, C')."""
        cls_token, x = x[:, :1], x[:, 1:].transpose(1, 2)  # (B, 1, C), (B, C, N)
        x = self.pool(self.conv(x)).transpose(1, 2)  # (B, N/2, C')
        return torch.cat((self.cls_proj(cls_token), x), dim=1)  # (B, 1 + N/2, C')


def token_pool(
    dim: int, dim_out: int, *, grid_size: int | None, op: PoolOp, **dd: Any
) -> nn.Module:
    """A token pooling from `dim` to `dim_out` channels: 2-D on a grid of side `grid_size`, 1-D
    where that is None."""
    if grid_size is None:
        return TokenPool1d(dim, dim_out, op=op, **dd)
    return TokenPool2d(dim, dim_out, grid_size=grid_size, op=op, **dd)


def _conv_and_pool(
    ndim: int, dim: int, dim_out: int, op: PoolOp, dd: dict[str, Any]
) -> tuple[nn.Module, nn.Module]:
    """The convolution that changes the width, and the pooling after it; `conv` pools with its
    stride and needs none."""
    conv = nn.Conv1d if ndim == 1 else nn.Conv2d
    if op == "conv":
        return conv(dim, dim_out, kernel_size=3, stride=2, padding=1, **dd), nn.Identity()
    if op == "max":
        pool: nn.Module = (nn.MaxPool1d if ndim == 1 else nn.MaxPool2d)(2, ceil_mode=True)
    else:
        # The last window of an odd side is the mean of its tokens, not of zeros beside them.
        average = nn.AvgPool1d if ndim == 1 else nn.AvgPool2d
        pool = average(2, ceil_mode=True, count_include_pad=False)
    return conv(dim, dim_out, kernel_size=1, **dd), pool
