"""The hosts of the other cluster tests."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.helpers.hosts import HEAD, Hosts, networks

pytestmark = pytest.mark.cluster
PORT = 7000
SERVES = f"""
import socket
server = socket.create_server(("0.0.0.0", {PORT}))
print("serves", flush=True)
while True:
    client, _ = server.accept()
    while client.recv(1 << 16): pass
    client.sendall(b"all")
"""
SENDS = f"""
import socket, sys, time
with socket.create_connection((sys.argv[1], {PORT}), timeout=5) as server:
    began = time.monotonic()
    server.sendall(bytes(int(sys.argv[2])))
    server.shutdown(socket.SHUT_WR)
    assert server.recv(3) == b"all"
print(time.monotonic() - began)
"""


def ours() -> list[str]:
    """What there is of this process's hosts."""
    prefix = f"psvit{os.getpid()}"
    configured = Path("/etc/netns")
    names = [*networks(), *(path.name for path in configured.glob("*"))]
    return [name for name in names if name.startswith((f"{prefix}h", f"{prefix}sw"))]


def test_two_hosts_talk_until_they_are_cut_at_the_rate_they_may_and_leave_nothing() -> None:
    def sends(hosts: Hosts, number: int) -> tuple[int, str]:
        return hosts.run(2, ["python", "-c", SENDS, hosts.address(HEAD), str(number)])

    with Hosts(2) as hosts:
        processes = [one for host in hosts.numbers for one in hosts.processes(host)]
        server = hosts.popen(HEAD, ["python", "-c", SERVES])
        assert server.stdout
        assert server.stdout.readline() == "serves\n"
        assert hosts.run(2, ["hostname"]) == (0, f"{hosts.name(2)}\n")

        sent = hosts.bytes_sent(2)
        code, said = sends(hosts, 1_000_000)
        assert code == 0, said
        assert 1_000_000 < hosts.bytes_sent(2) - sent < 1_400_000  # Ray talks too
        hosts.throttle(2, "8mbit")
        code, said = sends(hosts, 1_000_000)
        assert code == 0, said
        assert float(said) > 0.9  # at a million bytes a second; a busy machine only takes longer
        hosts.unthrottle(2)

        hosts.cut(2)
        code, said = sends(hosts, 1)
        assert (code, "timed out" in said or "No route to host" in said) == (1, True)
        hosts.heal(2)
        assert sends(hosts, 1)[0] == 0
        assert ours()
    patience = time.monotonic() + 30
    while any(one.is_running() for one in processes) and time.monotonic() < patience:
        time.sleep(0.1)
    assert not [one for one in processes if one.is_running()]
    assert (ours(), hosts.folder.exists()) == ([], False)


def test_hosts_that_cannot_start_say_why_and_leave_nothing() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)h1 did not start: .* nonnegative"), Hosts(cpus=-1):
        pass
    assert ours() == []
