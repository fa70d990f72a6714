"""Weights to start from, as far as they fit: those of another PSViT, or of timm's DeiT and ViT.

Parameters are looked at in pieces: `attn.qkv` as `attn.q`, `attn.k` and `attn.v`, of which a
follower has only the last, and `pos_embed` as `pos_embed.class` and `pos_embed.grid`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from math import isqrt

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from psvit_ray.model.psvit import PSViT

LAYER = re.compile(r"(?:stages\.(\d+)\.)?blocks\.(\d+)\.(.+)")
TOKENS = ("cls_token", "dist_token", "reg_token")  # timm's, each of which may have a position
SCALED_BY = {"ls1": "attn.proj", "ls2": "mlp.fc2"}  # a layer scale, and what it multiplies


@dataclass(frozen=True)
class LoadedWeights:
    """What became of weights. Of modules that were left whole, the outermost is named."""

    num_taken: int
    num_params: int
    other_shape: tuple[str, ...]
    """Of the network, which keep their first values: in the weights they have another shape."""
    no_source: tuple[str, ...]
    """Of the network, which keep their first values: the weights do not have them."""
    unused: tuple[str, ...]
    """Of the weights: the network has no such thing."""
    resized: tuple[int, int] | None = None
    """Sides of the grid of positions, before and after."""

    def __str__(self) -> str:
        """For the user, one or two lines."""
        said = f"{self.num_taken:,} of {self.num_params:,} parameters are from these weights"
        if self.resized:
            before, after = self.resized
            said += f", positions resized from {before}x{before} to {after}x{after}"
        left = [
            f"{_listed(names)} {reason}"
            for names, reason in (
                (self.other_shape, "(another shape)"),
                (self.no_source, "(not in the weights)"),
            )
            if names
        ]
        parts = [f"left at first values: {', '.join(left)}"] if left else []
        parts += [f"not used: {_listed(self.unused)}"] if self.unused else []
        return "\n".join([said, *(["; ".join(parts)] if parts else [])])


def load_pretrained(model: PSViT, weights: Mapping[str, Tensor]) -> LoadedWeights:
    """Copies into `model` what fits of the state dict of a PSViT, or of timm's DeiT or ViT.

    Layers go by stage where both have as many stages, else in order of depth. Positions of another
    grid are resized as timm does. Positions and layer scales that only one of the two has are made
    up for, so that the function stays the same. What has another shape keeps its first values. A
    state dict does not tell the number of heads, so that another one passes unseen.

    Raises ValueError where nothing fits.
    """
    weights = _with_scales(_with_positions(weights), wanted=model.spec.layer_scale)
    origins = _origins(weights, model)
    theirs = _pieces({ours: weights[name] for ours, name in origins.items()})
    ours = _pieces(dict(model.named_parameters()))
    resized = _resize_positions(theirs, ours)
    modules: dict[str, list[str]] = defaultdict(list)
    for name in ours:
        modules[_module(name)].append(name)
    taken: list[str] = []
    other_shape: list[str] = []
    for names in modules.values():
        there = [name for name in names if name in theirs]
        fits = all(theirs[name].shape == ours[name].shape for name in there)
        (taken if fits else other_shape).extend(there)
    if not taken:
        raise ValueError(f"nothing of these weights fits: {_example(other_shape, theirs, ours)}")
    with torch.no_grad():
        for name in taken:
            ours[name].copy_(theirs[name])
    placed = taken + other_shape
    used = {origins.get(name) or origins[_parameter(name)] for name in placed}
    return LoadedWeights(
        num_taken=sum(ours[name].numel() for name in taken),
        num_params=sum(piece.numel() for piece in ours.values()),
        other_shape=_together(other_shape, ours),
        no_source=_together([name for name in ours if name not in theirs], ours),
        unused=_together([name for name in weights if name not in used], weights),
        resized=resized if "pos_embed.grid" in taken else None,
    )


def _with_positions(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With one position for the class token, where there is one, and no other tokens'."""
    weights = dict(weights)
    positions = weights.get("pos_embed")
    if positions is None or positions.ndim != 3:
        return weights
    tokens = sum(weights[name].shape[1] for name in TOKENS if name in weights)
    class_token = weights.get("cls_token")
    if isqrt(positions.shape[1]) ** 2 == positions.shape[1]:  # the grid's alone, as in DeiT III
        if class_token is not None:
            weights["pos_embed"] = torch.cat((torch.zeros_like(class_token), positions), dim=1)
    else:
        first = 0 if class_token is None else 1
        weights["pos_embed"] = torch.cat((positions[:, :first], positions[:, tokens:]), dim=1)
    return weights


