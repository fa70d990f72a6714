"""What befalls the hosts of a training: killed, cut off, replaced, taken with notice, never back.

`make cluster-test` runs them; the long one is marked `chaos` too.
"""

from __future__ import annotations

import functools
import itertools
import re
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from psvit_ray.runtime.train.trainer import CHECKPOINTS
from psvit_ray.search.oneshot.scores import ScoreStore
from psvit_ray.storage.folder import Folder
from psvit_ray.training.checkpoint import Checkpoint
from psvit_ray.training.config import Configuration
from tests.helpers.hosts import HEAD, QUICK_TO_NOTICE, Hosts, tracking_server
from tests.helpers.jobs import words_of_job
from tests.helpers.noted_training import LOST_S, Taken, noted
from tests.helpers.oneshot import by_spec, timeless
from tests.helpers.processes import PATIENCE_S, wait_until
from tests.helpers.ray_runs import curve_of, newest, record_of, steps_saved, undisturbed_by
from tests.helpers.training import assert_same_state

pytestmark = pytest.mark.cluster
EPOCHS = 4  # of 24 steps
INTERVAL = 10
SOON = {
    **QUICK_TO_NOTICE,
    **{"TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"},
    **{"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15"},
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Hosts]:
    with Hosts(2, variables=SOON) as both:
        yield both


