"""The whole state of a run on disk, so that it goes on as if nothing had happened.

A checkpoint is a folder: `configuration.json`, `model.safetensors`, `ema.safetensors` where
weights are averaged, `state.pt` (optimizer, step, epoch, curve). Nothing in it executes when read.
The learning rate and all randomness are functions of the step, so neither is stored.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from psvit_ray.data.storage import Folder
from psvit_ray.training.config import Configuration

WHOLE = "whole"  # written last: a folder without it was cut short


@dataclass(frozen=True)
class Checkpoint:
    configuration: Configuration
    epoch: int
    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    curve: list[dict[str, Any]]
    """What was reported up to here: of a report that nobody took down, this is the copy."""

    def save(self, folder: Path) -> None:
        """Writes a new folder whole or not at all. Raises FileExistsError if it is there."""
        if folder.exists() and any(folder.iterdir()):
            raise FileExistsError(f"checkpoint folder is not empty: {folder}")
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        (unfinished / "configuration.json").write_text(self.configuration.model_dump_json(indent=2))
        safetensors.torch.save_file(self.model, unfinished / "model.safetensors")
        if self.ema is not None:
            safetensors.torch.save_file(self.ema, unfinished / "ema.safetensors")
        state = {name: getattr(self, name) for name in ("epoch", "step", "optimizer", "curve")}
        torch.save(state, unfinished / "state.pt")
        os.replace(unfinished, folder)


def load(folder: Path) -> Checkpoint:
    """Raises FileNotFoundError if a file of it is missing."""
    state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
    ema = folder / "ema.safetensors"
    return Checkpoint(
        configuration=Configuration.model_validate_json(
            (folder / "configuration.json").read_text()
        ),
        model=safetensors.torch.load_file(folder / "model.safetensors"),
        ema=safetensors.torch.load_file(ema) if ema.exists() else None,
        **state,
    )


class Kept:
    """The checkpoints of one run in a storage: the newest is kept, and counts once it is whole."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    def put(self, epoch: int, save: Callable[[Path], None]) -> None:
        older = self._folder.names()
        name = f"epoch-{epoch:05d}"
        with tempfile.TemporaryDirectory() as scratch:
            save(Path(scratch) / name)
            (self._folder / name).upload(Path(scratch) / name)
        (self._folder / name).write(WHOLE, b"")
        for other in older:
            if other != name:
                (self._folder / other).delete_all()

    def newest(self) -> Checkpoint | None:
        """Raises FileNotFoundError if a file of it is missing."""
        for name in reversed(self._folder.names()):
            if WHOLE in (self._folder / name).names():
                with tempfile.TemporaryDirectory() as scratch:
                    (self._folder / name).download(Path(scratch))
                    return load(Path(scratch))
        return None
