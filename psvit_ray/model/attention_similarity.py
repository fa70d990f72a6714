"""Similarity of the attention maps of a network's layers, and the sharing that it suggests.

Shapes: B images, L layers of a stage, H heads, N tokens, C channels, D = C // H. A stage consists
of consecutive layers with equally many tokens.
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
"""Similarity of each pair of layers; NaN for layers of different stages."""
DIGITS = 12
"""Decimals of similarities, so that a map's similarity to itself is exactly 1."""


class Redundancy(Value):
    """Similarity of the attention maps of layers, and of the tokens within a layer."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    num_images: int
    """Number of images that it was measured on."""
    similarity: tuple[tuple[float, ...], ...]
    """Similarity of the maps of each pair of layers, from 0 to 1; NaN if their numbers of tokens
    differ."""
    token_similarity: tuple[float, ...]
    """Mean cosine of all pairs of patch tokens that each layer puts out, from -1 to 1; NaN for a
    single token."""


def measure_redundancy(model: nn.Module, batches: Iterable[Tensor]) -> Redundancy:
    """Measures the redundancy of a network in evaluation mode, over batches (B, in_chans, S, S) on
    its device.

    The similarity of two heads is the mean cosine, over queries and images, of the rows of their
    maps. The cosine (as in DeepViT, Zhou et al., arXiv 2103.11886, there of columns) is 0 to 1 for
    any number of tokens, and one matrix product gives it for all pairs, where a Jensen-Shannon
    divergence takes a logarithm for each. The similarity of two layers is that of their heads in
    the best one-to-one matching: the order of heads means nothing, as a layer that uses another's
    map learns its values for any order.

    Sums are in float64, image by image, so that they do not depend on how images are batched.
    Raises ValueError for a network without such maps, and if there are no images.
    """
    sums: list[Tensor] = []
    num_images = 0
    with _recording(model) as layers, torch.inference_mode():
        for images in batches:
            layers.clear()
            model(images)
            for image in range(len(images)):
                parts = _image_similarities(layers, image, cast(int, model.num_prefix_tokens))
                sums = [a + b for a, b in zip(sums, parts, strict=True)] if sums else parts
            num_images += len(images)
    if not num_images:
        raise ValueError("images must be at least one, got none")
    tokens, *stages = ((total / num_images).cpu().numpy() for total in sums)
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
    """The attention map and the output of a layer for a batch."""

    attention: AttentionMap
    tokens: Tensor  # (B, N, C)


@contextlib.contextmanager
def _recording(model: nn.Module) -> Iterator[list[_Layer]]:
    """Context of a list to which every forward pass appends its layers. Raises ValueError as
    `attention_blocks`."""
    layers: list[_Layer] = []
    with contextlib.ExitStack() as hooks:
        for block in attention_blocks(model):
            record = _record_psvit if isinstance(model, PSViT) else _record_timm
            for handle in record(block, layers):
                hooks.callback(handle.remove)
        yield layers


def attention_blocks(model: nn.Module) -> list[nn.Module]:
    """The layers of a PSViT, or of timm's VisionTransformer. Raises ValueError for a network whose
    layers do not each have one map over all tokens."""
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


def _record_psvit(block: nn.Module, layers: list[_Layer]) -> Iterator[RemovableHandle]:
    def hook(_: nn.Module, __: object, out: tuple[Tensor, AttentionMap]) -> None:
        x, attention = out
        layers.append(_Layer(attention, x))

    yield block.register_forward_hook(hook)


def _record_timm(block: nn.Module, layers: list[_Layer]) -> Iterator[RemovableHandle]:
    """timm's attention returns no map, but has norms of queries and keys, if only identities."""
    normed: list[Tensor] = []

    def norm_hook(_: nn.Module, __: object, out: Tensor) -> None:
        normed.append(out)

    def block_hook(_: nn.Module, __: object, x: Tensor) -> None:
        q, k = normed
        normed.clear()
        layers.append(_Layer(FusedMap(q, k), x))

    attention = cast(Attention, block.attn)
    yield attention.q_norm.register_forward_hook(norm_hook)
    yield attention.k_norm.register_forward_hook(norm_hook)
    yield block.register_forward_hook(block_hook)


def _image_similarities(
    layers: Sequence[_Layer], image: int, num_prefix_tokens: int
) -> list[Tensor]:
    """Similarities for an image of the batch, in float64: of the tokens of each layer, and for each
    stage of the heads of its layers (L, H, L, H)."""
    stages = groupby(layers, key=lambda layer: layer.tokens.shape[1])
    tokens = [_token_similarity(layer.tokens[image, num_prefix_tokens:]) for layer in layers]
    heads = [_head_similarity([layer.attention for layer in stage], image) for _, stage in stages]
    return [torch.stack(tokens), *heads]


def _head_similarity(stage: Sequence[AttentionMap], image: int) -> Tensor:
    """Mean cosine of the rows of each pair of heads, (L, H, L, H)."""
    maps = torch.stack([_weights(attention, image) for attention in stage])  # (L, H, N, N)
    rows = F.normalize(maps, dim=-1)
    return torch.einsum("lhqk,mgqk->lhmg", rows, rows) / rows.shape[-1]


def _weights(attention: AttentionMap, image: int) -> Tensor:
    """Attention weights of an image, (H, N, N) in float64."""
    if isinstance(attention, ExplicitMap):
        return attention.weights[image].double()
    q, k = attention.q[image].double(), attention.k[image].double()
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1)


def _token_similarity(tokens: Tensor) -> Tensor:
    """Mean cosine of all pairs of tokens (N, C)."""
    units = F.normalize(tokens.double(), dim=-1)
    pairs = len(units) * (len(units) - 1)
    if not pairs:
        return units.new_tensor(math.nan)
    return (units.sum(dim=0).square().sum() - units.square().sum()) / pairs


def _best_match(heads: NDArray[np.float64]) -> float:
    """Mean similarity of two layers' heads in their best one-to-one matching; `heads` (H, H) has
    the similarity of each pair."""
    pairs = linear_sum_assignment(heads, maximize=True)
    return round(float(heads[pairs].mean()), DIGITS)


def propose(similarity: Matrix, threshold: float, max_group: int | None = None) -> str:
    """A sharing for these similarities, as a pattern for `ArchSpec.with_pattern`.

    From the first layer to the last, a layer joins the group before it if the similarity of its map
    to that of the group's leader, which it would use, is at least `threshold`. A group has at most
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
    """The sharing with `followers` followers of the highest sum of similarities to their leaders,
    as a pattern, to compare with other sharings of the same cost.

    Groups are those that `propose` may have. Raises ValueError if there cannot be so many.
    """
    # Best sum and groups of the layers so far, by the last leader and the number of followers.
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
        limit = max(count for _, count in best)
        raise ValueError(f"followers must be at most {limit} in these layers, got {followers}")
    return format_pattern(max(ends)[1])


def mean_to_leader(similarity: Matrix, pattern: str) -> float:
    """Mean similarity of the followers' maps to those of their leaders; NaN without followers."""
    values, leader = [], 0
    for size in (size for groups in parse_pattern(pattern) for size in groups):
        values += [similarity[leader][follower] for follower in range(leader + 1, leader + size)]
        leader += size
    return sum(values) / len(values) if values else math.nan


def _starts_stage(similarity: Matrix, layer: int) -> bool:
    return layer == 0 or math.isnan(similarity[layer][layer - 1])
