"""A trial that trains nothing and reports what a real training did. Imports neither torch nor the
engine, so that many such trials find room on one machine."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import Any

from ray import tune

from psvit_ray.arch.cost import count_macs
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.storage.fence import Fence
from psvit_ray.training.results import TOP1, EpochResult, Point

CHECKPOINT = "epochs"
"""Name of the checkpoint: the number of epochs reported so far."""


def replay(
    raw_task: dict[str, Any], *, recorded: Sequence[dict[str, Any]], macs: int, epoch_s: float
) -> None:
    """A trial of Tune that trains nothing.

    Args:
        raw_task: A RunTask as primitives, as a real trial gets it.
        recorded: The epochs of a real training: epoch, step and metrics of each. As many of them
            are reported as the configuration has epochs.
        macs: MACs of the network that was trained; a network with other MACs makes other errors.
        epoch_s: Seconds from one report to the next, about.

    Goes on from where the trial before it was killed."""
    configuration = raw_task["configuration"]
    epochs = configuration["train"]["epochs"]
    luck = random.Random(repr(configuration))
    spec = ArchSpec.model_validate(configuration["spec"])
    times = (macs / count_macs(spec)) ** 0.3 * luck.lognormvariate(0, 0.2)
    points = [_point(epoch, times) for epoch in recorded[:epochs]]
    fence = Fence.model_validate(raw_task["fence"])
    checkpoints = fence.over(raw_task["checkpoints"])
    done = min(int(checkpoints.read(CHECKPOINT) or 0), epochs - 1)
    earlier = tuple(points[:done])
    for point in points[done:]:
        time.sleep(epoch_s * luck.uniform(0.8, 1.2))
        checkpoints.write(CHECKPOINT, str(point.epoch).encode())
        tune.report(EpochResult(point=point, earlier=earlier).to_metrics())
        earlier = ()


def _point(recorded: dict[str, Any], times: float) -> Point:
    """An epoch that was recorded, with so many times its errors on the hold-out."""
    metrics = {name: value for name, value in recorded.items() if name not in ("epoch", "step")}
    metrics[TOP1] = max(100 - times * (100 - metrics[TOP1]), 0)
    return Point(epoch=recorded["epoch"], step=recorded["step"], metrics=metrics)
