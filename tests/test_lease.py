"""One live driver for a name, and a dead one's name is free."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

from psvit_ray.data.storage import Folder
from psvit_ray.runtime import lease
from psvit_ray.runtime.lease import FILE, InUse, Lease

PATIENCE_S = 60.0  # for a busy machine; no test waits so long where the code is right
HOLD = """
import sys, time
from psvit_ray.data.storage import Folder
from psvit_ray.runtime.lease import Lease
with Lease(Folder(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def content(folder: Folder) -> dict[str, Any]:
    return json.loads(folder.read(FILE) or b"null")


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "name"))


@pytest.fixture
def object_store(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """No renaming, no locks: as on s3://."""
    there = fs.SubTreeFileSystem("", fs._MockFileSystem())
    monkeypatch.setattr(Folder, "open", lambda self: (there, self.uri.partition("://")[2]))
    monkeypatch.setattr(lease, "SETTLES_S", 0.3)
    return Folder("mock://bucket/name")


def test_a_live_driver_keeps_others_off_and_says_who_it_is(folder: Folder) -> None:
    with Lease(folder):
        with pytest.raises(InUse, match=f"process {os.getpid()} on .* in {folder}"):
            Lease(folder).__enter__()
        with pytest.raises(InUse):
            Lease(folder).check()
        assert content(folder)["pid"] == os.getpid()  # the refused one changed nothing
    Lease(folder).check()
    with Lease(folder):
        pass


def test_leaving_frees_the_name_also_by_an_error(folder: Folder) -> None:
    with pytest.raises(RuntimeError), Lease(folder):
        raise RuntimeError
    assert folder.names() == []


def test_looking_writes_nothing(folder: Folder) -> None:
    Lease(folder).check()
    assert not Path(folder.uri).exists()


@pytest.mark.parametrize("reaped", [True, False])
def test_a_driver_killed_on_this_host_is_followed_at_once(folder: Folder, reaped: bool) -> None:
    """Also while its parent has not yet asked how it ended: in a container nobody may ever ask."""
    driver = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder.uri], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout
    assert driver.stdout.readline() == "held\n"
    with pytest.raises(InUse, match=f"process {driver.pid} "):
        Lease(folder).__enter__()
    driver.send_signal(signal.SIGKILL)
    if reaped:
        driver.wait()
    else:
        os.waitid(os.P_PID, driver.pid, os.WEXITED | os.WNOWAIT)
    assert lease._left(content(folder)) > 10  # it is not time that ended it
    with Lease(folder):
        assert content(folder)["pid"] == os.getpid()
    driver.wait()
    driver.stdout.close()


def of_another_host(folder: Folder, *, seconds_ago: float, **changes: Any) -> None:
    holder = {"owner": "other", "host": "elsewhere", "pid": 1, "started": "1"}
    holder |= {"time": time.time() - seconds_ago} | changes
    folder.write(FILE, json.dumps(holder).encode())


def test_a_driver_of_another_host_is_followed_when_its_heartbeat_has_stopped(
    folder: Folder,
) -> None:
    of_another_host(folder, seconds_ago=lease.EXPIRES_S - 15)
    with pytest.raises(InUse, match=r"process 1 on elsewhere .* ends in 1\d s"):
        Lease(folder).__enter__()
    of_another_host(folder, seconds_ago=lease.EXPIRES_S + 1)
    with Lease(folder):
        assert content(folder)["owner"] != "other"


def test_a_pid_that_was_used_again_is_not_the_driver(folder: Folder) -> None:
    here = lease.socket.gethostname()
    of_another_host(folder, seconds_ago=0, host=here, pid=os.getpid(), started="1")
    Lease(folder).check()


def test_a_driver_without_proc_to_ask_is_believed_its_heartbeat(folder: Folder) -> None:
    """As on macOS, where it could not say when it started."""
    here = lease.socket.gethostname()
    of_another_host(folder, seconds_ago=0, host=here, pid=os.getpid(), started="")
    with pytest.raises(InUse):
        Lease(folder).check()


def test_the_heartbeat_keeps_a_lease_that_would_have_ended(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.01)
    with Lease(folder):
        first = content(folder)
        until(lambda: content(folder)["time"] > first["time"] + 0.1)
        assert content(folder) | {"time": 0} == first | {"time": 0}
    assert folder.names() == []  # no heartbeat after the end
    assert "lease" not in {thread.name for thread in threading.enumerate()}


def test_a_storage_that_fails_for_a_while_does_not_end_the_heartbeat(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.01)
    write, failed = Folder.write, threading.Event()

    def fails(self: Folder, name: str, content: bytes) -> None:
        failed.set()
        raise OSError("no space")

    with Lease(folder):
        monkeypatch.setattr(Folder, "write", fails)
        assert failed.wait(PATIENCE_S)
        before = content(folder)["time"]
        monkeypatch.setattr(Folder, "write", write)
        until(lambda: content(folder)["time"] > before)


def test_who_waits_follows_a_driver_that_has_died_but_not_one_that_lives(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.02)
    monkeypatch.setattr(lease, "EXPIRES_S", 0.5)
    of_another_host(folder, seconds_ago=0)
    with Lease(folder, wait=True):
        assert content(folder)["owner"] != "other"

    alive = True

    def beat() -> None:
        while alive:
            of_another_host(folder, seconds_ago=0)
            time.sleep(0.02)

    of_another_host(folder, seconds_ago=0)
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(InUse):
            Lease(folder, wait=True).__enter__()
    finally:
        alive = False
        thread.join()


def test_a_driver_that_lost_its_lease_is_interrupted_and_leaves_the_others_alone(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Held up for longer than a lease lasts, as a laptop that slept."""
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.05)

    def held_up() -> None:
        with Lease(folder):
            of_another_host(folder, seconds_ago=0)
            time.sleep(PATIENCE_S)

    with pytest.raises(KeyboardInterrupt):
        held_up()
    assert content(folder)["owner"] == "other"
    assert "taken over by process 1 on elsewhere" in caplog.text


def _contend(uri: str, start: Any, tried: Any, won: Any) -> None:
    start.wait()
    try:
        with Lease(Folder(uri)):
            won.release()
            tried.wait()
    except InUse:
        tried.wait()


def test_of_many_processes_at_the_same_moment_one_wins(folder: Folder) -> None:
    context, number = multiprocessing.get_context("fork"), 8
    start, tried = context.Barrier(number), context.Barrier(number)
    won = context.Semaphore(0)
    several = [
        context.Process(target=_contend, args=(folder.uri, start, tried, won))
        for _ in range(number)
    ]
    for process in several:
        process.start()
    for process in several:
        process.join(PATIENCE_S)
    assert [process.exitcode for process in several] == [0] * number
    assert won.acquire(block=False)
    assert not won.acquire(block=False)


@pytest.mark.parametrize("stored", ["folder", "object_store"])
def test_of_many_threads_at_the_same_moment_one_wins(
    stored: str, request: pytest.FixtureRequest
) -> None:
    where, number = request.getfixturevalue(stored), 8
    start, tried = threading.Barrier(number), threading.Barrier(number)

    def contend(_: int) -> bool:
        start.wait()
        try:
            with Lease(where):
                tried.wait()
                return True
        except InUse:
            tried.wait()
            return False

    with ThreadPoolExecutor(number) as pool:
        assert sum(pool.map(contend, range(number))) == 1
    assert where.names() == []
