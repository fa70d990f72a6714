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

TOP1 = "holdout/top1"
CHECKPOINT = "epochs"
"""Name of the checkpoint: the number of epochs reported so far."""


def replay(
    raw_task: dict[str, Any], *, recorded: Sequence[dict[str, Any]], macs: int, epoch_s: float
) -> None:
    """Runs a trial that takes a TrialTask, as a real trial does, and reports recorded epochs.

    It reports the first epochs of `recorded`, the `Report.values()` of a network of `macs` MACs,
    one in about `epoch_s` seconds; a network with other MACs makes other errors. It goes on from
    where the trial before it was killed.
    """
    configuration = raw_task["worker"]["configuration"]
    epochs = configuration["train"]["epochs"]
    luck = random.Random(repr(configuration))
    spec = ArchSpec.model_validate(configuration["spec"])
    times = (macs / count_macs(spec)) ** 0.3 * luck.lognormvariate(0, 0.2)
    reports = [
        report | {TOP1: max(100 - times * (100 - report[TOP1]), 0)} for report in recorded[:epochs]
    ]
    fence = Fence.model_validate(raw_task["worker"]["fence"])
    checkpoints = fence.over(raw_task["worker"]["checkpoints"])
    done = min(int(checkpoints.read(CHECKPOINT) or 0), epochs - 1)
    earlier = {"earlier": [_point(report) for report in reports[:done]]}
    for report in reports[done:]:
        time.sleep(epoch_s * luck.uniform(0.8, 1.2))
        checkpoints.write(CHECKPOINT, str(report["epoch"]).encode())
        tune.report(report | earlier)
        earlier = {}


def _point(report: dict[str, Any]) -> dict[str, Any]:
    metrics = {name: value for name, value in report.items() if name not in ("epoch", "step")}
    return {"epoch": report["epoch"], "step": report["step"], "metrics": metrics}
