"""Many faults, one after the other: minutes each. `make chaos` runs them."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray
from mlflow import MlflowClient

from psvit_ray.runtime.cluster.cluster import LOCAL_SETTINGS
from psvit_ray.runtime.train import trainer
from psvit_ray.runtime.train.config import WorkerRange
from psvit_ray.runtime.train.trainer import CHECKPOINTS, train
from psvit_ray.storage.fence import LEASE
from psvit_ray.training.engine import run_training
from psvit_ray.training.source import load_source
from tests.helpers.jobs import ROOT, head, train_job, words_of_job
from tests.helpers.processes import PATIENCE_S, until, wait_until
from tests.helpers.ray_runs import (
    assert_told_once,
    configured,
    curve_of,
    in_ray_train,
    newest,
    record_of,
    session,
    steps_saved,
    striking,
    train_workers,
    undisturbed_by,
)
from tests.helpers.training import assert_same_state

pytestmark = pytest.mark.chaos
RAY = Path(sys.executable).parent / "ray"


class Victims:
    """The processes of a job that trains, each to be killed once it has got on."""

    def __init__(self, start: Callable[[], subprocess.Popen[str]], run_folder: Path) -> None:
        self._start, self._folder = start, run_folder
        self.job = start()

    def kill(self, kind: str, workers: int) -> None:
        alive = self._getting_on(workers)
        if kind == "driver":
            self.job.kill()
            self.job.communicate()
            self.job = self._start()
        elif kind == "worker":
            random.choice(alive).kill()
        else:
            random.choice([child for one in alive for child in one.children()]).kill()

    def _getting_on(self, workers: int) -> list[psutil.Process]:
        """Once they have saved something, and a moment later."""
        before: dict[tuple[int, ...], int] = {}
        patience = time.monotonic() + PATIENCE_S
        while True:
            alive, saved = train_workers(workers), steps_saved(self._folder)
            pids = tuple(one.pid for one in alive)
            if alive and saved > before.setdefault(pids, saved):
                time.sleep(random.uniform(0, 0.3))
                return alive
            assert self.job.poll() is None, self.job.communicate()[0]
            assert time.monotonic() < patience
            time.sleep(0.02)


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_ten_random_moments_a_training_is_the_undisturbed_one(
    tmp_path: Path, workers: int
) -> None:
    random.seed(workers)
    flags = ["--workers", str(workers), "--batch-size", "24", "--checkpoint-steps", "1"]
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    victims = Victims(
        lambda: train_job(tmp_path, uri, *flags, "--resume", "auto"), tmp_path / "out" / "a"
    )
    kinds = ["driver"] * 3 + ["worker"] * 4 + ["loader"] * 3
    for kind in random.sample(kinds, len(kinds)):
        victims.kill(kind, workers)
    said = victims.job.communicate(timeout=PATIENCE_S)[0]
    assert victims.job.returncode == 0, said
    record = record_of(tmp_path / "out" / "a")
    assert record.status == "completed"
    assert [point.epoch for point in record.curve] == [1, 2]
    assert_told_once(uri, record)
    alone = undisturbed_by(workers, tmp_path / "group", record.configuration)
    assert_same_state(newest(tmp_path / "out" / "a" / CHECKPOINTS), alone)


def signal_to(job: subprocess.Popen[str], number: int, *, alone: bool) -> None:
    """To the driver alone, or to all that it started too, as where a virtual machine freezes."""
    with suppress(psutil.NoSuchProcess):
        driver = psutil.Process(job.pid)
        for process in [driver] if alone else [driver, *driver.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def ends(job: subprocess.Popen[str], code: int) -> str:
    """What it printed."""
    printed = job.communicate(timeout=2 * PATIENCE_S)[0]
    assert job.returncode == code, printed
    assert "Traceback" not in printed
    return printed


def runs_and_points(uri: str) -> tuple[dict[str, str], int]:
    """Of all runs of a store, the statuses; and how many metrics were ever written."""
    client = MlflowClient(uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments)
    histories = [
        client.get_metric_history(run.info.run_id, name)
        for run in runs
        for name in run.data.metrics
    ]
    return {run_training.info.run_id: run_training.info.status for run_training in runs}, sum(
        map(len, histories)
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a PID namespace, as root")
@pytest.mark.parametrize(
    ("wakes_last", "alone", "epochs"),
    [(False, True, 50), (True, False, 10)],  # its worker alone trains on until the lease is lost
    ids=["wakes while the other trains", "wakes with all its processes after the other"],
)
def test_a_driver_suspended_past_its_lease_leaves_the_name_to_the_other(
    tmp_path: Path, wakes_last: bool, alone: bool, epochs: int
) -> None:
    uri, run_folder = f"sqlite:///{tmp_path}/mlflow.db", tmp_path / "out" / "a"
    flags = ["--epochs", str(epochs)]
    first = train_job(tmp_path, uri, *flags)
    other = None
    try:
        wait_until(lambda: len(curve_of(run_folder)) > 1, first)
        signal_to(first, signal.SIGSTOP, alone=alone)
        refused = ends(train_job(tmp_path, uri, *flags, "--resume"), 2)
        assert f"process {first.pid} on this host is suspended (state T): `kill -CONT" in refused

        namespace = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        other = train_job(tmp_path, uri, *flags, "--resume", within=namespace)
        lease = run_folder / LEASE
        wait_until(lambda: json.loads(lease.read_text())["number"] == 2, other)
        taken = len(curve_of(run_folder))
        if wakes_last:
            ends(other, 0)
            before = record_of(run_folder), runs_and_points(uri)
        else:
            wait_until(lambda: len(curve_of(run_folder)) > taken + 1, other)
        signal_to(first, signal.SIGCONT, alone=alone)
        assert re.search(r"error: lease on .* is lost: taken over by process 1 on", ends(first, 1))
        if wakes_last:
            assert (record_of(run_folder), runs_and_points(uri)) == before
        else:
            ends(other, 0)
    finally:
        for job in (first, other):
            if job is not None:
                signal_to(job, signal.SIGKILL, alone=False)
                job.communicate()
    record = record_of(run_folder)
    assert taken < epochs
    assert record.status == "completed"
    assert [point.epoch for point in record.curve] == [*range(1, epochs + 1)]
    assert_told_once(uri, record)
    assert [*runs_and_points(uri)[0].values()] == ["FINISHED"] * 2
    assert not lease.exists()


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_that_hangs_again_and_again_ends_the_training_and_is_named(
    tmp_path: Path,
) -> None:
    done: set[int] = set()

    def freeze() -> bool:
        """One that trains, since it has a loader, of each group of workers."""
        alive = train_workers(2)
        if not alive or not all(one.children() for one in alive) or alive[1].pid in done:
            return False
        time.sleep(1)
        os.kill(alive[1].pid, signal.SIGSTOP)
        done.add(alive[1].pid)
        return True

    endless = configured(epochs=1000, micro_batch_size=1, num_loaders=1, checkpoint_every=0)
    with striking(*[freeze] * (trainer.MAX_FAILURES + 1)):
        trained = in_ray_train(tmp_path, endless, WorkerRange(2, 2), patience_s=6)
    assert trained.record.status == "failed"
    said = r"worker (\d): WorkerHung: rank (\d) did not reach step \d+ within 6 s"
    named = re.fullmatch(said, trained.record.reason)
    assert named
    assert {named[1], named[2]} == {"0", "1"}


class Host:
    """One more host of this session's Ray, with room for one worker."""

    def __init__(self) -> None:
        self._address = ray.get_runtime_context().gcs_address
        before = self._alive()
        self._process = subprocess.Popen(
            [str(RAY), "start", "--block", f"--address={self._address}", "--num-cpus=1"]
            + ['--resources={"slot": 1}'],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: len(self._alive() - before) == 1, PATIENCE_S)
        (self._id,) = self._alive() - before

    @staticmethod
    def _alive() -> set[str]:
        return {node["NodeID"] for node in ray.nodes() if node["Alive"]}

    def die(self) -> None:
        with suppress(psutil.NoSuchProcess):
            top = psutil.Process(self._process.pid)
            for one in [*top.children(recursive=True), top]:
                with suppress(psutil.NoSuchProcess):
                    one.kill()
        self._process.wait()

    def give_notice(self, seconds: int) -> None:
        """As a cloud does of a spot host, which it then takes."""
        subprocess.run(
            [str(RAY), "drain-node", f"--address={self._address}", f"--node-id={self._id}"]
            + ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
            + [f"--deadline-remaining-seconds={seconds}"],
            check=True,
            capture_output=True,
        )


