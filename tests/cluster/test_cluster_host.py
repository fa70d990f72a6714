"""What runs on every host of a cluster beside Ray, and how a job's command reaches the head."""

from __future__ import annotations

import http.server
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.helpers.cluster_files import CLUSTER, SETTINGS

KEEP = CLUSTER / "host" / "keep.sh"
NOTICE = CLUSTER / "host" / "spot_notice.py"
FAST = os.environ | {"KEEP_SECONDS": "0.05"}
LIVES = (
    "echo $$ >> started; trap 'echo ended >> started; exit 0' TERM; while :; do sleep 0.05; done"
)


def keep(folder: Path, command: str, **env: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([KEEP, "bash", "-c", command], cwd=folder, env=FAST | env)


def lines(folder: Path, number: int) -> list[str]:
    """Those of `started`, when there are so many."""
    for _ in range(1200):
        if (folder / "started").exists():
            found = (folder / "started").read_text().splitlines()
            if len(found) >= number:
                return found
        time.sleep(0.05)
    raise AssertionError(f"no {number} lines in {folder / 'started'}")


@pytest.mark.processes
def test_a_command_that_ends_with_an_error_is_started_again_until_it_ends_well(
    tmp_path: Path,
) -> None:
    kept = keep(tmp_path, "echo a >> started; [ $(wc -l < started) = 3 ]")
    assert kept.wait(60) == 0
    assert lines(tmp_path, 3) == ["a", "a", "a"]


@pytest.mark.processes
def test_a_command_that_is_killed_is_started_again(tmp_path: Path) -> None:
    kept = keep(tmp_path, LIVES)
    (first,) = lines(tmp_path, 1)
    os.kill(int(first), signal.SIGKILL)
    first, second = lines(tmp_path, 2)
    assert first != second
    kept.terminate()
    kept.wait(60)


@pytest.mark.processes
def test_who_ends_the_keeper_ends_the_command_and_it_may_end_in_order(tmp_path: Path) -> None:
    kept = keep(tmp_path, LIVES)
    (pid,) = lines(tmp_path, 1)
    kept.terminate()
    assert kept.wait(60) == 143
    assert lines(tmp_path, 2) == [pid, "ended"]


@pytest.mark.processes
def test_a_start_command_that_is_repeated_leaves_one_running(tmp_path: Path) -> None:
    first = keep(tmp_path, LIVES, KEEP_PID=str(tmp_path / "pid"))
    lines(tmp_path, 1)
    second = keep(tmp_path, LIVES, KEEP_PID=str(tmp_path / "pid"))
    assert first.wait(60) == 143
    assert lines(tmp_path, 3)[1] == "ended"
    assert second.poll() is None
    second.terminate()
    second.wait(60)


@pytest.mark.processes
def test_a_pid_of_before_a_reboot_ends_nobody(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"]) as bystander:
        (tmp_path / "pid").write_text(f"{bystander.pid}\n")
        assert keep(tmp_path, "exit 0", KEEP_PID=str(tmp_path / "pid")).wait(60) == 0
        assert bystander.poll() is None
        bystander.kill()


class Metadata(http.server.BaseHTTPRequestHandler):
    """The metadata services of both clouds, in which the notice comes at the third question."""

    asked: list[str]

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        assert self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        self._answer(200, "secret")

    def do_GET(self) -> None:
        self.asked.append(self.path)
        given = len(self.asked) >= 3
        if self.path == "/latest/meta-data/spot/instance-action":
            assert self.headers["X-aws-ec2-metadata-token"] == "secret"
            self._answer(200 if given else 404, '{"action": "terminate"}')
        else:
            assert self.path == "/computeMetadata/v1/instance/preempted"
            assert self.headers["Metadata-Flavor"] == "Google"
            self._answer(200, "TRUE" if given else "FALSE")

    def _answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def metadata() -> Iterator[str]:
    Metadata.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.processes
@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_a_spot_notice_runs_the_command_once_and_not_before(
    cloud: str, metadata: str, tmp_path: Path
) -> None:
    command = [sys.executable, str(NOTICE), cloud, "bash", "-c", "echo drained >> started; exit 7"]
    env = os.environ | {"METADATA_URL": metadata, "NOTICE_SECONDS": "0.1"}
    done = subprocess.run(command, cwd=tmp_path, env=env)
    assert done.returncode == 7
    assert lines(tmp_path, 1) == ["drained"]
    assert len(Metadata.asked) == 3


@pytest.mark.processes
def test_the_entrypoint_of_the_rayjob_reads_the_settings_on_the_head() -> None:
    """KubeRay puts it into a line of bash in a pod of its own, `ray job submit` quotes what arrives
    there, and the head gives that to bash again."""
    spec = yaml.safe_load((CLUSTER / "kuberay" / "rayjob.yaml").read_text())["spec"]
    show = "show() { printf '%s\\0' \"$@\"; }; show "
    submitter = dict.fromkeys(SETTINGS, "of the submitter") | {"PATH": os.environ["PATH"]}
    arrived = subprocess.check_output(["bash", "-c", show + spec["entrypoint"]], env=submitter)
    line = shlex.join(arrived.decode().split("\0")[:-1])

    head = {"PSVIT_STORAGE": "s3://b/p", "MLFLOW_TRACKING_URI": "http://m:5000"}
    python = "python() { printf '%s\\n' \"$@\"; }; export -f python; "
    shell = line.replace("sh -c", "bash -c")  # functions are bash's
    ran = subprocess.check_output(["bash", "-c", python + shell], env=submitter | head, text=True)
    words = ran.splitlines()
    assert words[0] == "/home/ray/psvit_ray/jobs/tune_psvit.py"
    given = dict(zip(words[1::2], words[2::2], strict=True))
    assert given["--storage"] == "s3://b/p"
    assert given["--tracking-uri"] == "http://m:5000"
    assert given["--resume"] == "auto"
