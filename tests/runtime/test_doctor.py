"""The doctor on one host: what is well, and each thing that is not, named with what to do."""

from __future__ import annotations

import re
import shlex
import socket
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import ray
import torch

from psvit_ray.arch.presets import preset
from psvit_ray.commands import command_line
from psvit_ray.runtime.cluster import host_calls
from psvit_ray.runtime.cluster.host_calls import Host, call_on_hosts
from psvit_ray.runtime.doctor import doctor, host_checks
from psvit_ray.runtime.doctor.bandwidth import BandwidthResult, MeasuredStep
from psvit_ray.training.config import Configuration, TrainConfig
from tests.helpers.command_line import job
from tests.helpers.doctor import CHECKS
from tests.helpers.object_store import ACCESS_KEY, BUCKET, SECRET_KEY, object_store

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Said(NamedTuple):
    code: int
    header: list[str]
    failures: list[str]


def examined(line: str, printed: pytest.CaptureFixture[str]) -> Said:
    printed.readouterr()
    work, kind = job("doctor").work, job("doctor").DoctorJob
    code = work(command_line.parse(kind, shlex.split(line)))
    table, _, below = printed.readouterr().out.partition("\n\n")
    failures = [] if below.startswith("all well") else below.splitlines()
    return Said(code, table.split("\n")[0].split(), failures)


def test_one_host_is_well_and_nothing_is_left_on_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = examined(f"--storage {tmp_path}/new/out", capsys)
    assert said == (0, ["host", *CHECKS], [])
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_is_named_with_what_to_do_and_the_rest_is_examined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with socket.socket() as taken:  # bound, but it does not listen
        taken.bind(("127.0.0.1", 0))
        mlflow = f"http://127.0.0.1:{taken.getsockname()[1]}"
        said = examined(
            f"--storage {tmp_path}/file/out --tracking-uri {mlflow} --data {tmp_path}/photos",
            capsys,
        )
    here = host_calls.alive_hosts()[0].name
    assert (said.code, said.header) == (1, ["host", *CHECKS])
    assert said.failures == [
        f"{here}: storage: storage must be a folder, got {tmp_path}/file/out: {tmp_path}/file is a"
        " file; let this host reach it and write there, or choose another --storage",
        f"{here}: data: data must exist, got '{tmp_path}/photos'; correct --data, or mount it on"
        " this host",
        f"{here}: mlflow: tracking_uri must answer, got {mlflow}: ConnectionError; start the"
        " server, let this host reach its port, or correct --tracking-uri",
    ]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--arch psvit_3d_tiny", "no preset is called 'psvit_3d_tiny'"),
        ("--batch-size 4000", "batch_size must be at most"),
        ("--storage s3://bucket/x", "tracking_uri must be given"),
        ("--wokers 2", "unknown option --wokers; nearest is --workers"),
    ],
)
def test_a_wrong_flag_is_refused(
    flags: str, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ValueError, match=re.escape(line)):
        examined(flags, capsys)


def test_no_file_is_left_in_an_object_store_and_no_secret_is_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with object_store() as store:
        uri = store.uri("psvit", f"{ACCESS_KEY}:{SECRET_KEY}@") + "&region=us-east-1"
        said = examined(f"--storage '{uri}' --tracking-uri sqlite:////tmp/none.db", capsys)
        assert said == (0, ["host", *CHECKS], [])
        left = store.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])
        assert [one["Key"] for one in left if not one["Key"].endswith("/")] == []
        said = examined(f"--storage '{uri}' --tracking-uri http://a:planted@127.0.0.1:1", capsys)
        assert (said.code, len(said.failures)) == (1, 1)
        assert "got http://127.0.0.1:1: " in said.failures[0]


def test_a_host_that_does_not_answer_keeps_nobody_waiting() -> None:
    def sleeps() -> None:
        time.sleep(3600)

    here = host_calls.alive_hosts()[0]
    lost = Host("lost", ray.NodeID.from_random().hex(), {})
    asleep = call_on_hosts([here], sleeps, limit_s=1)
    assert (type(asleep[here]), str(asleep[here])) == (TimeoutError, "no answer within 1 s")
    answers = call_on_hosts([here, lost], host_checks.now, limit_s=60)
    assert isinstance(answers[here], float)
    assert isinstance(answers[lost], Exception)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_gpus_that_ray_counts_and_torch_does_not_see_are_named() -> None:
    assert host_checks.gpus(2)[:2] == (False, f"Ray counts 2, torch {torch.__version__} sees 0")


def test_a_disk_on_which_ray_makes_no_objects_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert host_checks.disk().ok
    monkeypatch.setattr(host_checks, "FULL", 0.0)
    assert "Ray makes no objects on such a disk" in host_checks.disk().message


def test_memory_that_is_too_small_is_named() -> None:
    total = host_checks.shutil.disk_usage("/dev/shm").total
    assert host_checks.shm(store=total, batches=0).ok
    assert "--object-store-memory" in host_checks.shm(store=total + 1, batches=0).advice
    assert "--num-loaders" in host_checks.shm(store=0, batches=total + 1).advice


@pytest.mark.parametrize(
    ("read", "ok", "said"),
    [
        (105.9, True, "4.90 s"),
        (100.5, True, "0.00 s"),  # between the two moments: the way there explains it
        (106.1, False, "5.1 s ahead: so are its times in MLflow and in logs"),
        (94.5, False, "5.5 s behind: so are its times in MLflow and in logs"),
    ],
)
def test_a_clock_is_wrong_by_what_the_way_there_and_back_does_not_explain(
    read: float, ok: bool, said: str
) -> None:
    assert doctor.clock_skew_result(100.0, read, 101.0)[:2] == (ok, said)


def test_a_link_on_which_sums_take_longer_than_computing_is_named() -> None:
    train = TrainConfig(batch_size=64)
    step = MeasuredStep(
        Configuration(spec=preset("deit_tiny"), train=train), workers=2, num_images=192
    )
    assert (step.images, step.gradient_bytes) == (32, 5_717_416 * 4)  # DeiT's own number
    slow = BandwidthResult(num_hosts=2, bytes_per_s=step.gradient_bytes / 3, step_s=1.0)
    verdict = doctor.bandwidth_result(slow, step)
    assert not verdict.ok
    assert "75% of a step is communication, 3 s for 22.9 MB" in verdict.message
    assert "--batch-size 192 makes it half), --grad-compression bf16" in verdict.advice
    half = train.model_copy(update={"grad_compression": "bf16"})
    halved = MeasuredStep(
        Configuration(spec=preset("deit_tiny"), train=half), workers=2, num_images=95
    )
    verdict = doctor.bandwidth_result(slow, halved)
    assert verdict.message.startswith("61 Mbit/s: 60% of a step")
    assert verdict.advice.startswith("fewer, larger batches, trainings")  # 96 are more than all
    fast = BandwidthResult(num_hosts=4, bytes_per_s=1.5 * step.gradient_bytes, step_s=1.0)
    assert doctor.bandwidth_result(fast, step)[:2] == (True, "274 Mbit/s, 50% of a step")