@pytest.mark.usefixtures("ray_cluster")
def test_hosts_that_come_and_go_change_neither_the_batches_nor_the_learning_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "RESIZE_EVERY_S", 3.0)
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    monkeypatch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "1")
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "1")
    config = {"epochs": 40, "data_fraction": 0.4, "batch_size": 48, "drop_path": 0.0}
    # Nine and a half batches an epoch, image by image; saved at every fiftieth step, or on request.
    saved = {"micro_batch_size": 1, "checkpoint_every": 5}
    hosts = [Host(), Host()]
    asked_for: list[int] = []

    def after_two_epochs_by(workers: int, happens: Callable[[], object]) -> Callable[[], bool]:
        def blow() -> bool:
            if (step := steps_saved(tmp_path / "a")) % 50 and step not in asked_for:
                asked_for.append(step)
            last_two = curve_of(tmp_path / "a")[-2:]
            if [point.metrics["perf/workers"] for point in last_two] != [workers] * 2:
                return False
            happens()
            return True

        return blow

    try:
        with (
            session(tmp_path) as given,
            striking(
                after_two_epochs_by(2, hosts[1].die),
                after_two_epochs_by(1, lambda: hosts.append(Host())),
                after_two_epochs_by(2, lambda: hosts[2].give_notice(12)),
                after_two_epochs_by(1, lambda: None),
            ) as landed,
        ):
            record = train(
                given,
                configured(**config, **saved),
                workers=WorkerRange(1, 2),
                resources_per_worker={"CPU": 1, "slot": 1},
            ).record
    finally:
        for host in hosts:
            host.die()
    assert landed == [0, 1, 2, 3]
    assert record.status == "completed"
    workers = [point.metrics["perf/workers"] for point in record.curve]
    assert [number for number, _ in itertools.groupby(workers)] == [2, 1, 2, 1]
    assert len(asked_for) == 2  # before the workers became more, and at the notice
    alone = list(run_training(configuration := configured(**config), load_source(configuration)))
    for point, report in zip(record.curve, alone, strict=True):
        assert (point.epoch, point.step) == (report.epoch, report.step)
        assert point.metrics["train/lr"] == report.metrics["train/lr"]
        assert point.metrics["train/loss"] == pytest.approx(report.metrics["train/loss"], abs=0.05)
    first, theirs = record.curve[0].metrics, alone[0].metrics
    assert first["train/loss"] == pytest.approx(theirs["train/loss"], abs=1e-4)


