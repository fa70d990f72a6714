"""Checks of what a cluster must have for a run to go well, host by host.

A check is a function of a CheckContext that yields findings; `CHECKS` lists them. What runs on a
host is in `host_checks.py`. Each has a time limit: a host, a disk or a server that does not answer
is a finding, and the other checks go on.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import torch
from ray.exceptions import RayError

from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.sources.load_data import load_data
from psvit_ray.runtime.cluster import ray_private
from psvit_ray.runtime.cluster.host_calls import Host, call_on_hosts
from psvit_ray.runtime.doctor import bandwidth, host_checks
from psvit_ray.runtime.doctor.bandwidth import BandwidthResult, MeasuredStep, TooSlowError
from psvit_ray.runtime.doctor.host_checks import CheckResult
from psvit_ray.runtime.tracking import store_uri
from psvit_ray.storage.folder import Folder
from psvit_ray.text.secrets import without_secrets
from psvit_ray.training.config import TrainConfig

FIRST_S = 60.0
"""Seconds for the first answer of a host, which may have to fetch the job's files."""
LIMIT_S = 20.0
GPU_S = 30.0
LISTING_S = 60.0
ROUNDS = 5
MAX_SKEW_S = 5.0
PREFETCHED = 2
"""Number of batches that each process of torch's DataLoader holds ready."""


@dataclass(frozen=True)
class Finding:
    """Result of a check on a host. `advice` says what to do where it is not `ok`."""

    host: str
    check: str
    ok: bool
    message: str
    advice: str = ""


@dataclass(frozen=True)
class CheckContext:
    """Hosts to check, and the run that is to go well on them."""

    hosts: tuple[Host, ...]
    driver: Host
    """Host of this process: the others are compared with it."""
    storage: Folder
    tracking_uri: str
    source: Source | CheckResult
    """Data of the run, or why there is none."""
    per_worker: Mapping[str, float]
    step: MeasuredStep | None
    """Training step of the run; None where there is no data."""

    @property
    def training(self) -> list[Host]:
        """Hosts with room for a worker: a head, or a host without a GPU, may have none."""
        return [host for host in self.hosts if host.holds(self.per_worker)]


Check = Callable[[CheckContext], Iterable[Finding]]


def load_source_on(train: TrainConfig, driver: Host) -> Source | CheckResult:
    """The data, or what is wrong with it. It is read in a task, as a disk that hangs cannot be
    interrupted."""
    answer = call_on_hosts([driver], load_data, train, limit_s=LISTING_S)[driver]
    if isinstance(answer, TimeoutError):
        advice = "see the disk or the network; of many small files, psvit prepare makes few"
        return CheckResult(False, f"the data is not listed within {LISTING_S:g} s", advice)
    if isinstance(answer, Exception):
        return CheckResult(False, _reason(answer), "correct --data, or mount it on this host")
    source: Source = answer
    return source


def examine(subject: CheckContext) -> Iterator[Finding]:
    """Yields all findings, check by check. A host that gives no first answer is not checked
    further."""
    answers = call_on_hosts(subject.hosts, host_checks.now, limit_s=FIRST_S)
    silent = {host: error for host, error in answers.items() if isinstance(error, Exception)}
    for host in subject.hosts:
        if host in silent:
            yield _error_finding(host, "answers", silent[host])
        else:
            yield Finding(host.name, "answers", True, "yes")
    there = tuple(host for host in subject.hosts if host not in silent)
    for check in CHECKS:
        yield from check(replace(subject, hosts=there))


def versions(subject: CheckContext) -> Iterator[Finding]:
    """Checks that all hosts have the same versions of packages."""
    versions_here = host_checks.versions()
    advice = "give all hosts one image, or the same packages; see PYTHONPATH there"
    for host, versions_there in call_on_hosts(
        subject.hosts, host_checks.versions, limit_s=LIMIT_S
    ).items():
        if isinstance(versions_there, Exception):
            yield _error_finding(host, "versions", versions_there)
            continue
        other = [
            f"{name} {versions_there[name]} ({version} on {subject.driver.name})"
            for name, version in versions_here.items()
            if versions_there[name] != version
        ]
        yield Finding(host.name, "versions", not other, ", ".join(other) or "equal", advice)


def gpus(subject: CheckContext) -> Iterator[Finding]:
    """Checks that torch sees the GPUs that Ray counts, and that they compute."""
    free = ray_private.available_resources()
    for host in subject.hosts:
        if not host.gpus:
            yield Finding(host.name, "gpu", True, "none")
        elif free.get(host.node, {}).get("GPU", 0) < host.gpus:
            yield Finding(host.name, "gpu", True, f"{host.gpus:g}, in use")
        else:
            count = int(host.gpus)
            yield from _on_each_host(
                [host], "gpu", host_checks.gpus, count, limit_s=GPU_S, num_gpus=host.gpus
            )


