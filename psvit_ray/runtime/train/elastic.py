"""Training with workers that come and go."""

from __future__ import annotations

import time
from typing import Any

from psvit_ray.runtime.cluster.ray_train_private import (
    WAITING_STATES,
    ControllerCallback,
    ResizingState,
)
from psvit_ray.runtime.train.control_channel import SAVE, SAVED, ControlChannel

SAVE_S = 60.0
LOOK_S = 0.1


class SaveBeforeResize(ControllerCallback):
    """Asks for a checkpoint before Train changes the number of workers.

    Where a host has come, Train ends all workers and starts them again with one more: what they
    have done since their last checkpoint is saved first. It lives in Train's controller.
    """

    def __init__(self, channel: str) -> None:
        self._channel = ControlChannel(channel)
        self._asked = 0

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if not isinstance(current_state, ResizingState):
            return
        self._asked += 1
        self._channel.send(SAVE, str(self._asked))
        patience = time.monotonic() + SAVE_S
        while int(self._channel.read(SAVED) or 0) < self._asked:
            if time.monotonic() > patience:
                return  # then from the last one
            time.sleep(LOOK_S)


class NoHostsError(RuntimeError):
    """No host came with room for the workers."""


class LimitWaiting(ControllerCallback):
    """Ends a run whose workers have waited too long for hosts: Train itself asks for hosts without
    end.

    It lives in Train's controller, which calls it at every turn, and ends the run with the error
    that it raises.
    """

    def __init__(self, minutes: float) -> None:
        self._minutes = minutes
        self._since: float | None = None

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        if not isinstance(current_state, WAITING_STATES):
            self._since = None
            return
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since > 60 * self._minutes:
            raise NoHostsError(
                f"no hosts with a place for the workers for {self._minutes:g} minutes"
            )
