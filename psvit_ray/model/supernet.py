"""One set of weights for every PSViT of a search space.

A subnet uses the first layers of each stage, its own share groups, and the leading part of each
weight where widths are searched (Chen et al., AutoFormer, arXiv 2107.00651). Pooling kinds and
patch sizes have weights of their own, so has each pool operator; the rest they share.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from itertools import product
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, PatchEmbed, calculate_drop_path_rates
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from psvit_ray.arch.space import SearchSpace
from psvit_ray.arch.spec import ArchSpec, StageSpec
from psvit_ray.model.layers import Block, token_pool
from psvit_ray.model.psvit import PSViT, pool_before

T = TypeVar("T")
Names = str | tuple["Names", ...]


class LeadingParts(nn.Module):
    """A tensor of which some take only a leading part.

    What is between two sizes is a parameter of its own. So a part that a step did not use has no
    gradient, and an optimizer leaves it alone: neither decay nor momentum moves it.
    """

    def __init__(self, whole: Tensor, sizes: Sequence[Sequence[int]]) -> None:
        """`sizes`: for each dimension those that are taken, from the least to that of `whole`."""
        super().__init__()
        self._sizes = tuple(tuple(of_dim) for of_dim in sizes)
        pieces = [("", whole)]
        for dim, ends in enumerate(self._sizes):
            lengths = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
            pieces = [
                (f"{name}_{i}" if name else str(i), part)
                for name, piece in pieces
                for i, part in enumerate(piece.split(lengths, dim))
            ]
        self.pieces = nn.ParameterDict({name: part.clone() for name, part in pieces})

    def take(self, shape: Sequence[int]) -> Tensor:
        """The part of this shape; the parameter itself where there is only one."""
        return self._joined(_piece_names(self._sizes, tuple(shape)), 0)

    def _joined(self, names: Names, dim: int) -> Tensor:
        if isinstance(names, str):
            piece: Tensor = self.pieces[names]
            return piece
        if len(names) == 1:
            return self._joined(names[0], dim + 1)
        return torch.cat([self._joined(one, dim + 1) for one in names], dim)


@cache
def _piece_names(
    sizes: tuple[tuple[int, ...], ...], shape: tuple[int, ...], name: str = ""
) -> Names:
    """Of the pieces that make up a shape, one list within the other by dimension."""
    if not sizes:
        return name
    count = sizes[0].index(shape[0]) + 1
    return tuple(
        _piece_names(sizes[1:], shape[1:], f"{name}_{i}" if name else str(i)) for i in range(count)
    )


class Supernet(nn.Module):
    """The architecture is an argument: `supernet(images, spec)`."""

    def __init__(
        self,
        space: SearchSpace,
        *,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        """First weights are those of the largest PSViTs of the space. Rates as in `PSViT`."""
        super().__init__()
        self.space = space
        self.grad_checkpointing = False
        self._drop_rate, self._drop_path_rate = drop_rate, drop_path_rate
        self._patch_embed = _cached_on_meta(PatchEmbed)
        self._pool = _cached_on_meta(token_pool)
        self._block = _cached_on_meta(
            partial(Block, layer_scale=space.layer_scale, attn_drop=attn_drop_rate)
        )
        self._norm, self._head = _cached_on_meta(LayerNorm), _cached_on_meta(nn.Linear)
        weights: dict[str, Tensor] = {}
        sizes: dict[str, list[set[int]]] = {}
        for corners in _corners(space):
            for corner in corners:
                for name, parameter in _on_meta(corner).named_parameters():
                    shape = _part_shape(name, parameter)
                    for place in _places_in(corner, name):
                        found = sizes.setdefault(place, [set() for _ in shape])
                        for size, of_dim in zip(shape, found, strict=True):
                            of_dim.add(size)
            for name, parameter in PSViT(corners[-1]).named_parameters():
                places = _places_in(corners[-1], name)
                for place, part in zip(places, parameter.detach().chunk(len(places)), strict=True):
                    weights.setdefault(place, part)
        self.weights = nn.ModuleDict(
            {
                place: LeadingParts(whole, [sorted(of_dim) for of_dim in sizes[place]])
                for place, whole in weights.items()
            }
        )

    def forward(self, x: Tensor, spec: ArchSpec) -> Tensor:
        """Images (B, in_chans, S, S) to the logits (B, num_classes) of a subnet.

        Raises ValueError where `spec` is not in the space.
        """
        self.space.encode(spec)  # raises
        dim, last = spec.stages[0].embed_dim, spec.stages[-1].embed_dim
        embed = self._patch_embed(spec.img_size, spec.patch_size, spec.in_chans, dim)
        x = self._run(embed, "patch_embed", spec, x)
        if spec.pooling == "1d":
            cls_token = self._weight("cls_token", [1, 1, dim], spec)
            x = torch.cat((cls_token.expand(x.shape[0], -1, -1), x), dim=1)  # (B, 1 + N, C)
        x = x + self._weight("pos_embed", [1, x.shape[1], dim], spec)
        for i in range(len(spec.stages)):
            if i > 0:
                x = self._run(pool_before(spec, i, self._pool), f"stages.{i}.pool", spec, x)
            x = self._stage(x, spec, i)
        x = self._run(self._norm(last), "norm", spec, x)
        x = x[:, 0] if spec.pooling == "1d" else x.mean(dim=1)
        x = F.dropout(x, self._drop_rate, self.training)
        logits: Tensor = self._run(self._head(last, spec.num_classes), "head", spec, x)
        return logits

    def _stage(self, x: Tensor, spec: ArchSpec, number: int) -> Tensor:
        """The layers of a stage, group by group."""
        stage = spec.stages[number]
        before = sum(earlier.depth for earlier in spec.stages[:number])
        rates = calculate_drop_path_rates(self._drop_path_rate, spec.depth)[before:]

        def group(x: Tensor, first: int, size: int) -> Tensor:
            attention = None
            for layer in range(first, first + size):
                block = self._block(
                    stage.embed_dim,
                    stage.num_heads,
                    stage.hidden_dim,
                    group_size=size if layer == first else None,
                    drop_path=rates[layer],
                )
                name = f"stages.{number}.blocks.{layer}"
                x, attention = self._run(block, name, spec, x, attention)
            return x

        first = 0
        for size in stage.share_groups:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(group, x, first, size, use_reentrant=False)
            else:
                x = group(x, first, size)
            first += size
        return x

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each share group in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def extract(self, spec: ArchSpec) -> PSViT:
        """A network of its own with a copy of its weights here, in evaluation mode.

        Raises ValueError where `spec` is not in the space.
        """
        self.space.encode(spec)  # raises
        model = _on_meta(spec)
        with torch.no_grad():
            weights = {
                name: self._weight(name, _part_shape(name, parameter), spec).clone()
                for name, parameter in model.named_parameters()
            }
        model.load_state_dict(weights, assign=True)
        return model.requires_grad_().eval()

    def no_weight_decay(self) -> set[str]:
        return {
            name
            for name, _ in self.named_parameters()
            if name.split(".")[1].endswith(("/pos_embed", "/cls_token"))
        }

    def _run(self, module: nn.Module, name: str, spec: ArchSpec, *inputs: Any) -> Any:
        """A module with the weights that stand under `name` in `PSViT(spec)`."""
        weights = {
            own: self._weight(f"{name}.{own}", _part_shape(own, parameter), spec)
            for own, parameter in module.named_parameters()
        }
        if module.training != self.training:
            module.train(self.training)
        return functional_call(module, weights, inputs)

    def _weight(self, name: str, shape: Sequence[int], spec: ArchSpec) -> Tensor:
        """Of `PSViT(spec)`; of the three in `qkv`, each has this shape."""
        parts = [
            cast(LeadingParts, self.weights[place]).take(shape) for place in _places_in(spec, name)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _cached_on_meta(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Makes modules that compute with weights they are given and have none of their own: one for
    each way to call, as to make one takes longer than a small one takes for a batch."""

    @cache
    def made(*args: Any, **kwargs: Any) -> nn.Module:
        with torch.device("meta"):
            return make(*args, **kwargs)

    return made


