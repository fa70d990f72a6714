"""Waiting for what other processes do."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable

PATIENCE_S = 240


def wait_until(condition: Callable[[], bool], driver: subprocess.Popen[str]) -> None:
    patience = time.monotonic() + PATIENCE_S
    while not condition():
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < patience
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as given:
        given.bind(("127.0.0.1", 0))
        return int(given.getsockname()[1])


def until(true: Callable[[], bool], patience_s: float = 120) -> None:
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)
