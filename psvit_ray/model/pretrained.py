"""Loads the weights of another PSViT, or of timm's DeiT and ViT, as far as they fit.

Parameters are split into pieces: `attn.qkv` into `attn.q`, `attn.k` and `attn.v`, of which a
follower has only the last, and `pos_embed` into `pos_embed.class` and `pos_embed.grid`.
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
TOKENS = ("cls_token", "dist_token", "reg_token")  # timm's prefix tokens, which may have positions
SCALED_BY = {"ls1": "attn.proj", "ls2": "mlp.fc2"}  # each layer scale, and the layer it multiplies


@dataclass(frozen=True)
class LoadedWeights:
    """The outcome of loading weights. A module of which all parameters are listed is named as a
    whole."""

    num_taken: int
    """Number of parameters that were taken from the weights."""
    num_params: int
    """Number of parameters of the network."""
    other_shape: tuple[str, ...]
    """Parameters of the network that keep their initial values, as their shape differs."""
    no_source: tuple[str, ...]
    """Parameters of the network that keep their initial values, as the weights lack them."""
    unused: tuple[str, ...]
    """Parameters of the weights that the network lacks."""
    resized: tuple[int, int] | None = None
    """Sides of the grid of positions before and after, if it was resized."""

    def __str__(self) -> str:
        """A summary for the user, in one or two lines."""
        summary = f"{self.num_taken:,} of {self.num_params:,} parameters are from these weights"
        if self.resized:
            before, after = self.resized
            summary += f", positions resized from {before}x{before} to {after}x{after}"
        left = [
            f"{_list(names)} {reason}"
            for names, reason in (
                (self.other_shape, "(another shape)"),
                (self.no_source, "(not in the weights)"),
            )
            if names
        ]
        parts = [f"left at first values: {', '.join(left)}"] if left else []
        parts += [f"not used: {_list(self.unused)}"] if self.unused else []
        return "\n".join([summary, *(["; ".join(parts)] if parts else [])])


def load_pretrained(model: PSViT, weights: Mapping[str, Tensor]) -> LoadedWeights:
    """Copies from `weights`, a state dict of a PSViT or of timm's DeiT or ViT, what fits `model`.

    Layers correspond by stage if both have equally many stages, else by depth. Positions of another
    grid are resized as in timm. Where only one of the two has a position of the class token or
    layer scales, weights are adapted so that the function stays the same. Parameters of another
    shape keep their initial values. A different number of heads is not noticed, as a state dict
    does not tell it.

    Raises ValueError if nothing fits.
    """
    weights = _with_scales(_with_positions(weights), wanted=model.spec.layer_scale)
    origins = _origins(weights, model)
    given = _pieces({own: weights[name] for own, name in origins.items()})
    own = _pieces(dict(model.named_parameters()))
    resized = _resize_positions(given, own)
    modules: dict[str, list[str]] = defaultdict(list)
    for name in own:
        modules[_module(name)].append(name)
    taken: list[str] = []
    other_shape: list[str] = []
    for names in modules.values():
        present = [name for name in names if name in given]
        fits = all(given[name].shape == own[name].shape for name in present)
        (taken if fits else other_shape).extend(present)
    if not taken:
        raise ValueError(f"nothing of these weights fits: {_example(other_shape, given, own)}")
    with torch.no_grad():
        for name in taken:
            own[name].copy_(given[name])
    placed = taken + other_shape
    used = {origins.get(name) or origins[_parameter_of(name)] for name in placed}
    return LoadedWeights(
        num_taken=sum(own[name].numel() for name in taken),
        num_params=sum(piece.numel() for piece in own.values()),
        other_shape=_outermost(other_shape, own),
        no_source=_outermost([name for name in own if name not in given], own),
        unused=_outermost([name for name in weights if name not in used], weights),
        resized=resized if "pos_embed.grid" in taken else None,
    )


def _with_positions(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` with a position for the class token, if there is one, and for no other prefix
    token."""
    weights = dict(weights)
    positions = weights.get("pos_embed")
    if positions is None or positions.ndim != 3:
        return weights
    tokens = sum(weights[name].shape[1] for name in TOKENS if name in weights)
    class_token = weights.get("cls_token")
    if isqrt(positions.shape[1]) ** 2 == positions.shape[1]:  # patches only, as in DeiT III
        if class_token is not None:
            weights["pos_embed"] = torch.cat((torch.zeros_like(class_token), positions), dim=1)
    else:
        first = 0 if class_token is None else 1
        weights["pos_embed"] = torch.cat((positions[:, :first], positions[:, tokens:]), dim=1)
    return weights


def _with_scales(weights: Mapping[str, Tensor], *, wanted: bool) -> dict[str, Tensor]:
    """`weights` of the same function with layer scales, or without if they are not `wanted`."""
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
    """Name in `model` of each parameter in `weights`, mapped to its name there. Layers beyond those
    of `model` are left out."""
    matches = {name: match for name in weights if (match := LAYER.fullmatch(name))}
    layers = {name: (int(match[1] or 0), int(match[2])) for name, match in matches.items()}
    given = sorted(set(layers.values()))
    stages = model.spec.stages
    if len({stage for stage, _ in given}) == len(stages):
        targets = {layer: layer for layer in given}
    else:
        own = [(i, j) for i, stage in enumerate(stages) for j in range(stage.depth)]
        targets = dict(zip(given, own, strict=False))
    origins = {name: name for name in weights if name not in layers}
    for name, layer in layers.items():
        if layer in targets:
            stage, block = targets[layer]
            origins[f"stages.{stage}.blocks.{block}.{matches[name][3]}"] = name
    return origins


def _pieces(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views of the pieces of parameters, by name."""
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
    """The module of a piece; its pieces are taken together or not at all, as a bias without its
    matrix means nothing."""
    return piece if piece.startswith("pos_embed") else piece.rpartition(".")[0] or piece


def _parameter_of(piece: str) -> str:
    """The parameter that a piece belongs to."""
    if piece.startswith("pos_embed"):
        return "pos_embed"
    return re.sub(r"\.attn\.[qkv]\.", ".attn.qkv.", piece)


def _resize_positions(
    given: dict[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[int, int] | None:
    """Resizes the grid of positions in `given` to that of `own`, in place; returns its sides before
    and after, or None if it was not resized."""
    grid = given.get("pos_embed.grid")
    before, after = (
        isqrt(0 if positions is None else positions.shape[1])
        for positions in (grid, own["pos_embed.grid"])
    )
    if grid is None or before in (0, after) or before**2 != grid.shape[1]:
        return None
    given["pos_embed.grid"] = resample_abs_pos_embed(grid, [after, after], num_prefix_tokens=0)
    return before, after


def _example(
    other_shape: Iterable[str], given: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> str:
    for name in other_shape:
        return f"{name} is {tuple(given[name].shape)} there and {tuple(own[name].shape)} here"
    return f"they have {_list(list(given), limit=3)}, here are {_list(list(own), limit=3)}"


def _outermost(names: Iterable[str], everything: Iterable[str]) -> tuple[str, ...]:
    """`names` with modules in place of parameters, wherever all parameters of a module in
    `everything` are among `names`."""
    names = list(names)
    rest = "".join(f"\n{name}." for name in set(everything) - set(names))
    modules = []
    for name in names:
        parts = name.split(".")
        outer = (".".join(parts[: n + 1]) for n in range(len(parts)))
        modules.append(next(module for module in outer if f"\n{module}." not in rest))
    return tuple(dict.fromkeys(modules))


def _list(names: tuple[str, ...] | list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(islice(names, limit)) + more
