"""A test that starts Ray or another process says so: here what is not marked is refused."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

import pytest

MARK = "processes"
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
"""Audit events of starting a process; `multiprocessing` has ways that raise none."""

_forbidden_to = ""


class ProcessStarted(BaseException):
    """No `Exception`: whatever the product catches, the test fails."""


def _refuse(event: str) -> None:
    if _forbidden_to:
        raise ProcessStarted(f"{_forbidden_to} starts a process ({event}): mark it `{MARK}`")


def install() -> None:
    """Audits this process until it ends."""
    platform.processor()  # asks `uname` the first time, for whoever wants to know
    sys.addaudithook(lambda event, _: _refuse(event) if event in STARTS else None)
    start = BaseProcess.start

    def guarded(process: BaseProcess) -> None:
        _refuse("multiprocessing")
        start(process)

    BaseProcess.start = guarded  # type: ignore[method-assign, assignment]


def may_start(test: pytest.Item) -> bool:
    return any(test.get_closest_marker(mark) for mark in (MARK, "chaos", "cluster"))


@contextmanager
def forbidden(test: str) -> Iterator[None]:
    """While the test with this name runs, no process can be started."""
    global _forbidden_to
    _forbidden_to = test
    try:
        yield
    finally:
        _forbidden_to = ""
