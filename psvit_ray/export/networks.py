"""Trained networks that a configuration names as initial weights or as a teacher: an exported
folder, or `timm:NAME` with weights from timm's hub or from a file.

Nothing that is read is executed: weights are safetensors, or pickles read with `weights_only=True`.
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
    """A trained network in evaluation mode, and the images that it takes."""

    name: str
    """Name in the configuration: an exported folder, or timm:NAME."""
    model: nn.Module
    num_classes: int
    class_names: tuple[str, ...] | None
    """Names of the classes in the order of the logits; None if they are not known."""
    img_size: tuple[int, int]
    """Height and width in pixels."""
    in_chans: int
    mean: tuple[float, ...]
    """Mean of each channel, from 0 to 1."""
    std: tuple[float, ...]
    """Standard deviation of each channel."""


def load_network(name: str, checkpoint: str = "", *, field: str) -> Network:
    """Loads an exported folder (a path or URI) or `timm:NAME`, whose weights timm fetches unless
    `checkpoint` is a file that has them.

    Raises ValueError, naming `field`, if there is no such network, or if its weights cannot be had.
    """
    if name.startswith(TIMM):
        return _timm_network(name, checkpoint, field)
    try:
        exported = model_folder.load_model_folder(name)
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
        reason = " ".join(str(error).split())
        if checkpoint:
            raise ValueError(
                f"{field}_checkpoint must have the weights of {name}, got {checkpoint}: "
                f"{reason[:200]}"
            ) from None
        raise ValueError(
            f"{field}: timm cannot fetch the weights of {name} ({reason.partition('. ')[0]}); a "
            "file "
            f"that has them is given as --{field}-checkpoint FILE"
        ) from None
    data_config = resolve_model_data_config(model)
    in_chans, height, width = data_config["input_size"]
    return Network(
        name=name,
        model=model.eval(),
        num_classes=model.num_classes,
        class_names=None,
        img_size=(height, width),
        in_chans=in_chans,
        mean=data_config["mean"],
        std=data_config["std"],
    )


@contextlib.contextmanager
def _silent_hub() -> Iterator[None]:
    """Context without huggingface_hub's warnings: without a connection it warns at each retry, and
    raises in the end."""
    hub = logging.getLogger("huggingface_hub")
    before = hub.level
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub.setLevel(before)


def _check_known(architecture: str, field: str) -> None:
    """Raises ValueError, with the nearest name, for a name or tag that timm does not have."""
    if ":" in architecture:  # a model of a hub that timm reads, such as hf-hub:
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
    """Arguments of `timm.create_model` that load the weights from a file, with a head of any
    size."""
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