def _with_scales(weights: Mapping[str, Tensor], *, wanted: bool) -> dict[str, Tensor]:
    """With layer scales, or without any, and still the same function."""
    changed = dict(weights)
    for name in weights:
        for scale, linear in SCALED_BY.items():
            layer = name.removesuffix(f"{linear}.weight")
            if layer == name:
                continue
            if wanted:
                changed.setdefault(f"{layer}{scale}.gamma", torch.ones(len(weights[name])))
            elif (gamma := changed.pop(f"{layer}{scale}.gamma", None)) is not None:
                changed[name] = weights[name] * gamma[:, None]
                if (bias := f"{layer}{linear}.bias") in weights:
                    changed[bias] = weights[bias] * gamma
    return changed


def _origins(weights: Mapping[str, Tensor], model: PSViT) -> dict[str, str]:
    """Our name of each of their parameters to theirs. Layers that we do not have are left out."""
    matches = {name: match for name in weights if (match := LAYER.fullmatch(name))}
    layers = {name: (int(match[1] or 0), int(match[2])) for name, match in matches.items()}
    theirs = sorted(set(layers.values()))
    stages = model.spec.stages
    if len({stage for stage, _ in theirs}) == len(stages):
        places = {layer: layer for layer in theirs}
    else:
        ours = [(i, j) for i, stage in enumerate(stages) for j in range(stage.depth)]
        places = dict(zip(theirs, ours, strict=False))
    origins = {name: name for name in weights if name not in layers}
    for name, layer in layers.items():
        if layer in places:
            stage, block = places[layer]
            origins[f"stages.{stage}.blocks.{block}.{matches[name][3]}"] = name
    return origins


def _pieces(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views of what can be taken apart from each other."""
    pieces = {}
    for name, value in weights.items():
        if ".attn.qkv." in name and len(value) % 3 == 0:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                pieces[name.replace(".qkv.", f".{part}.")] = rows
        elif name == "pos_embed":
            first = 1 if weights.get("cls_token") is not None else 0
            pieces["pos_embed.grid"] = value[:, first:]
            if first:
                pieces["pos_embed.class"] = value[:, :first]
        else:
            pieces[name] = value
    return pieces


def _module(piece: str) -> str:
    """What is taken whole or not at all: a bias without its matrix means nothing."""
    return piece if piece.startswith("pos_embed") else piece.rpartition(".")[0] or piece


def _parameter(piece: str) -> str:
    """That a piece is of."""
    if piece.startswith("pos_embed"):
        return "pos_embed"
    return re.sub(r"\.attn\.[qkv]\.", ".attn.qkv.", piece)


def _resize_positions(
    theirs: dict[str, Tensor], ours: Mapping[str, Tensor]
) -> tuple[int, int] | None:
    """The sides, before and after, of a grid that is not as ours."""
    grid = theirs.get("pos_embed.grid")
    before, after = (
        isqrt(0 if each is None else each.shape[1]) for each in (grid, ours["pos_embed.grid"])
    )
    if grid is None or before in (0, after) or before**2 != grid.shape[1]:
        return None
    theirs["pos_embed.grid"] = resample_abs_pos_embed(grid, [after, after], num_prefix_tokens=0)
    return before, after


def _example(
    other_shape: Iterable[str], theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor]
) -> str:
    for name in other_shape:
        return f"{name} is {tuple(theirs[name].shape)} there and {tuple(ours[name].shape)} here"
    return f"they have {_listed(list(theirs), most=3)}, here are {_listed(list(ours), most=3)}"


def _together(names: Iterable[str], among: Iterable[str]) -> tuple[str, ...]:
    """The outermost modules of which nothing but these names is there."""
    names = list(names)
    rest = "".join(f"\n{name}." for name in set(among) - set(names))
    found = []
    for name in names:
        parts = name.split(".")
        outer = (".".join(parts[: n + 1]) for n in range(len(parts)))
        found.append(next(module for module in outer if f"\n{module}." not in rest))
    return tuple(dict.fromkeys(found))


def _listed(names: tuple[str, ...] | list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(islice(names, most)) + more
