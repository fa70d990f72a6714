"""A slow link between two hosts: a step takes as long as `runtime.doctor.step_time` says, and
gradients as bf16 are half the bytes. `make cluster-test` runs them; `-s` shows the figures.

python -m tests.cluster.test_cluster_bandwidth RANK ADDRESS COMPRESSION WIDTH FILE  # a worker
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from psvit_ray.arch.cost import count_params
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.runtime.doctor.step_time import BYTES, GLOO_ATTAINED, Link, estimate_step
from psvit_ray.training.agreement import Request
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.engine import run_training
from psvit_ray.training.execution import Execution
from psvit_ray.training.source import load_source
from tests.helpers.hosts import HEAD, Hosts

pytestmark = pytest.mark.cluster
# About as many seconds a step at each rate: what is sent must be long beside what is computed.
WIDTHS = {"5mbit": 64, "50mbit": 192}
BITS_PER_S = {"5mbit": 5e6, "50mbit": 50e6}
TRAIN = TrainConfig(epochs=3, warmup_epochs=1, batch_size=28, data_fraction=0.1, holdout=0.1)


def spec_of(width: int) -> ArchSpec:
    stage = {"embed_dim": width, "num_heads": 4, "hidden_dim": 4 * width}
    return ArchSpec.model_validate(
        {
            "img_size": 8,
            "patch_size": 4,
            "in_chans": 1,
            "num_classes": 10,
            "pooling": "2d",
            "stages": [{**stage, "share_groups": [1]}, {**stage, "share_groups": [1]}],
        }
    )


class Seen(NamedTuple):
    """By one worker: of each step but the first of a run, and the loss of each epoch."""

    seconds: list[float]
    sent: list[int]
    losses: list[float]


def train(rank: int, address: str, compression: str, width: int, file: Path) -> None:
    """One of two workers; writes what it sees."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://{address}", rank=rank, world_size=2)
    moments: list[tuple[float, int]] = []

    def before_step() -> Request:
        sent = int(Path("/sys/class/net/eth0/statistics/tx_bytes").read_text())
        moments.append((time.perf_counter(), sent))
        return "none"

    config = TRAIN.model_copy(update={"grad_compression": compression})
    configuration = Configuration(spec=spec_of(width), train=config)
    execution = Execution(prepare_model=DistributedDataParallel, request=before_step)
    reports = list(run_training(configuration, load_source(configuration), execution=execution))
    steps = itertools.pairwise(moments[1:])
    times, counts = zip(*[(b - a, d - c) for (a, c), (b, d) in steps], strict=True)
    losses = [report.metrics["train/loss"] for report in reports if report.metrics]
    file.write_text(json.dumps(Seen([*times], [*counts], losses)))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with Hosts(2) as both:
        yield both


def seen(hosts: Hosts, folder: Path, compression: str, width: int) -> Seen:
    files = [folder / f"{compression}-{width}-{rank}.json" for rank in range(2)]
    words = [sys.executable, "-m", "tests.cluster.test_cluster_bandwidth"]
    address = f"{hosts.address(HEAD)}:29500"
    workers = [
        hosts.popen(host, [*words, str(rank), address, compression, str(width), str(files[rank])])
        for rank, host in enumerate(hosts.numbers)
    ]
    for worker in workers:
        said = worker.communicate(timeout=240)[0]
        assert worker.returncode == 0, said
    return Seen(*json.loads(files[0].read_text()))


@pytest.mark.parametrize("rate", ["5mbit", "50mbit"])
def test_a_step_over_a_slow_link_is_as_the_model_says(
    hosts: Hosts, tmp_path: Path, rate: str
) -> None:
    width = WIDTHS[rate]
    params = count_params(spec_of(width))
    quick = seen(hosts, tmp_path, "none", width)  # all but the link
    hosts.throttle(2, rate)
    try:
        found = {kind: seen(hosts, tmp_path, kind, width) for kind in BYTES}
    finally:
        hosts.unthrottle(2)
    for kind, one in found.items():
        reckoned = estimate_step(
            params,
            workers=2,
            compute_s=statistics.median(quick.seconds),
            link=Link(BITS_PER_S[rate], attained=GLOO_ATTAINED),
            compression=kind,
        )
        took, sent = statistics.median(one.seconds), statistics.median(one.sent)
        print(f"{rate} {kind}: {took:.3f} s a step, reckoned {reckoned.seconds:.3f}; {sent:.0f}")
        print(f"bytes for {params * BYTES[kind]} of gradients; losses {one.losses}")
        assert took == pytest.approx(reckoned.seconds, rel=0.2)
    exact, rounded = found["none"], found["bf16"]
    ratio = statistics.median(rounded.sent) / statistics.median(exact.sent)
    assert ratio == pytest.approx(0.5, rel=0.05)
    assert rounded.losses == pytest.approx(exact.losses, rel=0.01)
    assert rounded.losses != exact.losses


if __name__ == "__main__":
    rank, address, compression, width, file = sys.argv[1:]
    train(int(rank), address, compression, int(width), Path(file))
