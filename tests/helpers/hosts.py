"""Hosts that are namespaces of this machine: each has its network, name, processes, shared memory
and temporary folder, and a Ray that is joined to the head's. Files are the machine's, so every
folder is shared but those given as `private`. Needs root, iproute2 and util-linux.

    with Hosts(2) as hosts:
        hosts.submit(["python", "jobs/tune_psvit.py", "--storage", "/shared", "--name", "a"])
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self

import psutil

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
HEAD = 1
PORT = 6379
PATIENCE_S = 240
# Variables with which a host that is cut off is lost after some 15 s, not after 50.
QUICK_TO_NOTICE = {
    f"RAY_health_check_{name}": value
    for name, value in {
        **{"initial_delay_ms": "1000", "period_ms": "1000"},
        **{"timeout_ms": "3000", "failure_threshold": "5"},
    }.items()
}
# The first process of a host: the name, the memory, the folders, then what follows.
BEGIN = """
set -e
hostname "$1"; mount -t tmpfs tmpfs /dev/shm; shift
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done; shift
exec "$@"
"""
# What systemd or a container does for a service: ends what it left, and starts it again.
SUPERVISE = ["bash", "-c", 'while :; do "$@" || true; kill -9 -1 || true; sleep 1; done', "_"]
COUNTED = f"""
import sys, time
from ray._raylet import GcsClient
head, number = GcsClient(sys.argv[1]), int(sys.argv[2])
patience = time.monotonic() + {PATIENCE_S}
while sum(one.state == 0 for one in head.get_all_node_info().values()) != number:
    assert time.monotonic() < patience
    time.sleep(0.1)
