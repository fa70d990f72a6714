"""Requests to a driver to end: SIGINT and SIGTERM, of which the first is noted, and a deadline."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any


@dataclass
class StopSignal:
    """The request to stop in order, once there is one: a signal, or a deadline that has passed."""

    deadline: float = math.inf
    """Deadline, a moment of time.monotonic()."""
    number: int | None = None
    """Number of the signal that came, or None."""

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name if self.number else ""

    @property
    def reason(self) -> str:
        """Why to stop; empty until there is a reason."""
        if self.number:
            return f"stopped by {self.name}"
        return "its budget of hours was over" if time.monotonic() > self.deadline else ""


@contextlib.contextmanager
def catch_stop_signals(deadline: float = math.inf) -> Iterator[StopSignal]:
    """Notes the first SIGINT or SIGTERM in the StopSignal that it yields; a second one ends the
    process at once. It works in the main thread only."""
    stop_signal = StopSignal(deadline)

    def note(number: int, frame: FrameType | None) -> None:
        stop_signal.number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop_signal
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