def test_a_stopped_ray_job_leaves_a_checkpoint_and_says_so(tmp_path: Path) -> None:
    """Ray kills a job's driver three seconds after it has asked it to end."""
    environment = {
        **os.environ,
        "PATH": f"{RAY.parent}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0123456789abcdef" * 2,
    }
    for name in ("RAY_ADDRESS", *LOCAL_SETTINGS):
        environment.pop(name, None)
    run_folder = tmp_path / "out" / "a"

    def ray_job(*words: str) -> str:
        done = subprocess.run(
            [RAY, "job", *words], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    with head(Path(f"/tmp/psvit{os.getpid()}"), environment) as address:
        at = f"--address={address}"
        job = words_of_job(tmp_path, "--epochs", "500", "--workers", "2")
        never = ["--checkpoint-steps", "0", "--checkpoint-every", "0"]
        ray_job(
            *["submit", at, "--submission-id=a", "--no-wait", "--working-dir=."],
            *["--", "python", *job, *never],
        )
        until(lambda: len(curve_of(run_folder)) > 0, PATIENCE_S)
        before = len(curve_of(run_folder))
        ray_job("stop", at, "a")
        assert "was stopped" in ray_job("status", at, "a")
    record = record_of(run_folder)
    assert record.status == "interrupted"
    told = re.fullmatch(
        r"stopped by SIGTERM at step (\d+), checkpoint (step-\d+-epoch-\d+)", record.reason
    )
    assert told
    last = newest(run_folder / CHECKPOINTS)
    assert (str(last.step), last.name) == (told[1], told[2])
    assert last.epoch >= before


class PoweredDisk:
    """An ext4 of its own, whose power can be cut: it is shut down by the kernel as xfstests do
    (EXT4_IOC_SHUTDOWN without flushing the journal), so that nothing stays but what was synced. It
    is mounted so as to lose all that it may: no commits by time, no data written at a rename."""

    SHUTDOWN, WITHOUT_FLUSH = 0x8004587D, 2
    OPTIONS = "loop,noauto_da_alloc,data=writeback,commit=3600"

    def __init__(self, folder: Path) -> None:
        self.path, self._folder, self._cuts = folder / "disk", folder, 0
        self.path.mkdir()
        with self._image.open("wb") as image:
            image.truncate(256 << 20)
        subprocess.run(["mkfs.ext4", "-q", self._image], check=True)
        self._mount()

    @property
    def _image(self) -> Path:
        return self._folder / f"image{self._cuts}"

    def _mount(self) -> None:
        subprocess.run(["mount", "-o", self.OPTIONS, self._image, self.path], check=True)

    def cut(self) -> None:
        file = os.open(self.path, os.O_RDONLY)
        fcntl.ioctl(file, self.SHUTDOWN, struct.pack("i", self.WITHOUT_FLUSH))
        os.close(file)

    def restore(self) -> None:
        """Mounts what is on the disk, after the processes that used it are gone."""
        before = self._image
        self._cuts += 1
        shutil.copyfile(before, self._image)  # the old one may still be held open by somebody
        self.close()
        self._mount()

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", self.path], check=True)


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("mkfs.ext4"), reason="mounts a file system, as root"
)
def test_after_power_cuts_at_random_moments_a_training_is_the_undisturbed_one(
    tmp_path: Path,
) -> None:
    random.seed(13)
    disk = PoweredDisk(tmp_path)
    try:
        run_folder, uri = disk.path / "out" / "a", f"sqlite:///{disk.path}/mlflow.db"
        flags = ["--batch-size", "24", "--checkpoint-steps", "1", "--resume", "auto"]
        for _ in range(5):
            before = steps_saved(run_folder)
            job = train_job(disk.path, uri, *flags)
            until(lambda before=before: steps_saved(run_folder) > before + 1, PATIENCE_S)  # type: ignore[misc]
            time.sleep(random.uniform(0, 0.5))
            found = sorted((run_folder / CHECKPOINTS).glob("step-*"))
            # The writing of a checkpoint begins when the one before it is saved.
            saved = int(found[-2].name.split("-")[1])
            points = len(curve_of(run_folder))
            disk.cut()
            job.kill()
            job.communicate()
            disk.restore()
            assert newest(run_folder / CHECKPOINTS).step >= saved
            assert len(curve_of(run_folder)) >= points - 1
        job = train_job(disk.path, uri, *flags)
        said = job.communicate(timeout=PATIENCE_S)[0]
        assert job.returncode == 0, said
        record = record_of(run_folder)
        assert [point.epoch for point in record.curve] == [1, 2]
        assert_told_once(uri, record)
        alone = undisturbed_by(1, tmp_path / "group", record.configuration)
        assert_same_state(newest(run_folder / CHECKPOINTS), alone)
    finally:
        disk.close()