"""


class Listener(NamedTuple):
    """A socket that waits for connections."""

    address: str
    port: int
    process: str


class Hosts:
    """`number` hosts, the first of which is the head. Use in a `with` block, which leaves nothing
    behind. `private` are folders of which each host has its own, `variables` are of all of them,
    `head` are further words of the head's `ray start`.
    """

    def __init__(
        self,
        number: int = 2,
        *,
        cpus: int = 1,
        private: Sequence[Path] = (),
        variables: dict[str, str] | None = None,
        head: Sequence[str] = (),
    ) -> None:
        self.numbers = range(HEAD, HEAD + number)
        self.token = secrets.token_hex(16)
        self._cpus, self._private, self._given = cpus, [*private], variables or {}
        self._head = head
        self._prefix = f"psvit{os.getpid()}"
        self._switch = f"{self._prefix}sw"
        self._first: dict[int, subprocess.Popen[bytes]] = {}
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        _sweep()
        with contextlib.ExitStack() as stack:
            self.folder = Path(
                stack.enter_context(tempfile.TemporaryDirectory(prefix="hosts", dir="/tmp"))
            )
            self._own = self.folder / "own"  # where each host mounts what is its own
            self._own.mkdir()
            stack.callback(_remove, self._prefix)
            stack.callback(lambda: [self.kill(host) for host in [*self._first]])
            self._wire()
            self._begin(HEAD)
            self._wait(HEAD)
            for host in self.numbers[1:]:
                self._begin(host)
            for host in self.numbers[1:]:
                self._wait(host)
            self.wait_for(len(self.numbers))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def name(self, host: int) -> str:
        return f"{self._prefix}h{host}"

    def address(self, host: int) -> str:
        return f"10.77.0.{host}"

    @property
    def ray_address(self) -> str:
        return f"{self.address(HEAD)}:{PORT}"

    @property
    def dashboard(self) -> str:
        """On the head, for itself alone."""
        return "http://127.0.0.1:8265"

    def private(self, host: int, folder: Path) -> Path:
        """Where a host's own `folder` can be reached from outside."""
        return self.folder / self.name(host) / str(self._private.index(folder))

    def ray_logs(self, host: int) -> Path:
        """Of the Ray that was started there last."""
        return next((self.folder / self.name(host) / "tmp" / "ray").glob("session_2*")) / "logs"

    def log(self, host: int) -> str:
        """What `ray start` said there."""
        return (self.folder / f"{self.name(host)}.log").read_text()

    def variables(self) -> dict[str, str]:
        """The environment of every process: this one's, but for what it says of another Ray."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return {
            **ours,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self._own),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            **self._given,
        }

    def popen(self, host: int, argv: Sequence[str], **variables: str) -> subprocess.Popen[str]:
        """Runs in a host, from the checkout; a job that is no submitted one joins its Ray."""
        return subprocess.Popen(
            ["nsenter", f"-t{self._pid(host)}", "-n", "-u", "-p", "-m", "-i", f"--wdns={ROOT}"]
            + [*argv],
            env=self.variables() | {"RAY_ADDRESS": self.ray_address} | variables,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, host: int, argv: Sequence[str], **variables: str) -> tuple[int, str]:
        """The exit code, and what was said."""
        process = self.popen(host, argv, **variables)
        said = process.communicate(timeout=PATIENCE_S)[0]
        return process.returncode, said

    def submit(self, argv: Sequence[str], *options: str) -> subprocess.Popen[str]:
        """On the head; says what the job says, and ends with it."""
        return self.popen(HEAD, self.words_of_submit(argv, *options))

    def words_of_submit(self, argv: Sequence[str], *options: str) -> list[str]:
        words = ["ray", "job", "submit", f"--address={self.dashboard}", "--working-dir=."]
        return [*words, *options, "--", *argv]

    def driver(self, given: subprocess.Popen[str]) -> list[psutil.Process]:
        """What `popen` runs in the host: signals to that itself do not reach it."""
        return psutil.Process(given.pid).children()

    def mend(self) -> None:
        """All hosts there again, and linked."""
        for host in self.numbers:
            self.heal(host)
            if host not in self._first:
                self.replace(host)
        self.wait_for(len(self.numbers))

    def kill(self, host: int) -> None:
        """As a power cut does."""
        first = self._first.pop(host)
        try:
            psutil.Process(self._inside(first)).kill()
        except (psutil.NoSuchProcess, IndexError):  # it has not come so far, or is gone
            first.kill()
        first.wait(PATIENCE_S)  # the first process ends last

    def replace(self, host: int) -> None:
        """Another in the place of one that was killed; it has joined when this returns."""
        self._begin(host)
        self._wait(host)
        self.wait_for(len(self._first))

    def wait_for(self, number: int) -> None:
        """Until the head counts so many hosts as alive, itself with them."""
        code, said = self.run(HEAD, [sys.executable, "-c", COUNTED, self.ray_address, str(number)])
        if code:
            raise RuntimeError(f"{number} hosts were not counted: {said}")

    def cut(self, host: int) -> None:
        """The link to all others."""
        _ip("-n", self._switch, "link", "set", f"p{host}", "down")

    def heal(self, host: int) -> None:
        _ip("-n", self._switch, "link", "set", f"p{host}", "up")

    def throttle(self, host: int, rate: str) -> None:
        """Bounds what it sends and what it is sent, each to a rate as tc writes it: `50mbit`."""
        for network, device in ((self.name(host), "eth0"), (self._switch, f"p{host}")):
            words = f"tc -n {network} qdisc replace dev {device} root tbf rate {rate}"
            _do(*words.split(), "burst", "32kbit", "latency", "400ms")

    def unthrottle(self, host: int) -> None:
        for network, device in ((self.name(host), "eth0"), (self._switch, f"p{host}")):
            _do(*f"tc -n {network} qdisc del dev {device} root".split())

    def drain(self, host: int, seconds: int) -> None:
        """The notice of a cloud that it will take a spot host; taking it is for `kill`."""
        code, said = self.run(
            host,
            ["ray", "drain-node", f"--address={self.ray_address}", "--reason-message=spot"]
            + ["--reason=DRAIN_NODE_REASON_PREEMPTION"]
            + [f"--deadline-remaining-seconds={seconds}"],
        )
        if code:
            raise RuntimeError(said)

    def bytes_sent(self, host: int) -> int:
        """By its interface, so far."""
        (device,) = json.loads(_ip("-n", self.name(host), "-s", "-j", "link", "show", "eth0"))
        return int(device["stats64"]["tx"]["bytes"])

    def listening(self, host: int) -> set[Listener]:
        """All of the host that wait for connections by TCP."""
        found = set()
        for line in self.run(host, ["ss", "-Hltnp"])[1].splitlines():
            address, _, port = line.split()[3].rpartition(":")
            process = re.search(r'\(\("([^"]*)"', line)
            found.add(Listener(address, int(port), process[1] if process else ""))
        return found

    def processes(self, host: int) -> list[psutil.Process]:
        """All of the host, with its first."""
        first = psutil.Process(self._pid(host))
        return [first, *first.children(recursive=True)]

    def resolve(self, *, own_name_to: str = "") -> None:
        """What names stand for in all hosts: their addresses, or, as many distributions have it,
        a host's own name for another."""
        for host in self.numbers:
            lines = ["127.0.0.1 localhost"]
            for other in self.numbers:
                own = own_name_to if other == host else ""
                lines.append(f"{own or self.address(other)} {self.name(other)}")
            # Rewritten, not replaced: it is mounted over the host's /etc/hosts.
            Path("/etc/netns", self.name(host), "hosts").write_text("\n".join(lines) + "\n")

    def _wire(self) -> None:
        """All hosts to one switch, which is in a network of its own: addresses clash with none."""
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "br0", "type", "bridge")
        _ip("-n", self._switch, "link", "set", "br0", "up")
        for host in self.numbers:
            name = self.name(host)
            _ip("netns", "add", name)
            ends = f"link add eth0 netns {name} type veth peer name p{host} netns {self._switch}"
            _ip(*ends.split())
            _ip("-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
            _ip("-n", self._switch, "link", "set", f"p{host}", "master", "br0", "up")
            Path("/etc/netns", name).mkdir(parents=True)
        self.resolve()

    def _begin(self, host: int) -> None:
        name = self.name(host)
        own = self.folder / name
        shutil.rmtree(own, ignore_errors=True)
        mounts: list[str] = []
        for number, folder in [("tmp", self._own), *enumerate(self._private)]:
            (own / str(number)).mkdir(parents=True)
            mounts += [str(own / str(number)), str(folder)]
        start = ["ray", "start", "--block", f"--node-ip-address={self.address(host)}"]
        start += [f"--num-cpus={self._cpus}", '--resources={"slot": 1}']
        start += ["--object-store-memory=200000000"]
        if host == HEAD:
            start += ["--head", f"--port={PORT}", *self._head]
        else:
            start = [*SUPERVISE, *start, f"--address={self.ray_address}"]
        with open(self.folder / f"{name}.log", "wb") as log:
            self._first[host] = subprocess.Popen(
                ["ip", "netns", "exec", name, "unshare", "-u", "-p", "-m", "-i", "-f"]
                + ["--kill-child", "--mount-proc", "bash", "-c", BEGIN, "_", name]
                + [*mounts, "--", *start],
                env=self.variables(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _wait(self, host: int) -> None:
        patience = time.monotonic() + PATIENCE_S
        while "Ray runtime started" not in self.log(host):
            if self._first[host].poll() is not None or time.monotonic() > patience:
                raise RuntimeError(f"{self.name(host)} did not start: {self.log(host)}")
            time.sleep(0.2)

    def _pid(self, host: int) -> int:
        return self._inside(self._first[host])

    @staticmethod
    def _inside(first: subprocess.Popen[bytes]) -> int:
        """Of the host's first process, which `unshare` is the parent of."""
        return psutil.Process(first.pid).children()[0].pid


def tracking_server(hosts: Hosts, folder: Path, database: str = "") -> str:
    """The address of an MLflow on the head, whose store is in `folder` or, but for artifacts, a
    database of its own."""
    address = f"http://{hosts.address(HEAD)}:5000"
    database = database or f"sqlite:///{folder}/server.db"
    log = folder / "server.log"
    server = hosts.popen(
        HEAD,
        ["bash", "-c", 'exec "$@" >"$0" 2>&1', str(log), "mlflow", "server", "--workers=1"]
        + [f"--backend-store-uri={database}", f"--artifacts-destination={folder}/artifacts"]
        + [f"--host={hosts.address(HEAD)}"],
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )
    check = f"from psvit_ray.runtime.tracking.store_uri import check; check({address!r})"
    patience = time.monotonic() + PATIENCE_S
    while hosts.run(HEAD, [sys.executable, "-c", check])[0]:
        if server.poll() is not None or time.monotonic() > patience:
            raise RuntimeError(f"MLflow did not start: {log.read_text()}")
    return address


def _sweep() -> None:
    """What a run left that was itself killed."""
    for prefix in {found[0] for name in networks() if (found := re.match(r"psvit(\d+)", name))}:
        if not psutil.pid_exists(int(prefix.removeprefix("psvit"))):
            _remove(prefix)


def _remove(prefix: str) -> None:
    """All networks of a run, and the processes that are left in them."""
    for name in networks():
        if re.fullmatch(rf"{prefix}(sw|h\d+)", name):
            for pid in _ip("netns", "pids", name).split():
                with contextlib.suppress(psutil.NoSuchProcess):
                    psutil.Process(int(pid)).kill()
            _ip("netns", "del", name)
            shutil.rmtree(Path("/etc/netns", name), ignore_errors=True)


def networks() -> list[str]:
    return [line.split()[0] for line in _ip("netns", "list").splitlines()]


def _ip(*words: str) -> str:
    return _do("ip", *words)


def _do(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
