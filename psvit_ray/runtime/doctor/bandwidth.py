"""Bandwidth of an all-reduce between hosts, and how much of a training step it takes."""

from __future__ import annotations

import contextlib
import math
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from timm.optim import create_optimizer_v2
from torch import distributed, nn

from psvit_ray.arch.cost import count_params
from psvit_ray.runtime.cluster.network import UseRayInterface
from psvit_ray.runtime.doctor.step_time import BYTES, ring_factor
from psvit_ray.training.config import Configuration
from psvit_ray.training.state import build_model

PROBE_BYTES = 2**20
PROBE_IMAGES = 4
START_S = 90.0
"""Seconds to start a process that imports torch on every host; a busy host takes long."""
PART_S = 30.0
"""Seconds for any other part of the measurement."""
STEP_S = 5.0
"""Seconds of a step or an all-reduce above which it is measured on a part, and scaled."""
LIMIT_S = 20.0
"""Seconds for an all-reduce; 1 MiB at 1 Mbit/s takes 9 s."""


class TooSlowError(RuntimeError):
    """A measurement took longer than its limit; the message says which."""


@dataclass(frozen=True)
class BandwidthResult:
    """Bandwidth between hosts, and the time of a training step; `step_s` is None where no step was
    measured."""

    num_hosts: int
    bytes_per_s: float
    """Bytes/s of an all-reduce over the link of each host, in both directions alike: as NCCL's
    tests count it, bytes * 2(N-1)/N / time."""
    step_s: float | None = None
    """Seconds of one training step, without communication, on the slowest host."""

    def seconds(self, gradient_bytes: int) -> float:
        """Seconds of an all-reduce of `gradient_bytes`."""
        return gradient_bytes * ring_factor(self.num_hosts) / self.bytes_per_s


@dataclass(frozen=True)
class MeasuredStep:
    """A training step to measure: one configuration, whose batch `workers` share."""

    configuration: Configuration
    workers: int
    num_images: int
    """Number of training images: no batch has more."""

    @property
    def images(self) -> int:
        """Images of one worker in a step."""
        return math.ceil(self.configuration.train.batch_size / self.workers)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of gradients that a worker sums with the others."""
        params = count_params(self.configuration.trained_spec)
        return params * BYTES[self.configuration.train.grad_compression]


def measure_bandwidth(
    nodes: Sequence[str], per_worker: Mapping[str, float], step: MeasuredStep | None
) -> BandwidthResult:
    """Measures the bandwidth between two or more of Ray's nodes, with a worker on each.

    Args:
        nodes: Ids of the nodes.
        per_worker: Resources of each worker.
        step: Training step to measure too; None for none.

    Raises TooSlowError, and whatever a worker raises.
    """
    with _workers(nodes, per_worker) as workers:
        what = "a free place on every host (is something else running?)"
        address, *_ = _get_all((worker.address.remote() for worker in workers), START_S, what)
        step_s = None
        if step:
            seconds = (worker.step.remote(step, STEP_S) for worker in workers)
            step_s = max(_get_all(seconds, PART_S, "a training step"))
        group = (
            worker.connect.remote(address, rank, len(nodes)) for rank, worker in enumerate(workers)
        )
        _get_all(group, PART_S, "the connection of all hosts with each other")

        def all_reduce(num_bytes: int) -> float:
            times = (worker.all_reduce.remote(num_bytes) for worker in workers)
            return max(_get_all(times, LIMIT_S, f"an all-reduce of {num_bytes / 2**20:g} MiB"))

        num_bytes, seconds_taken = PROBE_BYTES, all_reduce(PROBE_BYTES)
        within = int(PROBE_BYTES * STEP_S / seconds_taken)
        if within > 2 * PROBE_BYTES:  # else the probe is all there is time for
            gradient_bytes = step.gradient_bytes if step else 32 * PROBE_BYTES
            num_bytes = max(PROBE_BYTES, min(gradient_bytes, within))
            seconds_taken = all_reduce(num_bytes)
    return BandwidthResult(len(nodes), num_bytes * ring_factor(len(nodes)) / seconds_taken, step_s)


@contextlib.contextmanager
def _workers(nodes: Sequence[str], per_worker: Mapping[str, float]) -> Iterator[list[Any]]:
    kind: Any = BandwidthWorker
    workers = [
        kind.options(
            num_cpus=per_worker.get("CPU", 0),
            num_gpus=per_worker.get("GPU", 0),
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote()
        for node in nodes
    ]
    try:
        yield workers
    finally:
        for worker in workers:
            ray.kill(worker)


def _get_all(answers: Iterator[Any], limit_s: float, what: str) -> list[Any]:
    try:
        return list(ray.get(list(answers), timeout=limit_s))
    except GetTimeoutError:
        raise TooSlowError(f"no answer within {limit_s:g} s: {what}") from None


@ray.remote
class BandwidthWorker:
    """A process like a training worker's, which computes and communicates."""

    def address(self) -> str:
        """Address at which the other workers reach this one."""
        here = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((here, 0))
            return f"{here}:{free.getsockname()[1]}"

    def connect(self, address: str, rank: int, num_workers: int) -> None:
        """Connects the workers with each other by torch.distributed."""
        UseRayInterface().after_init_train_context()
        distributed.init_process_group(
            "nccl" if torch.cuda.is_available() else "gloo",
            init_method=f"tcp://{address}",
            rank=rank,
            world_size=num_workers,
            timeout=timedelta(seconds=PART_S),
        )
        distributed.all_reduce(torch.zeros(1, device=_device()))  # connects

    def all_reduce(self, num_bytes: int) -> float:
        """Seconds of an all-reduce, from when all workers are ready."""
        numbers = torch.zeros(num_bytes // BYTES["none"], device=_device())
        distributed.barrier()
        began = time.perf_counter()
        distributed.all_reduce(numbers)
        _wait()
        return time.perf_counter() - began

    def step(self, step: MeasuredStep, within_s: float) -> float:
        """Seconds of a training step with random images; scaled from fewer images where that would
        take longer than `within_s`."""
        train = step.configuration.train
        max_images = min(step.images, train.micro_batch_size or step.images)
        model = build_model(step.configuration).to(_device()).train()
        optimizer = create_optimizer_v2(model, opt=train.opt, lr=train.peak_lr)
        few = min(PROBE_IMAGES, max_images)
        _train(model, optimizer, step.configuration, few)  # the first one is slower
        images, seconds = few, _train(model, optimizer, step.configuration, few)
        if max_images > few and seconds * max_images / few < within_s:
            images, seconds = max_images, _train(model, optimizer, step.configuration, max_images)
        return seconds * step.images / images


def _train(
    model: nn.Module, optimizer: torch.optim.Optimizer, configuration: Configuration, images: int
) -> float:
    """Seconds of one step without loading images."""
    spec, device = configuration.trained_spec, _device()
    x = torch.rand(images, spec.in_chans, spec.img_size, spec.img_size, device=device)
    y = torch.zeros(images, dtype=torch.long, device=device)
    amp = configuration.train.amp and device.type == "cuda"
    _wait()
    began = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=amp):
        logits = model(x)
    nn.functional.cross_entropy(logits.float(), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    _wait()
    return time.perf_counter() - began


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