@pytest.fixture(scope="module")
def mlflow(cluster: Hosts, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tracking_server(cluster, tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def hosts(cluster: Hosts) -> Iterator[Hosts]:
    """Both well, before and after."""
    yield cluster
    cluster.mend()


@dataclass
class Training:
    """One that notes its steps, of two workers, one on each host; saved at every tenth step."""

    hosts: Hosts
    folder: Path
    words: Sequence[str]
    job: subprocess.Popen[str] = field(init=False)

    def __post_init__(self) -> None:
        self.job = self.hosts.popen(HEAD, self.words)

    @property
    def run_folder(self) -> Path:
        return self.folder / "out" / "a"

    def taken(self, host: int) -> list[Taken]:
        name = self.hosts.name(host)
        return [one for one in noted(self.folder / "steps") if one.host == name]

    def reaches(self, step: int, *, host: int = HEAD) -> None:
        wait_until(lambda: any(one.step >= step for one in self.taken(host)), self.job)

    def workers(self) -> list[int]:
        """Of the epochs so far."""
        return [int(one.metrics["perf/workers"]) for one in curve_of(self.run_folder)]

    def ends(self, code: int = 0) -> str:
        said = self.job.communicate(timeout=PATIENCE_S)[0]
        assert self.job.returncode == code, said
        return said

    def stop(self) -> None:
        self.hosts.driver(self.job)[0].terminate()
        self.ends(128 + signal.SIGTERM)

    def done_twice(self) -> int:
        """Steps, by the worker of the head."""
        times = Counter(one.step for one in self.taken(HEAD))
        return sum(times.values()) - len(times)

    def assert_undisturbed(self) -> None:
        record = record_of(self.run_folder)
        assert record.status == "completed"
        assert self.workers() == [2] * EPOCHS
        assert_same_state(newest(self.run_folder / CHECKPOINTS), alone(record.configuration))


@functools.cache
def alone(configuration: Configuration) -> Checkpoint:
    """Two workers on this host, without Ray."""
    with tempfile.TemporaryDirectory() as folder:
        return undisturbed_by(2, Path(folder, "group"), configuration)


def words(
    folder: Path, mlflow: str, *flags: str, epochs: int = EPOCHS, interval: int = INTERVAL
) -> list[str]:
    job = words_of_job(folder, "--tracking-uri", mlflow, "--checkpoint-every", "0")[1:]
    saved = ["--epochs", str(epochs), "--checkpoint-steps", str(interval)]
    note = ["python", "-m", "tests.helpers.noted_training", str(folder / "steps")]
    return [*note, *job, *saved, *flags]


def test_a_host_killed_and_replaced_costs_at_most_one_checkpoint_interval(
    hosts: Hosts, mlflow: str, tmp_path: Path
) -> None:
    training = Training(hosts, tmp_path, words(tmp_path, mlflow, "--workers", "2"))
    training.reaches(INTERVAL + 5)
    hosts.kill(2)
    hosts.replace(2)
    training.ends()
    assert len({one.pid for one in training.taken(HEAD)}) == 2
    assert training.done_twice() <= INTERVAL
    training.assert_undisturbed()


@pytest.mark.parametrize(
    "seconds", [40, pytest.param(120, marks=pytest.mark.chaos)], ids="{}s".format
)
def test_a_host_cut_off_trains_no_further_and_is_used_again_once_it_is_back(
    hosts: Hosts, mlflow: str, tmp_path: Path, seconds: int
) -> None:
    flags = ["--workers", "2", "--patience-s", "10"]
    training = Training(hosts, tmp_path, words(tmp_path, mlflow, *flags))
    training.reaches(INTERVAL + 5)
    supervisor, *before = hosts.processes(2)
    hosts.cut(2)
    time.sleep(seconds)
    at_most = max(one.step for one in training.taken(HEAD)) + 1
    assert max(one.step for one in training.taken(2)) <= at_most
    hosts.heal(2)
    training.ends()
    now = hosts.processes(2)
    assert supervisor in now
    assert not {*before} & {*now}
    assert training.done_twice() <= INTERVAL
    training.assert_undisturbed()


def test_an_elastic_training_goes_on_without_a_host_and_grows_when_another_comes(
    hosts: Hosts, mlflow: str, tmp_path: Path
) -> None:
    training = Training(hosts, tmp_path, words(tmp_path, mlflow, "--workers", "1:2", epochs=1000))
    wait_until(lambda: training.workers()[-1:] == [2], training.job)
    hosts.kill(2)
    wait_until(lambda: training.workers()[-1:] == [1], training.job)
    hosts.replace(2)
    wait_until(lambda: training.workers()[-1:] == [2], training.job)
    training.stop()
    assert [number for number, _ in itertools.groupby(training.workers())] == [2, 1, 2]
    assert training.done_twice() <= INTERVAL


@pytest.mark.parametrize("workers", ["2", "2:3"])
def test_a_host_that_never_comes_back_ends_the_training_after_its_own_deadline(
    hosts: Hosts, mlflow: str, tmp_path: Path, workers: str
) -> None:
    flags = ["--workers", workers, "--wait-minutes", "0.4"]
    training = Training(hosts, tmp_path, words(tmp_path, mlflow, *flags))
    training.reaches(INTERVAL + 1)
    hosts.kill(2)
    said = training.ends(1)
    reason = "no hosts with a place for the workers for 0.4 minutes"
    assert f"failed: {reason}" in said
    assert record_of(training.run_folder).reason == reason
    assert steps_saved(training.run_folder) >= INTERVAL


def test_a_host_taken_with_notice_costs_no_failure_and_nothing_before_the_notice(
    hosts: Hosts, mlflow: str, tmp_path: Path
) -> None:
    """No other checkpoint is written than the one that the notice asks for."""
    job = words(tmp_path, mlflow, "--workers", "2", epochs=1000, interval=10**6)
    training = Training(hosts, tmp_path, job)
    training.reaches(INTERVAL)
    noticed = training.taken(HEAD)[-1]
    hosts.drain(2, 20)
    deadline = time.monotonic() + 20
    wait_until(lambda: steps_saved(training.run_folder) > 0, training.job)
    saved = steps_saved(training.run_folder)
    assert saved >= noticed.step
    time.sleep(max(0, deadline - time.monotonic()))
    hosts.kill(2)
    hosts.replace(2)
    wait_until(lambda: training.taken(HEAD)[-1].pid != noticed.pid, training.job)
    told = failures_told(hosts)
    assert (told["preemption"], told["worker group"]) == (1, 0)
    training.stop()
    again = [one.step for one in training.taken(HEAD) if one.pid != noticed.pid]
    assert again[0] == saved + 1


def failures_told(hosts: Hosts) -> Counter[str]:
    """By Ray Train, in what it logs of its newest run: by their source."""
    logs = (hosts.ray_logs(HEAD) / "train").glob("*controller*.log")
    newest_log = max(logs, key=lambda path: path.stat().st_mtime)
    return Counter(re.findall(r"Source: ([a-z ]+)", newest_log.read_text()))


def test_a_submitted_training_whose_driver_is_killed_goes_on_when_submitted_again(
    hosts: Hosts, mlflow: str, tmp_path: Path
) -> None:
    job = words(tmp_path, mlflow, "--workers", "2", "--resume", "auto")
    submit = hosts.words_of_submit(job)
    first = Training(hosts, tmp_path, submit)
    first.reaches(INTERVAL + 5)
    for process in hosts.processes(HEAD):
        with suppress(psutil.Error):
            if process.cmdline()[1:3] == ["-m", "tests.helpers.noted_training"]:
                process.kill()
    first.job.communicate(timeout=PATIENCE_S)
    assert first.job.returncode != 0
    again = Training(hosts, tmp_path, submit)
    again.ends()
    assert again.done_twice() <= INTERVAL
    attempts = [pid for pid, _ in itertools.groupby(one.pid for one in again.taken(2))]
    assert len(attempts) == 2  # one after the other
    again.assert_undisturbed()


def oneshot(folder: Path, mlflow: str) -> list[str]:
    small = ["--epochs", "1", "--warmup-epochs", "0", "--finetune-epochs", "0"]
    few = ["--finalists", "1", "--finalist-seeds", "1", "--baselines", "0"]
    flags = ["--supernet-epochs", "2", "--candidates", "600", *small, *few]
    stored = ["--tracking-uri", mlflow, "--storage", str(folder / "out"), "--name", "a"]
    return ["python", "jobs/tune_psvit.py", "--strategy", "oneshot", *flags, *stored]


def scoring(hosts: Hosts, host: int) -> bool:
    titles = []
    for process in hosts.processes(host):
        with suppress(psutil.Error):
            titles += process.cmdline()[:1]
    return any("SubnetActor.score" in title for title in titles)


def test_a_one_shot_search_loses_no_score_with_the_host_of_its_actors(
    hosts: Hosts, mlflow: str, tmp_path: Path
) -> None:
    ours, theirs = (Folder(str(tmp_path / name / "out" / "a")) for name in ("lost", "well"))
    job = hosts.popen(HEAD, oneshot(tmp_path / "lost", mlflow))
    wait_until(lambda: len(ScoreStore(ours).all()) >= 60 and scoring(hosts, 2), job)
    hosts.kill(2)
    scored = ScoreStore(ours).all()
    assert len(scored) < 500  # there was some way to go
    said = job.communicate(timeout=PATIENCE_S)[0]
    assert job.returncode == 0, said
    hosts.replace(2)
    code, said = hosts.run(HEAD, oneshot(tmp_path / "well", mlflow))
    assert code == 0, said
    after = ScoreStore(ours).all()
    assert [score.number for score in after] == list(range(600))
    assert {score.spec: score for score in after}.items() >= {s.spec: s for s in scored}.items()
    assert timeless(after) == timeless(ScoreStore(theirs).all())
    assert by_spec(ours) == by_spec(theirs)


HOLDS = """
import time, ray
ray.init(logging_level="ERROR")
@ray.remote(num_cpus=1, resources={f"node:{ray.util.get_node_ip_address()}": 0.01})
class Holds:
    def say(self): return "held"
holds = Holds.remote()
print(ray.get(holds.say.remote()), flush=True)
time.sleep(3600)
"""


def test_a_worker_that_is_cut_off_by_itself_stops_and_another_goes_on(
    hosts: Hosts, mlflow: str, tmp_path: Path
) -> None:
    """It needs no other for its steps, and reaches the storage; only at the end of an epoch, far
    off here, would its report wait for the head."""
    holder = hosts.popen(HEAD, ["python", "-c", HOLDS])
    assert holder.stdout
    while "held" not in (said := holder.stdout.readline()):
        assert said
    slow = ["env", "STEP_S=2", *words(tmp_path, mlflow, "--workers", "1", "--batch-size", "16")]
    training = Training(hosts, tmp_path, slow)
    training.reaches(3, host=2)
    hosts.cut(2)
    time.sleep(LOST_S + 10)
    cut_off = training.taken(2)
    time.sleep(10)
    assert training.taken(2) == cut_off
    assert cut_off[-1].step < 60  # of 71 of an epoch
    hosts.heal(2)
    wait_until(lambda: training.taken(2)[-1].pid != cut_off[-1].pid, training.job)
    training.stop()
    attempts = [pid for pid, _ in itertools.groupby(one.pid for one in training.taken(2))]
    assert len(attempts) == 2
    assert not training.taken(HEAD)
    hosts.driver(holder)[0].kill()
    holder.communicate()
