"""What asks a driver to end: SIGINT and SIGTERM, of which the first is noted, and a deadline."""

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
class Heard:
    """What asked to end in order, once something did."""

    deadline: float = math.inf
    """A moment of time.monotonic()."""
    number: int | None = None
    """Of the signal."""

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name if self.number else ""

    @property
    def reason(self) -> str:
        """Empty until there is one."""
        if self.number:
            return f"stopped by {self.name}"
        return "its budget of hours was over" if time.monotonic() > self.deadline else ""


@contextlib.contextmanager
def listening(deadline: float = math.inf) -> Iterator[Heard]:
    """Notes the first signal; a second one ends the process at once. In the main thread only."""
    heard = Heard(deadline)

    def note(number: int, frame: FrameType | None) -> None:
        heard.number = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
