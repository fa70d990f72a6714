"""How alike the attention maps of a network's layers are, and which sharing that proposes.

Shapes: B images, L layers of a stage, H heads, N tokens, C channels, D = C // H. A stage is layers
in a row with equally many tokens.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import ConfigDict
from scipy.optimize import linear_sum_assignment
from timm.layers import Attention
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from psvit_ray.arch.spec import Value, format_pattern, parse_pattern
from psvit_ray.model.layers import AttentionMap, ExplicitMap, FusedMap
from psvit_ray.model.psvit import PSViT

Matrix = Sequence[Sequence[float]]
"""Similarity of each pair of layers; NaN where there is a pool between them."""
DIGITS = 12
"""To which similarities are rounded, so that a map is exactly as itself."""


class Redundancy(Value):
    """What neighbouring layers, and the tokens within a layer, have in common."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    num_images: int
    similarity: tuple[tuple[float, ...], ...]
    """Of the maps of each pair of layers, 0 to 1; NaN where their tokens are not equally many."""
    token_similarity: tuple[float, ...]
    """Of the patch tokens that each layer puts out, -1 to 1: the mean cosine of all pairs of them.
    NaN for a single token."""


def measure_redundancy(model: nn.Module, batches: Iterable[Tensor]) -> Redundancy:
    """Of a network in evaluation mode, over batches (B, in_chans, S, S) on its device.

    Two heads are as alike as the rows of their maps, which say what a query looks at: the mean
    cosine over queries and images. A cosine, as in DeepViT (Zhou et al., arXiv 2103.11886, there of
    columns): it is 0 to 1 for any number of tokens, and one matrix product gives it for all pairs,
    where a Jensen-Shannon divergence takes a logarithm for each. Two layers are as alike as their
    heads in the best one-to-one match: which number a head has means nothing, as a layer that
    borrows a map learns its values for any order of them.

    Sums are in float64, image by image, so that they do not depend on how images are batched.
    Raises ValueError for a network without such maps, and for no images.
    """
    sums: list[Tensor] = []
    num_images = 0
    with _listening(model) as layers, torch.inference_mode():
        for images in batches:
            layers.clear()
            model(images)
            for image in range(len(images)):
                found = _of_an_image(layers, image, cast(int, model.num_prefix_tokens))
                sums = [a + b for a, b in zip(sums, found, strict=True)] if sums else found
            num_images += len(images)
    if not num_images:
        raise ValueError("images must be at least one, got none")
    tokens, *stages = ((each / num_images).cpu().numpy() for each in sums)
    similarity = [[math.nan] * len(tokens) for _ in tokens]
    first = 0
    for heads in stages:
        for i in range(len(heads)):
            for j in range(len(heads)):
                similarity[first + i][first + j] = _best_match(heads[i, :, j])
        first += len(heads)
    return Redundancy(
        num_images=num_images,
        similarity=tuple(tuple(row) for row in similarity),
        token_similarity=tuple(round(float(mean), DIGITS) for mean in tokens),
    )


class _Layer(NamedTuple):
    """What one has left of a batch."""

    attention: AttentionMap
    tokens: Tensor  # (B, N, C), as it put them out


@contextlib.contextmanager
def _listening(model: nn.Module) -> Iterator[list[_Layer]]:
    """A list to which every forward pass adds its layers. Raises ValueError for a network whose
    layers do not each have one map over all tokens."""
    found: list[_Layer] = []
    with contextlib.ExitStack() as hooks:
        for block in attention_blocks(model):
            listen = _listen_to_psvit if isinstance(model, PSViT) else _listen_to_timm
            for handle in listen(block, found):
                hooks.callback(handle.remove)
        yield found