def storage(subject: CheckContext) -> Iterator[Finding]:
    """Checks that hosts share the storage: every host writes a file.

    A host that does not see the file of the driver's host, or whose file that one does not see, has
    another folder under this name.
    """
    uri, mark = subject.storage.uri, f"doctor-{uuid.uuid4().hex[:8]}"
    files = {host: host_checks.file_of(mark, host.node) for host in subject.hosts}
    names = [*files.values()]
    # What says whether a path will do imports torch and MLflow there.
    wrote = call_on_hosts(subject.hosts, host_checks.write, uri, mark, limit_s=FIRST_S)
    able = [host for host, made in wrote.items() if not isinstance(made, Exception)]
    sees = call_on_hosts(able, host_checks.present, uri, names, limit_s=LIMIT_S)
    made = {host.node: wrote[host] for host in able}
    call_on_hosts(able, host_checks.clear, uri, names, made, limit_s=LIMIT_S)

    faults = {host: error for host, error in (wrote | sees).items() if isinstance(error, Exception)}
    seeing = [host for host in subject.hosts if host not in faults]  # the driver's first
    for host in subject.hosts:
        if host in faults:
            advice = "let this host reach it and write there, or choose another --storage"
            yield Finding(host.name, "storage", False, _reason(faults[host]), advice)
        elif not (files[seeing[0]] in sees[host] and files[host] in sees[seeing[0]]):
            other = seeing[0].name
            message = f"{subject.storage} is not that of {other}: what one writes, the other lacks"
            advice = "mount the same there on all hosts, or use a URI such as s3://bucket/prefix"
            yield Finding(host.name, "storage", False, message, advice)
        else:
            yield Finding(host.name, "storage", True, "shared" if len(seeing) > 1 else "written")


def data(subject: CheckContext) -> Iterator[Finding]:
    """Checks that each host can read the data."""
    if isinstance(subject.source, CheckResult):
        return iter([Finding(subject.driver.name, "data", *subject.source)])
    first_image = subject.source.train.take(np.arange(1))
    return _on_each_host(subject.hosts, "data", host_checks.read, first_image)


def mlflow(subject: CheckContext) -> Iterator[Finding]:
    """Checks that each host reaches MLflow's store."""
    try:
        store_uri.check_shared(subject.tracking_uri, num_hosts=len(subject.hosts))
    except ValueError as error:
        advice = "start `mlflow server` where all hosts reach it"
        return iter([Finding(subject.driver.name, "mlflow", False, str(error), advice)])
    return _on_each_host(subject.hosts, "mlflow", host_checks.mlflow, subject.tracking_uri)


def clock(subject: CheckContext) -> Iterator[Finding]:
    """Checks the clock of each host: it is read between two moments of this host's clock, and the
    narrowest pair counts."""
    for host in subject.hosts:
        trips = []
        for _ in range(ROUNDS):
            sent = time.time()
            read = call_on_hosts([host], host_checks.now, limit_s=LIMIT_S)[host]
            if isinstance(read, Exception):
                yield _error_finding(host, "clock", read)
                break
            trips.append((sent, read, time.time()))
        else:
            narrowest = min(trips, key=lambda trip: trip[2] - trip[0])
            yield Finding(host.name, "clock", *clock_skew_result(*narrowest))


def disk(subject: CheckContext) -> Iterator[Finding]:
    """Checks that Ray's disk on each host has room."""
    return _on_each_host(subject.hosts, "disk", host_checks.disk)


def shm(subject: CheckContext) -> Iterator[Finding]:
    """Checks /dev/shm, where the loaders of a training hold its batches, each host its part."""
    batches, training = 0, subject.training
    if subject.step and training:
        spec, train = subject.step.configuration.trained_spec, subject.step.configuration.train
        image_bytes = spec.in_chans * spec.img_size**2  # uint8
        images = train.num_loaders * PREFETCHED * train.batch_size
        batches = images * image_bytes // len(training)
    for host in subject.hosts:
        store = int(host.resources.get("object_store_memory", 0))
        batch_bytes = batches if host in training else 0
        yield from _on_each_host([host], "shm", host_checks.shm, store, batch_bytes)


