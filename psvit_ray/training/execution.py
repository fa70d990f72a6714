"""Where a run happens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from psvit_ray.training.agreement import Request


@dataclass(frozen=True)
class Execution:
    """`prepare_model` is what a framework wraps the network with (Ray Train's, or DDP): how
    gradients are summed over workers is its own."""

    device: torch.device = torch.device("cpu")  # noqa: RUF009  # a value, never changed
    accelerated: bool = True
    """False leaves `amp` and `compile` off: on a CPU they cost more than they give."""
    prepare_model: Callable[[nn.Module], nn.Module] = lambda model: model
    request: Callable[[], Request] = lambda: "none"
    """Asked on every worker before every step, so it must be quick. What one worker wants, all do,
    at the same step."""
    patience_s: float = 300.0
    """A worker that comes to a step later than the others by more is named, and the run raises
    `WorkerHung`."""