def _on_meta(spec: ArchSpec) -> PSViT:
    with torch.device("meta"):
        return PSViT(spec)


def _corners(space: SearchSpace) -> Iterator[list[ArchSpec]]:
    """For each grid, number of stages and pool operator: specs that have, among them, every size
    that a weight has in the space. The last has the most of all."""
    for pooling, patch_size, num_stages, pool_op in product(
        space.pooling, space.patch_size, space.num_stages, space.pool_op
    ):
        stages = space.stages[:num_stages]
        most = max(len(stage.embed_dim) for stage in stages)
        ratios = max(len(stage.mlp_ratio) for stage in stages)
        yield [
            ArchSpec(
                img_size=space.img_size,
                in_chans=space.in_chans,
                num_classes=space.num_classes,
                layer_scale=space.layer_scale,
                pooling=pooling,
                patch_size=patch_size,
                pool_op=pool_op,
                stages=tuple(
                    StageSpec(
                        embed_dim=(dim := _at_or_last(sorted(stage.embed_dim), i)),
                        num_heads=dim // stage.head_dim[0],
                        hidden_dim=round(dim * _at_or_last(sorted(stage.mlp_ratio), j)),
                        share_groups=(1,) * max(stage.depth),
                    )
                    for stage in stages
                ),
            )
            for i in range(most)
            for j in range(ratios)
        ]


def _at_or_last(values: Sequence[T], index: int) -> T:
    return values[min(index, len(values) - 1)]


def _places_in(spec: ArchSpec, name: str) -> list[str]:
    return _places(name, spec.pooling, spec.patch_size, spec.pool_op, len(spec.stages))


@cache
def _places(name: str, pooling: str, patch_size: int, pool_op: str, num_stages: int) -> list[str]:
    """Where a parameter of a PSViT lies: the three of `qkv` apart, as a follower has only the last;
    of each pool operator, and each last stage, its own."""
    name = re.sub(r"\.pool\.", f".pool.{pool_op}.", name)
    name = re.sub(r"^(norm|head)\.", rf"\1.{num_stages}.", name)
    place = f"{pooling}/{patch_size}/{name.replace('.', '/')}"
    if "/qkv/" not in place:
        return [place]
    return [place.replace("/qkv/", f"/{one}/") for one in "qkv"]


def _part_shape(name: str, parameter: Tensor) -> list[int]:
    """Of each of the three in `qkv`."""
    first, *rest = parameter.shape
    return [first // 3 if ".qkv." in name else first, *rest]