def network(subject: CheckContext) -> Iterator[Finding]:
    """Checks the bandwidth between the hosts that train."""
    training = subject.training
    for host in subject.hosts:
        if host not in training:
            yield Finding(host.name, "network", True, "no workers")
        elif len(training) == 1:
            yield Finding(host.name, "network", True, "one host")
    if len(training) < 2:
        return
    nodes = [host.node for host in training]
    try:
        measured = bandwidth.measure_bandwidth(nodes, subject.per_worker, subject.step)
        verdict = bandwidth_result(measured, subject.step)
    except (TooSlowError, RayError) as error:
        cause = getattr(error, "cause", None) or error  # without Ray's remote traceback
        advice = "let hosts reach each other on all ports; see the link, and what else runs"
        if isinstance(cause, torch.OutOfMemoryError):
            advice = "--micro-batch-size, or a smaller --batch-size"
        verdict = CheckResult(False, _reason(cause), advice)
    for host in training:
        yield Finding(host.name, "network", *verdict)


def token(subject: CheckContext) -> Iterator[Finding]:
    """Checks that the head's dashboard asks for a token; it is asked from the head, as it may
    listen there alone."""
    url = ray_private.dashboard_address()
    name = urlsplit(f"//{url}").hostname
    if name in ("127.0.0.1", "localhost", "::1") and len(subject.hosts) == 1:
        return iter([Finding(subject.driver.name, "token", True, "this host only")])
    heads = [host for host in subject.hosts if host.is_head]
    return _on_each_host(heads, "token", host_checks.token, url)


CHECKS: tuple[Check, ...] = (
    *(versions, gpus, storage, data, mlflow),
    *(clock, disk, shm, network, token),
)


def clock_skew_result(sent: float, read: float, received: float) -> CheckResult:
    """Result for a host's clock that read `read` between two moments of this one's, in seconds.

    Nothing here compares the clocks of two hosts, but who reads MLflow and the logs of a run does.
    """
    ahead, behind = read - received, sent - read
    least = max(ahead, behind, 0.0)
    if least <= MAX_SKEW_S:
        return CheckResult(True, f"{least:.2f} s")
    direction = "ahead" if ahead > 0 else "behind"
    message = f"{least:.1f} s {direction}: so are its times in MLflow and in logs"
    return CheckResult(False, message, "set it by NTP, with chrony or systemd-timesyncd")


def bandwidth_result(measured: BandwidthResult, step: MeasuredStep | None) -> CheckResult:
    """Result for a bandwidth: the share of a training step that communication takes where it does
    not overlap with computing."""
    mbit_per_s = measured.bytes_per_s * 8 / 1e6
    rate = f"{mbit_per_s:,.{0 if mbit_per_s >= 10 else 1}f} Mbit/s"
    if step is None or measured.step_s is None:
        return CheckResult(True, rate)
    sums = measured.seconds(step.gradient_bytes)
    share = sums / (sums + measured.step_s)
    if share <= 0.5:
        return CheckResult(True, f"{rate}, {share:.0%} of a step")
    message = (
        f"{rate}: {share:.0%} of a step is communication, {sums:.3g} s for "
        f"{step.gradient_bytes / 1e6:.3g} MB of gradients beside {measured.step_s:.3g} s for "
        f"{step.images} images a worker"
    )
    train = step.configuration.train
    batch = math.ceil(train.batch_size * sums / measured.step_s)
    enough = f" (--batch-size {batch} makes it half)" if batch <= step.num_images else ""
    halved = "" if train.grad_compression == "bf16" else "--grad-compression bf16, "
    advice = (
        f"fewer, larger batches{enough}, {halved}trainings that stay on one host, or a faster link"
    )
    return CheckResult(False, message, advice)


def _on_each_host(
    hosts: Iterable[Host],
    check: str,
    function: Callable[..., CheckResult],
    *args: Any,
    limit_s: float = LIMIT_S,
    num_gpus: float = 0,
) -> Iterator[Finding]:
    """Findings of a function that is called on each host."""
    answers = call_on_hosts(hosts, function, *args, limit_s=limit_s, num_gpus=num_gpus)
    for host, answer in answers.items():
        if isinstance(answer, Exception):
            yield _error_finding(host, check, answer)
        else:
            yield Finding(host.name, check, *answer)


def _error_finding(host: Host, check: str, error: Exception) -> Finding:
    advice = "see whether the host is up, and Ray's logs there"
    if isinstance(error, ImportError):
        advice = "install the packages of pyproject.toml there"
    return Finding(host.name, check, False, _reason(error), advice)


def _reason(error: Exception) -> str:
    line = without_secrets(next(iter(str(error).strip().splitlines()), ""))
    is_plain = isinstance(error, ValueError | TimeoutError | TooSlowError)
    return line if is_plain else f"{type(error).__name__}: {line}"
