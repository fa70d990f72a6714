"""A supernet: one set of weights for every PSViT of a search space.

A subnet uses the first layers of each stage, its own share groups, and the leading part of each
weight where widths are searched (Chen et al., AutoFormer, arXiv 2107.00651). Each kind of pooling
and patch size has weights of its own, each pool operator has its own poolings; the rest is shared.
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
    """A weight of which subnets take leading parts.

    What lies between two sizes is a parameter of its own. So a part that a step did not use has no
    gradient, and an optimizer skips it: neither weight decay nor momentum moves it.
    """

    def __init__(self, whole: Tensor, sizes: Sequence[Sequence[int]]) -> None:
        """`sizes` are the lengths that are taken in each dimension, from the least to that of
        `whole`."""
        super().__init__()
        self._sizes = tuple(map(tuple, sizes))
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
        """The leading part of this shape; the parameter itself if there is only one."""
        return self._joined(_piece_names(self._sizes, tuple(shape)), 0)

    def _joined(self, names: Names, dim: int) -> Tensor:
        if isinstance(names, str):
            piece: Tensor = self.pieces[names]
            return piece
        if len(names) == 1:
            return self._joined(names[0], dim + 1)
        return torch.cat([self._joined(inner, dim + 1) for inner in names], dim)


@cache
def _piece_names(
    sizes: tuple[tuple[int, ...], ...], shape: tuple[int, ...], name: str = ""
) -> Names:
    """Names of the pieces that make up a shape, nested by dimension."""
    if not sizes:
        return name
    count = sizes[0].index(shape[0]) + 1
    return tuple(
        _piece_names(sizes[1:], shape[1:], f"{name}_{i}" if name else str(i)) for i in range(count)
    )


class Supernet(nn.Module):
    """The weights of all specs of a space. The architecture is an argument of the forward pass:
    `supernet(images, spec)`."""

    def __init__(
        self,
        space: SearchSpace,
        *,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        """Initial weights are those of the largest PSViTs of the space. Rates are those of
        `PSViT`."""
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
                    for key in _keys_in(corner, name):
                        lengths = sizes.setdefault(key, [set() for _ in shape])
                        for size, lengths_of_dim in zip(shape, lengths, strict=True):
                            lengths_of_dim.add(size)
            for name, parameter in PSViT(corners[-1]).named_parameters():
                keys = _keys_in(corners[-1], name)
                for key, part in zip(keys, parameter.detach().chunk(len(keys)), strict=True):
                    weights.setdefault(key, part)
        self.weights = nn.ModuleDict(
            {
                key: LeadingParts(whole, [sorted(lengths) for lengths in sizes[key]])
                for key, whole in weights.items()
            }
        )

    def forward(self, x: Tensor, spec: ArchSpec) -> Tensor:
        """Logits (B, num_classes) of the subnet `spec` for images (B, in_chans, S, S).

        Raises ValueError if `spec` is not in the space.
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
        """Recomputes each share group in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def extract(self, spec: ArchSpec) -> PSViT:
        """The subnet `spec` as a PSViT with a copy of its weights, in evaluation mode.

        Raises ValueError if `spec` is not in the space.
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
        """Names of the parameters without weight decay, for timm's optimizers."""
        return {
            name
            for name, _ in self.named_parameters()
            if name.split(".")[1].endswith(("/pos_embed", "/cls_token"))
        }

    def _run(self, module: nn.Module, name: str, spec: ArchSpec, *inputs: Any) -> Any:
        """Output of a module with the weights of the module `name` in `PSViT(spec)`."""
        weights = {
            own: self._weight(f"{name}.{own}", _part_shape(own, parameter), spec)
            for own, parameter in module.named_parameters()
        }
        if module.training != self.training:
            module.train(self.training)
        return functional_call(module, weights, inputs)

    def _weight(self, name: str, shape: Sequence[int], spec: ArchSpec) -> Tensor:
        """The parameter `name` of `PSViT(spec)`; `shape` is that of each of the three parts of
        `qkv`."""
        parts = [cast(LeadingParts, self.weights[key]).take(shape) for key in _keys_in(spec, name)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _cached_on_meta(make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Makes modules on the meta device, to be called with weights that are given. They are cached
    by arguments, as making a small module takes longer than its forward pass."""

    @cache
    def made(*args: Any, **kwargs: Any) -> nn.Module:
        with torch.device("meta"):
            return make(*args, **kwargs)

    return made


def _on_meta(spec: ArchSpec) -> PSViT:
    with torch.device("meta"):
        return PSViT(spec)


def _corners(space: SearchSpace) -> Iterator[list[ArchSpec]]:
    """For each grid, number of stages and pool operator, specs that together have every size that a
    weight has in the space. The last spec is the largest."""
    for pooling, patch_size, num_stages, pool_op in product(
        space.pooling, space.patch_size, space.num_stages, space.pool_op
    ):
        stages = space.stages[:num_stages]
        dims = max(len(stage.embed_dim) for stage in stages)
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
            for i in range(dims)
            for j in range(ratios)
        ]


def _at_or_last(values: Sequence[T], index: int) -> T:
    return values[min(index, len(values) - 1)]


def _keys_in(spec: ArchSpec, name: str) -> list[str]:
    return _keys(name, spec.pooling, spec.patch_size, spec.pool_op, len(spec.stages))


@cache
def _keys(name: str, pooling: str, patch_size: int, pool_op: str, num_stages: int) -> list[str]:
    """Keys of a PSViT's parameter among the supernet's weights. `qkv` has three, as a follower has
    only the last; pool operators, and networks of different numbers of stages, have keys of their
    own."""
    name = re.sub(r"\.pool\.", f".pool.{pool_op}.", name)
    name = re.sub(r"^(norm|head)\.", rf"\1.{num_stages}.", name)
    key = f"{pooling}/{patch_size}/{name.replace('.', '/')}"
    return [key.replace("/qkv/", f"/{part}/") for part in "qkv"] if "/qkv/" in key else [key]


def _part_shape(name: str, parameter: Tensor) -> list[int]:
    """Shape of a parameter, or of each of the three parts of `qkv`."""
    first, *rest = parameter.shape
    return [first // 3 if ".qkv." in name else first, *rest]
