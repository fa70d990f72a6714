"""One set of weights for every PSViT of a search space.

A subnet uses the first layers of each stage, its own share groups, and the leading part of each
weight where widths are searched (Chen et al., AutoFormer, arXiv 2107.00651). Pooling kinds and
patch sizes have weights of their own, so has each pool operator; the rest they share.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from psvit_ray.arch.space import SearchSpace
from psvit_ray.arch.spec import ArchSpec, StageSpec
from psvit_ray.model.psvit import PSViT

T = TypeVar("T")


class LeadingParts(nn.Module):
    """A tensor of which some take only a leading part.

    What is between two sizes is a parameter of its own. So a part that a step did not use has no
    gradient, and an optimizer leaves it alone: neither decay nor momentum moves it.
    """

    def __init__(self, whole: Tensor, sizes: Sequence[Sequence[int]]) -> None:
        """`sizes`: for each dimension those that are taken, from the least to that of `whole`."""
        super().__init__()
        self._sizes = [list(of_dim) for of_dim in sizes]
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
        counts = [of_dim.index(n) + 1 for of_dim, n in zip(self._sizes, shape, strict=True)]
        return self._joined("", counts, 0)

    def _joined(self, name: str, counts: Sequence[int], dim: int) -> Tensor:
        if dim == len(counts):
            piece: Tensor = self.pieces[name]
            return piece
        names = (f"{name}_{i}" if name else str(i) for i in range(counts[dim]))
        parts = [self._joined(part, counts, dim + 1) for part in names]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


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

        def skeleton(spec: ArchSpec) -> PSViT:
            with torch.device("meta"):
                return PSViT(
                    spec,
                    drop_rate=drop_rate,
                    attn_drop_rate=attn_drop_rate,
                    drop_path_rate=drop_path_rate,
                )

        # Building one takes longer than a small one takes for a batch.
        self._skeleton = lru_cache(maxsize=64)(skeleton)
        weights: dict[str, Tensor] = {}
        sizes: dict[str, list[set[int]]] = {}
        for corners in _corners(space):
            for corner in corners:
                for name, parameter in self._skeleton(corner).named_parameters():
                    shape = _shape_of_one(name, parameter)
                    for place in _places(name, corner):
                        found = sizes.setdefault(place, [set() for _ in shape])
                        for size, of_dim in zip(shape, found, strict=True):
                            of_dim.add(size)
            for name, parameter in PSViT(corners[-1]).named_parameters():
                places = _places(name, corners[-1])
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
        skeleton = self._skeleton(spec).train(self.training)
        logits: Tensor = functional_call(skeleton, self._weights_of(spec), (x,))
        return logits

    def extract(self, spec: ArchSpec) -> PSViT:
        """A network of its own with a copy of its weights here, in evaluation mode.

        Raises ValueError where `spec` is not in the space.
        """
        with torch.device("meta"):
            model = PSViT(spec)
        with torch.no_grad():
            weights = {name: tensor.clone() for name, tensor in self._weights_of(spec).items()}
        model.load_state_dict(weights, assign=True)
        return model.requires_grad_().eval()

    def no_weight_decay(self) -> set[str]:
        return {
            name
            for name, _ in self.named_parameters()
            if name.split(".")[1].endswith(("/pos_embed", "/cls_token"))
        }

    def _weights_of(self, spec: ArchSpec) -> dict[str, Tensor]:
        """By their names in `PSViT(spec)`."""
        self.space.encode(spec)  # raises where it is not in the space
        return {
            name: self._weight(name, parameter, spec)
            for name, parameter in self._skeleton(spec).named_parameters()
        }

    def _weight(self, name: str, parameter: Tensor, spec: ArchSpec) -> Tensor:
        shape = _shape_of_one(name, parameter)
        parts = [self._at(place).take(shape) for place in _places(name, spec)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _at(self, place: str) -> LeadingParts:
        weight = self.weights[place]
        assert isinstance(weight, LeadingParts)
        return weight


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


def _places(name: str, spec: ArchSpec) -> list[str]:
    """Where a parameter of `PSViT(spec)` lies: the three of `qkv` apart, as a follower has only
    the last; of each pool operator, and each last stage, its own."""
    name = re.sub(r"\.pool\.", f".pool.{spec.pool_op}.", name)
    name = re.sub(r"^(norm|head)\.", rf"\1.{len(spec.stages)}.", name)
    place = f"{spec.pooling}/{spec.patch_size}/{name.replace('.', '/')}"
    if "/qkv/" not in place:
        return [place]
    return [place.replace("/qkv/", f"/{one}/") for one in "qkv"]


def _shape_of_one(name: str, parameter: Tensor) -> list[int]:
    """Of each of the three in `qkv`."""
    first, *rest = parameter.shape
    return [first // 3 if ".qkv." in name else first, *rest]
