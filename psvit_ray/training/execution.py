"""The execution of a run: its device, and its connection to the framework that started it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from psvit_ray.training.agreement import Request


@dataclass(frozen=True)
class Execution:
    """Device and callbacks with which one worker executes a run."""

    device: torch.device = torch.device("cpu")  # noqa: RUF009  # a value, never changed
    """Device of the network."""
    accelerated: bool = True
    """Whether `amp` and `compile` take effect; on a CPU they cost more than they give."""
    prepare_model: Callable[[nn.Module], nn.Module] = lambda model: model
    """Wraps the network so that gradients are summed over workers: Ray Train's `prepare_model`, or
    DDP."""
    request: Callable[[], Request] = lambda: "none"
    """Called on every worker before every step, so it must be quick: whether to write a checkpoint
    or to stop. All workers follow the request of one, at the same step."""
    patience_s: float = 300.0
    """Seconds to wait for other workers at a step, after which the run raises `WorkerHung`."""