def attention_blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of a PSViT, or of a vision transformer of timm's. Raises ValueError for a network
    whose layers do not each have one map over all tokens."""
    if isinstance(model, PSViT):
        return list(model.blocks)
    if not isinstance(model, VisionTransformer):
        raise ValueError(
            f"model must be a PSViT or timm's VisionTransformer, got {type(model).__name__}, whose "
            "layers have no attention maps over all tokens"
        )
    blocks = list(model.blocks)
    for block in blocks:
        # Differential attention has two maps, parallel blocks have several attentions or none.
        attention = getattr(block, "attn", block)
        if type(attention) is not Attention:
            raise ValueError(
                "model must have one attention map in each layer, got a VisionTransformer of "
                f"{type(attention).__name__}"
            )
    return blocks


def _listen_to_psvit(block: nn.Module, found: list[_Layer]) -> Iterator[RemovableHandle]:
    def hook(_: nn.Module, __: object, out: tuple[Tensor, AttentionMap]) -> None:
        x, attention = out
        found.append(_Layer(attention, x))

    yield block.register_forward_hook(hook)


def _listen_to_timm(block: nn.Module, found: list[_Layer]) -> Iterator[RemovableHandle]:
    """Its attention hands on no map, but has norms of queries and keys, if only identities."""
    normed: list[Tensor] = []

    def norm_hook(_: nn.Module, __: object, out: Tensor) -> None:
        normed.append(out)

    def block_hook(_: nn.Module, __: object, x: Tensor) -> None:
        q, k = normed
        normed.clear()
        found.append(_Layer(FusedMap(q, k), x))

    attention = cast(Attention, block.attn)
    yield attention.q_norm.register_forward_hook(norm_hook)
    yield attention.k_norm.register_forward_hook(norm_hook)
    yield block.register_forward_hook(block_hook)


def _of_an_image(layers: Sequence[_Layer], image: int, num_prefix_tokens: int) -> list[Tensor]:
    """How alike the tokens of each layer are, then, for each stage, the heads of its layers
    (L, H, L, H). Float64."""
    stages = groupby(layers, key=lambda layer: layer.tokens.shape[1])
    tokens = [_tokens_alike(layer.tokens[image, num_prefix_tokens:]) for layer in layers]
    heads = [_heads_alike([layer.attention for layer in stage], image) for _, stage in stages]
    return [torch.stack(tokens), *heads]


def _heads_alike(stage: Sequence[AttentionMap], image: int) -> Tensor:
    """Mean cosine of the rows of each pair of maps, (L, H, L, H)."""
    maps = torch.stack([_weights(attention, image) for attention in stage])  # (L, H, N, N)
    rows = F.normalize(maps, dim=-1)
    return torch.einsum("lhqk,mgqk->lhmg", rows, rows) / rows.shape[-1]


def _weights(attention: AttentionMap, image: int) -> Tensor:
    """(H, N, N)."""
    if isinstance(attention, ExplicitMap):
        return attention.weights[image].double()
    q, k = attention.q[image].double(), attention.k[image].double()
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)


def _tokens_alike(tokens: Tensor) -> Tensor:
    """Mean cosine of all pairs of (N, C)."""
    units = F.normalize(tokens.double(), dim=-1)
    pairs = len(units) * (len(units) - 1)
    if not pairs:
        return units.new_tensor(math.nan)
    return (units.sum(dim=0).square().sum() - units.square().sum()) / pairs


def _best_match(heads: NDArray[np.float64]) -> float:
    """Mean similarity of the heads of two layers (H, H), each of the one with its own of the
    other."""
    pairs = linear_sum_assignment(heads, maximize=True)
    return round(float(heads[pairs].mean()), DIGITS)


def propose(similarity: Matrix, threshold: float, max_group: int | None = None) -> str:
    """A sharing, as a pattern for `ArchSpec.with_pattern`.

    From left to right, a layer joins the group before it while its map is at least `threshold` as
    similar to that of the group's leader, the map that it would use. A group has at most
    `max_group` layers, and none crosses a pool. Raises ValueError for a threshold outside (0, 1].
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be more than 0 and at most 1, got {threshold:g}")
    stages: list[list[int]] = []
    leader = 0
    for layer, row in enumerate(similarity):
        if _starts_stage(similarity, layer):
            stages.append([])
        elif row[leader] >= threshold and layer - leader < (max_group or math.inf):
            stages[-1][-1] += 1
            continue
        stages[-1].append(1)
        leader = layer
    return format_pattern(stages)


def propose_followers(similarity: Matrix, followers: int, max_group: int | None = None) -> str:
    """The sharing of so many followers whose maps are most like those of their leaders, by their
    sum, as a pattern: what to hold against others of the same cost.

    As `propose` otherwise. Raises ValueError where there cannot be so many.
    """
    # Of the layers so far, by the last leader and the followers: the best sum and its groups.
    best: dict[tuple[int, int], tuple[float, list[list[int]]]] = {(0, 0): (0.0, [])}
    for layer, row in enumerate(similarity):
        longer: dict[tuple[int, int], tuple[float, list[list[int]]]] = {}
        for (leader, count), (total, stages) in best.items():
            if _starts_stage(similarity, layer):
                options = [(layer, count, total, [*stages, [1]])]
            else:
                *before, last = stages
                options = [(layer, count, total, [*before, [*last, 1]])]
                if layer - leader < (max_group or math.inf):
                    grown = [*before, [*last[:-1], last[-1] + 1]]
                    options.append((leader, count + 1, total + row[leader], grown))
            for leader_now, count_now, total_now, grown in options:
                key = leader_now, count_now
                if key not in longer or total_now > longer[key][0]:
                    longer[key] = total_now, grown
        best = longer
    ends = [end for (_, count), end in best.items() if count == followers]
    if not ends:
        most = max(count for _, count in best)
        raise ValueError(f"followers must be at most {most} in these layers, got {followers}")
    return format_pattern(max(ends)[1])


def mean_to_leader(similarity: Matrix, pattern: str) -> float:
    """Mean similarity of the followers' maps to those of their leaders; NaN without followers."""
    found, layer = [], 0
    for size in (size for groups in parse_pattern(pattern) for size in groups):
        found += [similarity[layer][follower] for follower in range(layer + 1, layer + size)]
        layer += size
    return sum(found) / len(found) if found else math.nan


def _starts_stage(similarity: Matrix, layer: int) -> bool:
    return layer == 0 or math.isnan(similarity[layer][layer - 1])
