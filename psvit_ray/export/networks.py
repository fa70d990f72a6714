"""Networks that a configuration names: to start from, or to learn from. An exported folder, or
`timm:NAME` with weights that timm fetches or a file has.

Nothing that is read executes: weights are safetensors, or pickles read with `weights_only=True`.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.data import resolve_model_data_config
from timm.models import get_pretrained_cfg, load_state_dict
from torch import nn

from psvit_ray.export import model_folder

TIMM = "timm:"


@dataclass(frozen=True)
class Network:
    """With its weights, in evaluation mode, and what it takes."""

    name: str
    model: nn.Module
    num_classes: int
    class_names: tuple[str, ...] | None
    """None where only their number is known."""
    img_size: tuple[int, int]
    """Height and width."""
    in_chans: int
    mean: tuple[float, ...]
    """Of each channel, in 0 to 1."""
    std: tuple[float, ...]


def load_network(name: str, checkpoint: str = "", *, field: str) -> Network:
    """`name` is an exported folder (a path or URI) or `timm:NAME`, whose weights timm fetches
    unless `checkpoint` is a file of them.

    Raises ValueError, naming `field`, where there is no such network or no weights of it.
    """
    if name.startswith(TIMM):
        return _timm_network(name, checkpoint, field)
    try:
        exported = model_folder.load(name)
    except ValueError as error:
        hint = f"; timm has it as {TIMM}{name}" if timm.is_model(name) else ""
        raise ValueError(f"{field}: {error}{hint}") from None
    preprocessing = exported.preprocessing
    return Network(
        name=name,
        model=exported.model,
        num_classes=len(exported.class_names),
        class_names=exported.class_names,
        img_size=(preprocessing.img_size, preprocessing.img_size),
        in_chans=preprocessing.in_chans,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )


def _timm_network(name: str, checkpoint: str, field: str) -> Network:
    architecture = name.removeprefix(TIMM)
    _check_known(architecture, field)
    kwargs = _file_arguments(architecture, checkpoint, field) if checkpoint else {}
    try:
        with _silent_hub():
            model: Any = timm.create_model(architecture, pretrained=True, **kwargs)
    except (OSError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())
        if checkpoint:
            raise ValueError(
                f"{field}_checkpoint must have the weights of {name}, got {checkpoint}: "
                f"{said[:200]}"
            ) from None
        raise ValueError(
            f"{field}: timm cannot fetch the weights of {name} ({said.partition('. ')[0]}); a file "
            f"that has them is given as --{field}-checkpoint FILE"
        ) from None
    takes = resolve_model_data_config(model)
    in_chans, height, width = takes["input_size"]
    return Network(
        name=name,
        model=model.eval(),
        num_classes=model.num_classes,
        class_names=None,
        img_size=(height, width),
        in_chans=in_chans,
        mean=takes["mean"],
        std=takes["std"],
    )


@contextlib.contextmanager
def _silent_hub() -> Iterator[None]:
    """Without a connection it warns of each of its tries; in the end it raises what matters."""
    hub = logging.getLogger("huggingface_hub")
    before = hub.level
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub.setLevel(before)


def _check_known(architecture: str, field: str) -> None:
    """Raises ValueError, with the nearest, for a name or tag that is not timm's."""
    if ":" in architecture:  # of a place that timm knows, such as hf-hub:
        return
    try:
        known = bool(get_pretrained_cfg(architecture))
    except RuntimeError:  # the tag
        known = False
    if not known:
        names = timm.list_models() + timm.list_pretrained()
        near = difflib.get_close_matches(architecture, names, n=1, cutoff=0.0)[0]
        raise ValueError(f"{field}: timm has no {architecture!r}; nearest is {TIMM}{near}")


def _file_arguments(architecture: str, checkpoint: str, field: str) -> dict[str, Any]:
    """What makes timm take the weights from a file, which may have a head of any size."""
    if not Path(checkpoint).is_file():
        raise ValueError(f"{field}_checkpoint must be a file, got {checkpoint}")
    try:
        weights = load_state_dict(checkpoint)
    except Exception as error:  # what a broken file makes its readers raise is anything
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{field}_checkpoint must be safetensors or a state dict of torch's, got {checkpoint}: "
            f"{reason or type(error).__name__}"
        ) from None
    cfg = get_pretrained_cfg(architecture) if ":" not in architecture else None
    classifier = getattr(cfg, "classifier", None) or "head"
    first = classifier if isinstance(classifier, str) else classifier[0]
    head = weights.get(f"{first}.weight")
    num_classes = 0 if head is None else len(head)
    overlay = {"source": "", "file": checkpoint, "num_classes": num_classes}
    return {"num_classes": num_classes, "pretrained_cfg_overlay": overlay}
