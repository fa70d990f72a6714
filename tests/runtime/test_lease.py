"""One live driver for a name, and a dead one's name is free; who lost the name writes nothing."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyarrow import fs

from psvit_ray.runtime.session import lease, process
from psvit_ray.runtime.session.lease import Lease, NameInUse
from psvit_ray.storage import outputs
from psvit_ray.storage.fence import LAST, LEASE, Fence, LeaseLost
from psvit_ray.storage.folder import Folder

PATIENCE_S = 60.0  # for a busy machine; no test waits so long where the code is right
NEVER_S = 1e6
HOLD = """
import sys
from psvit_ray.storage.folder import Folder
from psvit_ray.runtime.session import lease
lease.HEARTBEAT_S = 0.05
with lease.Lease(Folder(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def content(folder: Folder) -> dict[str, Any]:
    return json.loads(folder.read(LEASE) or b"null")


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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second of silence ends a lease."""
    for name, seconds in {"HEARTBEAT_S": 0.02, "EXPIRES_S": 0.5, "LOOK_S": 0.01}.items():
        monkeypatch.setattr(lease, name, seconds)


@contextlib.contextmanager
def driver(folder: Folder, *before: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease until its input ends; started by the words `before`."""
    with subprocess.Popen(
        [*before, sys.executable, "-c", HOLD, folder.uri],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as started:
        assert started.stdout
        assert started.stdout.readline() == "held\n"
        try:
            yield started
        finally:
            started.kill()


def test_a_live_driver_keeps_others_off_and_says_who_it_is(folder: Folder) -> None:
    with Lease(folder):
        with pytest.raises(NameInUse, match=f"process {os.getpid()} on .* in {folder}"):
            Lease(folder).__enter__()
        with pytest.raises(NameInUse):
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


@pytest.mark.parametrize("stored", ["folder", "object_store"])
def test_the_number_of_a_token_grows_also_where_the_lease_is_gone(
    stored: str, request: pytest.FixtureRequest
) -> None:
    where = request.getfixturevalue(stored)
    with Lease(where) as first:
        assert first.number == content(where)["number"] == 1
    with Lease(where) as second:
        assert (second.number, second.owner != first.owner) == (2, True)
        where.delete(LEASE)
    assert json.loads(where.read(LAST) or b"")["owner"] == second.owner
    with Lease(where) as third:
        assert third.number == 3
    where.write(LAST, b"{")
    with Lease(where) as fourth:
        assert fourth.number == 1
        where.write(LAST, b"")
        with pytest.raises(LeaseLost):
            third.check()
        fourth.check()


@pytest.mark.processes
@pytest.mark.parametrize("reaped", [True, False])
def test_a_driver_killed_on_this_host_is_followed_at_once(
    folder: Folder, reaped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while its parent has not yet asked how it ended: in a container nobody may ever ask."""
    monkeypatch.setattr(lease, "EXPIRES_S", NEVER_S)
    with driver(folder) as other:
        with pytest.raises(
            NameInUse, match=f"process {other.pid} on .*; `kill {other.pid}` ends it"
        ):
            Lease(folder).__enter__()
        other.kill()
        if reaped:
            other.wait()
        else:
            os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        with Lease(folder):
            assert content(folder)["pid"] == os.getpid()


@pytest.mark.processes
@pytest.mark.usefixtures("quick")
def test_a_suspended_driver_of_this_host_keeps_its_lease(folder: Folder) -> None:
    with driver(folder) as other:
        other.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, other.pid, os.WSTOPPED | os.WNOWAIT)
        refused = (
            rf"process {other.pid} on this host is suspended \(state T\): `kill -CONT {other.pid}` "
            rf"lets it go on, `kill -KILL {other.pid}` ends it"
        )
        for wait in (False, True):  # the second waits for longer than a lease lasts
            with pytest.raises(NameInUse, match=refused):
                Lease(folder, wait=wait).__enter__()
        with pytest.raises(NameInUse, match=refused):
            Lease(folder).check()
        other.send_signal(signal.SIGCONT)
        other.communicate()
        assert other.returncode == 0
        assert folder.read(LEASE) is None
        with Lease(folder):
            pass


def of_another_host(folder: Folder, **changes: Any) -> None:
    holder = {"owner": "other", "host": "elsewhere", "pid": 1, "started": "1", "number": 7}
    folder.write(LEASE, json.dumps(holder | {"time": 1e9} | changes).encode())


@contextlib.contextmanager
def beating(folder: Folder) -> Iterator[None]:
    """The heartbeat of that one."""
    ended = threading.Event()

    def beat() -> None:
        number = 0
        while not ended.wait(0.02):
            number += 1
            folder.write(".lease.other", str(number).encode())

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("date", [0, 1e9, 9e9], ids=["1970", "2001", "2255"])
@pytest.mark.parametrize("wait", [False, True])
def test_another_hosts_driver_is_followed_by_its_silence_whatever_its_clock_says(
    folder: Folder, date: float, wait: bool, caplog: pytest.LogCaptureFixture
) -> None:
    of_another_host(folder, time=date)
    with (
        beating(folder),
        pytest.raises(NameInUse, match=r"process 1 on elsewhere .*; its heartbeat is alive"),
    ):
        Lease(folder, wait=wait).__enter__()
    assert content(folder)["owner"] == "other"
    caplog.clear()
    with Lease(folder, wait=wait) as token:
        assert content(folder)["owner"] == token.owner
        assert token.number == 8
    (waited,) = caplog.messages
    assert "process 1 on elsewhere" in waited


@pytest.mark.usefixtures("quick")
def test_looking_waits_for_a_sign_of_life_as_entering_does(folder: Folder) -> None:
    of_another_host(folder)
    with beating(folder), pytest.raises(NameInUse):
        Lease(folder).check()
    Lease(folder).check()
    assert content(folder)["owner"] == "other"


def test_a_pid_that_was_used_again_is_not_the_driver(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRES_S", NEVER_S)
    of_another_host(folder, machine=process.machine(), pid=os.getpid(), started="1")
    Lease(folder).check()


@pytest.mark.processes
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("machine", ["", "another boot", "another namespace"])
def test_a_pid_is_looked_up_nowhere_but_where_it_was_given(folder: Folder, machine: str) -> None:
    """Two containers of one host's name; a host that was started again; no /proc to ask."""
    boot, _, space = process.machine().partition(" ")
    machines = {"another boot": f"{'0' * 36} {space}", "another namespace": f"{boot} pid:[1]"}
    here = lease.socket.gethostname()
    dead = subprocess.Popen(["true"])
    dead.wait()
    of_another_host(folder, machine=machines.get(machine, ""), host=here, pid=dead.pid)
    with beating(folder), pytest.raises(NameInUse):
        Lease(folder).__enter__()
    of_another_host(
        folder,
        machine=machines.get(machine, ""),
        host=here,
        pid=os.getpid(),
        started=process.started(os.getpid()),
    )
    with Lease(folder) as token:
        assert content(folder)["owner"] == token.owner


@pytest.mark.processes
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root")
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("proc", ["--mount-proc", "--kill-child"], ids=["own proc", "host's proc"])
def test_a_driver_in_another_pid_namespace_is_believed_its_heartbeat(
    folder: Folder, proc: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pid there is 1, as is that of this host's first process."""
    monkeypatch.setattr(lease, "EXPIRES_S", PATIENCE_S)
    with driver(folder, "unshare", "--pid", "--fork", "--kill-child", proc) as other:
        assert content(folder)["pid"] == 1
        assert content(folder)["machine"] != process.machine()
        with pytest.raises(NameInUse, match=r"process 1 on .*; its heartbeat is alive"):
            Lease(folder).__enter__()
        other.communicate()
    assert folder.read(LEASE) is None


@pytest.mark.usefixtures("quick")
def test_the_heartbeat_keeps_a_lease_that_would_have_ended(folder: Folder) -> None:
    with Lease(folder) as token:
        beat = f".lease.{token.owner}"
        until(lambda: int(folder.read(beat) or 0) > 3)
        before = content(folder)
        assert before["owner"] == token.owner
    assert {path.name for path in Path(folder.uri).iterdir()} == {LAST, ".lease.lock"}
    assert "lease" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("failing", ["read", "write"])
def test_a_storage_that_fails_for_a_while_does_not_end_the_heartbeat(
    folder: Folder, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    works, failed = getattr(Folder, failing), threading.Event()

    def fails(self: Folder, name: str, *content: bytes, **how: bool) -> None:
        failed.set()
        raise OSError("no answer")

    with Lease(folder) as token:
        beat = f".lease.{token.owner}"
        monkeypatch.setattr(Folder, failing, fails)
        assert failed.wait(PATIENCE_S)
        if failing == "read":
            with pytest.raises(OSError, match="no answer"):  # the storage's error: nothing is lost
                token.check()
        monkeypatch.setattr(Folder, failing, works)
        before = int(folder.read(beat) or 0)
        until(lambda: int(folder.read(beat) or 0) > before)
        token.check()


NO_LEASES = {
    "empty": b"",
    "half": b'{"owner": "a", "ho',
    "list": b"[]",
    "null": b"null",
    "no owner": b"{}",
    "path as owner": b'{"owner": "../a", "host": "b", "pid": 1, "time": 0}',
    "no number": b'{"owner": "a", "host": "b", "pid": 1e30, "time": 0}',
    "no time": b'{"owner": "a", "host": "b", "pid": 1, "time": NaN}',
    "nested": b"[" * 100_000,
    "not text": bytes(range(256)),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("stored", [*NO_LEASES.values()], ids=[*NO_LEASES])
def test_what_is_no_lease_is_lost_to_its_driver_and_followed_once_it_stays_so(
    folder: Folder, stored: bytes
) -> None:
    def held_up() -> None:
        with Lease(folder):
            folder.write(LEASE, stored)
            time.sleep(PATIENCE_S)

    with pytest.raises(LeaseLost, match=f"lease on {folder} is lost: lease.json cannot be read"):
        held_up()
    assert folder.read(LEASE) == stored
    with Lease(folder) as token:
        token.check()


def _delete_lease(folder: Folder) -> None:
    folder.delete(LEASE)


def _delete_folder(folder: Folder) -> None:
    shutil.rmtree(folder.uri)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("happens", "said", "stays"),
    [
        (of_another_host, "taken over by process 1 on elsewhere at 2001-09-", [LEASE]),
        (_delete_lease, "lease.json is gone", []),
        (_delete_folder, "lease.json is gone", []),
    ],
)
def test_a_driver_that_lost_its_lease_is_interrupted_and_leaves_what_is_there_alone(
    folder: Folder,
    happens: Callable[[Folder], None],
    said: str,
    stays: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Held up for longer than a lease lasts, as a laptop that slept."""

    def held_up() -> None:
        with Lease(folder):
            happens(folder)
            time.sleep(PATIENCE_S)

    with pytest.raises(LeaseLost, match=f"lease on {folder} is lost: {said}"):
        held_up()
    assert folder.names() == stays
    assert Path(folder.uri).exists() == (happens is not _delete_folder)
    assert f"is lost: {said}" in caplog.text


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_in_the_place_of_a_lease_is_no_lease(
    folder: Folder, make: Callable[[Path], None]
) -> None:
    with Lease(folder) as token:
        folder.delete(LEASE)
        make(Path(folder.uri, LEASE))
        with pytest.raises(LeaseLost, match=r"lease\.json cannot be read"):
            token.check()
    with pytest.raises(ValueError, match=r"lease\.json must be a file: remove what stands there"):
        Lease(folder).check()


def test_who_took_over_is_named_also_when_it_has_given_the_name_back(folder: Folder) -> None:
    with Lease(folder) as first:
        folder.delete(LEASE)
        with Lease(folder):
            pass
        with pytest.raises(LeaseLost, match=rf"taken over by process {os.getpid()} .* given it"):
            first.check()


@pytest.mark.usefixtures("quick")
def test_a_heartbeat_that_fails_for_no_known_reason_ends_the_driver_and_frees_the_name(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Folder, name: str, content: bytes, *, durable: bool) -> None:
        raise TypeError("unheard of")

    def held_up() -> None:
        with Lease(folder):
            monkeypatch.setattr(Folder, "write", fails)
            time.sleep(PATIENCE_S)

    with pytest.raises(TypeError, match="unheard of"):
        held_up()
    assert folder.read(LEASE) is None


def test_a_lock_that_a_suspended_process_has_is_not_waited_for_without_end(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "EXPIRES_S", 0.2)
    Path(folder.uri).mkdir()
    with Path(folder.uri, ".lease.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(NameInUse, match=r"suspended, or very slow, has its .lease.lock locked"):
            Lease(folder).__enter__()
    with Lease(folder):
        pass


def _no_locks(*_: object) -> None:
    raise OSError(95, "Operation not supported")


def test_without_locks_a_lease_settles_as_in_an_object_store(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease.fcntl, "flock", _no_locks)
    monkeypatch.setattr(lease, "SETTLES_S", 0.3)
    number = 8
    start, tried = threading.Barrier(number), threading.Barrier(number)
    with ThreadPoolExecutor(number) as pool:
        won = [*pool.map(lambda _: _contend_here(folder, start, tried), range(number))]
    assert sum(won) == 1


def fenced(folder: Folder) -> tuple[Fence, Folder]:
    """A token whose lease another took, and a folder of the name."""
    with Lease(folder) as token:
        pass
    of_another_host(folder)
    return token, token.over((folder / "record").uri)


@pytest.mark.parametrize("stored", ["folder", "object_store"])
def test_nothing_is_written_deleted_or_put_in_place_without_the_lease(
    stored: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    where = request.getfixturevalue(stored)
    (where / "record").write("a.json", b"the other's")
    _, record = fenced(where)
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "file").write_bytes(b"x")

    def new_folder() -> None:
        with outputs.new_folder(record / "model") as path:
            (path / "file").write_bytes(b"x")

    def new_file() -> None:
        with outputs.new_file(record / "table") as file:
            file.write("x")

    for attempt in (
        lambda: record.write("a.json", b"mine"),
        lambda: (record / "below").write("a.json", b"mine"),
        lambda: record.delete("a.json"),
        lambda: record.delete_files(["a.json"]),
        lambda: record.upload(tmp_path / "local"),
        new_folder,
        new_file,
    ):
        with pytest.raises(LeaseLost, match="taken over by process 1 on elsewhere"):
            attempt()
    assert (where / "record").names() == ["a.json"]
    assert record.read("a.json") == b"the other's"


def test_a_lease_that_is_lost_while_a_file_is_written_keeps_it_from_counting(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last check stands between the content and the rename."""
    with Lease(folder) as token:
        record = token.over((folder / "record").uri)
        record.write("a.json", b"first")
        checks = 0

        def check(self: Fence) -> None:
            nonlocal checks
            checks += 1
            if checks == 2:
                of_another_host(folder)
            works(self)

        works = Fence.check
        monkeypatch.setattr(Fence, "check", check)
        with pytest.raises(LeaseLost):
            record.write("a.json", b"second")
        monkeypatch.undo()
        folder.delete(LEASE)
    assert checks == 2
    assert record.read("a.json") == b"first"
    assert [path.name for path in Path(record.uri).iterdir()] == ["a.json"]


def test_a_token_crosses_a_process_boundary_as_primitives(folder: Folder) -> None:
    with Lease(folder) as token:
        Fence.model_validate(json.loads(token.model_dump_json())).check()


STEPS = 48
DONE, LOST, IN_USE = 0, 1, 2


def _stops_before(step: int) -> None:
    """Suspends this process before it reads, writes, deletes or checks for the `step`th time: at
    any moment but that between the last check and the rename that follows."""
    steps = itertools.count(1)

    def stepping(works: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGSTOP)
            return works(*args, **options)

        return run

    for name in ("read", "write", "delete", "check_guard"):
        setattr(Folder, name, stepping(getattr(Folder, name)))


def _drives(uri: str, name: str, locks: bool, stop_before: int, other: Connection | None) -> None:
    """A driver on a machine of its own that writes numbered records. The second one waits after
    two, until the first has ended."""
    lease.HEARTBEAT_S, lease.EXPIRES_S, lease.LOOK_S, lease.SETTLES_S = 0.02, 0.4, 0.02, 0.1
    process.machine = lambda: name
    if not locks:
        fcntl.flock = _no_locks
    if stop_before:
        _stops_before(stop_before)
    try:
        with Lease(Folder(uri)) as token:
            record = token.over(f"{uri}/record")
            for number in range(3):
                record.write("a.json", f"{name} {number}".encode())
                if other and number == 1:
                    other.send("two are written")
                    other.recv()
                time.sleep(0.01)  # for a heartbeat
    except LeaseLost:
        sys.exit(LOST)
    except NameInUse:
        sys.exit(IN_USE)


def is_stopped(child: Any) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(child.pid).status() == psutil.STATUS_STOPPED
    return False


@pytest.mark.processes
@pytest.mark.parametrize("locks", [True, False], ids=["locks", "no locks"])
def test_wherever_a_driver_is_suspended_only_the_last_to_take_the_lease_writes_on(
    tmp_path: Path, locks: bool
) -> None:
    context = multiprocessing.get_context("fork")

    def outcomes_of(steps: range) -> Iterator[tuple[int, int, bool]]:
        """How both ended, and whether the first was suspended."""
        uris = {step: f"{tmp_path}/{step}" for step in steps}
        firsts, seconds = {}, {}
        for step, uri in uris.items():
            firsts[step] = context.Process(
                target=_drives, args=(uri, "first", locks, step, None), daemon=True
            )
            firsts[step].start()
        for step, uri in uris.items():
            first = firsts[step]
            while first.is_alive() and not is_stopped(first):
                time.sleep(0.01)
            suspended = is_stopped(first)
            ours, theirs = context.Pipe()
            second = context.Process(
                target=_drives, args=(uri, "second", locks, 0, theirs), daemon=True
            )
            second.start()
            theirs.close()
            seconds[step] = second, ours, suspended
        for step, uri in uris.items():
            second, ours, suspended = seconds[step]
            with contextlib.suppress(EOFError):  # it was refused
                assert ours.recv() == "two are written"
                assert Folder(uri + "/record").read("a.json") == b"second 1"
            first = firsts[step]
            if suspended:
                psutil.Process(first.pid).resume()
            first.join(PATIENCE_S)
            written = Folder(uri + "/record").read("a.json")
            with contextlib.suppress(OSError):
                ours.send("the first has ended")
            second.join(PATIENCE_S)
            last = Folder(uri + "/record").read("a.json")
            assert first.exitcode is not None
            assert second.exitcode is not None
            if second.exitcode == DONE:
                assert (step, written, last) == (step, b"second 1", b"second 2")
            else:
                assert (step, first.exitcode, last) == (step, DONE, written)
                # Without locks the first may give back, as its own, the lease of the second.
                assert written == b"first 2" or (not locks and written == b"second 1")
            yield first.exitcode, second.exitcode, suspended

    batches = [range(step, step + 16) for step in range(1, STEPS, 16)]
    outcomes = [outcome for batch in batches for outcome in outcomes_of(batch)]
    assert {suspended for *_, suspended in outcomes} == {True, False}  # until its very last step
    assert outcomes.count((LOST, DONE, True)) > 10


def _contend(uri: str, start: Any, tried: Any, won: Any) -> None:
    start.wait()
    try:
        with Lease(Folder(uri)):
            won.release()
            tried.wait()
    except NameInUse:
        tried.wait()


@pytest.mark.processes
def test_of_many_processes_at_the_same_moment_one_wins(folder: Folder) -> None:
    context, number = multiprocessing.get_context("fork"), 8
    start, tried = context.Barrier(number), context.Barrier(number)
    won = context.Semaphore(0)
    several = [
        context.Process(target=_contend, args=(folder.uri, start, tried, won))
        for _ in range(number)
    ]
    for contender in several:
        contender.start()
    for contender in several:
        contender.join(PATIENCE_S)
    assert [contender.exitcode for contender in several] == [0] * number
    assert won.acquire(block=False)
    assert not won.acquire(block=False)


def _contend_here(folder: Folder, start: threading.Barrier, tried: threading.Barrier) -> bool:
    start.wait()
    try:
        with Lease(folder):
            tried.wait()
            return True
    except NameInUse:
        tried.wait()
        return False


@pytest.mark.parametrize("stored", ["folder", "object_store"])
def test_of_many_threads_at_the_same_moment_one_wins(
    stored: str, request: pytest.FixtureRequest
) -> None:
    where, number = request.getfixturevalue(stored), 8
    start, tried = threading.Barrier(number), threading.Barrier(number)
    with ThreadPoolExecutor(number) as pool:
        won = [*pool.map(lambda _: _contend_here(where, start, tried), range(number))]
    assert sum(won) == 1
    assert where.names() == []
