"""SIGINT and SIGTERM to a driver: the first is noted, so that a run can end in order."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Heard:
    """The signal that asked to stop, once there was one."""

    number: int | None = None

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name if self.number else ""


@contextlib.contextmanager
def listening() -> Iterator[Heard]:
    """Notes the first signal; a second one ends the process at once. In the main thread only."""
    heard = Heard()

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
