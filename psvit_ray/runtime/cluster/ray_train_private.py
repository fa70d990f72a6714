"""Parts of Ray Train V2 without a public name that the product uses, as `ray_private` has those of
Ray: apart from it, as importing Train takes most of a second."""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerCallback
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    ReschedulingState,
    ResizingState,
    RestartingState,
    SchedulingState,
)

__all__ = ["WAITING_STATES", "ControllerCallback", "ResizingState", "WorkerCallback"]

WAITING_STATES = (InitializingState, SchedulingState, ReschedulingState, RestartingState)
"""States of Train's controller in which a run waits for hosts."""


def preemption_notice() -> Any:
    """The spot notice that the workers of this run were sent, or None.

    Train's public call for it is a barrier of all workers.
    """
    return get_train_context().preemption_context.preemption_info
