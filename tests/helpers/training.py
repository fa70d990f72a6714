"""Small trainings, and when two of them came to the same."""

from __future__ import annotations

import copy
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.training.checkpoint import Checkpoint
from psvit_ray.training.config import Configuration, TrainConfig

SPEC = ArchSpec.model_validate(
    {
        "img_size": 8,
        "patch_size": 2,
        "in_chans": 1,
        "num_classes": 10,
        "pooling": "2d",
        "stages": [
            {"embed_dim": 16, "num_heads": 2, "hidden_dim": 32, "share_groups": [2]},
            {"embed_dim": 24, "num_heads": 2, "hidden_dim": 48, "share_groups": [1]},
        ],
    }
)
AUGMENTED = TrainConfig(
    epochs=2,
    warmup_epochs=1,
    batch_size=24,
    mixup=0.2,
    train_crop_mode="rrc",
    hflip=0.5,
    aa="rand-m9-mstd0.5-inc1",
    reprob=0.25,
    num_loaders=2,
    checkpoint_every=0,
)


def assert_same(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def assert_same_state(ours: Checkpoint, theirs: Checkpoint) -> None:
    assert (ours.epoch, ours.step, ours.progress) == (theirs.epoch, theirs.step, theirs.progress)
    assert timeless(ours.curve) == timeless(theirs.curve)
    for name in ("model", "ema"):
        assert_same(getattr(ours, name), getattr(theirs, name))
    moments = [
        [list(values.values()) for values in one.optimizer["state"].values()]
        for one in (ours, theirs)
    ]
    assert_same(*moments)


def timeless(curve: list[dict[str, Any]]) -> list[dict[str, Any]]:
    curve = copy.deepcopy(curve)
    for point in curve:
        del point["metrics"]["perf/img_per_s"], point["metrics"]["perf/data_wait"]
    return curve


def in_group(function: Callable[..., None], world_size: int, *arguments: Any) -> None:
    """Calls `function(rank, world_size, *arguments)` in as many processes. They are forked from one
    that has imported torch and ours, which would take each of them seconds."""
    multiprocessing.set_forkserver_preload(["psvit_ray.training.engine", __name__])
    torch.multiprocessing.start_processes(
        function, (world_size, *arguments), nprocs=world_size, start_method="forkserver"
    )


def join_group(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )


def configured_for(data: Path, classes: int, **changes: Any) -> Configuration:
    spec = ArchSpec.model_validate(
        {
            **{"img_size": 32, "patch_size": 8, "num_classes": classes, "pooling": "2d"},
            "stages": [
                {"embed_dim": 16, "num_heads": 2, "hidden_dim": 32, "share_groups": [2]},
                {"embed_dim": 24, "num_heads": 2, "hidden_dim": 48, "share_groups": [1]},
            ],
        }
    )
    train = AUGMENTED.model_copy(update={"data": str(data), **changes})
    return Configuration(spec=spec, train=train)
