"""A pid means something on its own machine, in its own PID namespace, and nowhere else."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from psvit_ray.runtime.session import process

ASKED = "from psvit_ray.runtime.session import process; print(process.machine())"


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as started:
        try:
            yield started
        finally:
            started.kill()


@pytest.mark.processes
def test_a_process_runs_is_suspended_runs_and_ends(child: subprocess.Popen[bytes]) -> None:
    started = process.started(child.pid)
    assert process.state(child.pid, started) == "running"
    for number, event, state in (
        (signal.SIGSTOP, os.WSTOPPED, "suspended"),
        (signal.SIGCONT, os.WCONTINUED, "running"),
        (signal.SIGKILL, os.WEXITED, "ended"),  # of which its parent has not asked yet
    ):
        child.send_signal(number)
        os.waitid(os.P_PID, child.pid, event | os.WNOWAIT)
        assert process.state(child.pid, started) == state
    child.wait()
    assert process.state(child.pid, started) == "ended"


def test_a_pid_that_is_used_again_is_another_process() -> None:
    assert process.state(os.getpid(), process.started(os.getpid())) == "running"
    assert process.state(os.getpid(), "1") == "ended"


def test_a_process_that_may_not_be_looked_at_is_unknown_not_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As another user's, where /proc is mounted with hidepid."""
    started = process.started(os.getpid())
    monkeypatch.setattr(process, "_look", lambda _: ("", ""))
    assert process.state(os.getpid(), started) == "unknown"


def machine_of_another_process(*before: str) -> str:
    return subprocess.run(
        [*before, sys.executable, "-c", ASKED], capture_output=True, text=True, check=True
    ).stdout.rstrip("\n")


@pytest.mark.processes
def test_a_machine_is_the_same_to_all_its_processes() -> None:
    assert machine_of_another_process() == process.machine() != ""


@pytest.mark.processes
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root")
def test_another_pid_namespace_is_another_machine() -> None:
    namespace = ["unshare", "--pid", "--fork"]
    boot = process.machine().split()[0]
    inside = machine_of_another_process(*namespace, "--mount-proc")
    assert inside != process.machine()
    assert inside.split()[0] == boot
    # Without a /proc of its own, its pids are those of other processes there.
    assert machine_of_another_process(*namespace) == ""
