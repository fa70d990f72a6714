"""Speed as ratios: each of two things interleaved in one run, median of several. JSON out.

    python jobs/benchmark.py                      # everything, about 10 minutes on two cores
    python jobs/benchmark.py --only models sharing

Use it on a machine that does nothing else.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import ray.train
import timm
import torch
import torch.nn.functional as F
import tyro
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from torch import nn

import psvit_ray.model
from psvit_ray import cli
from psvit_ray.arch.cost import count_macs
from psvit_ray.arch.presets import preset
from psvit_ray.arch.spec import ArchSpec, Value
from psvit_ray.model.latency import interleaved
from psvit_ray.model.psvit import PSViT
from psvit_ray.runtime import cluster, tracking
from psvit_ray.runtime.launch import Launch, opened
from psvit_ray.runtime.ray_tune import Trials, run_trials
from psvit_ray.search.proposals import FixedProposals
from psvit_ray.search.record import Record
from psvit_ray.training.config import Configuration, Number, TrainConfig
from psvit_ray.training.engine import load_source, run
from psvit_ray.training.state import build_model

Section = Literal["models", "sharing", "engine", "trials", "tracking"]


class BenchmarkJob(Value):
    """Measure speed, as ratios."""

    recipe: str = "digits"
    """Its base spec is what the engine is measured with."""
    base: Annotated[ArchSpec, tyro.conf.Suppress]
    train: TrainConfig
    only: tuple[Section, ...] = get_args(Section)
    """What to measure."""
    batch_size_of_models: Number = 32
    """Images of 224 x 224 in a batch of `models` and `sharing`."""
    rounds: Number = 9
    """Of which medians are taken."""
    threads: Number = 1
    """Of torch."""
    out: str = ""
    """JSON file to write beside printing it."""


def work(job: BenchmarkJob) -> int:
    torch.set_num_threads(job.threads)
    measure: dict[str, Callable[[BenchmarkJob], dict[str, Any]]] = {
        "models": models,
        "sharing": sharing,
        "engine": engine,
        "trials": trials,
        "tracking": tracked,
    }
    found: dict[str, Any] = {"torch": torch.__version__, "threads": job.threads}
    for section in job.only:
        found[section] = measure[section](job)
        print(json.dumps({section: found[section]}), flush=True)
    if job.out:
        Path(job.out).write_text(json.dumps(found, indent=2))
    return 0


def models(job: BenchmarkJob) -> dict[str, Any]:
    """Images/s of psvit_2d_tiny over those of timm's deit_tiny_patch16_224."""
    nets = {name: timm.create_model(name) for name in ("psvit_2d_tiny", "deit_tiny_patch16_224")}
    assert psvit_ray.model  # registered the first of them
    return {
        kind: _ratio(
            {name: partial(step, net, _images(job)) for name, net in nets.items()}, job.rounds
        )
        for kind, step in (("forward", _forward), ("training", _train))
    }


def sharing(job: BenchmarkJob) -> dict[str, Any]:
    """Of the MACs that sharing saves in psvit_2d_tiny, the part that shows as time."""
    shared = preset("psvit_2d_tiny")
    alone = shared.with_pattern("|".join("-".join("1" * s.depth) for s in shared.stages))
    saved_macs = 1 - count_macs(shared) / count_macs(alone)
    found: dict[str, Any] = {"macs_saved": saved_macs}
    nets = {"shared": PSViT(shared), "alone": PSViT(alone)}
    for kind, step in (("forward", _forward), ("training", _train)):
        works = {name: partial(step, net, _images(job)) for name, net in nets.items()}
        seconds = interleaved(works, rounds=job.rounds)
        saved = 1 - statistics.median(
            a / b for a, b in zip(seconds["shared"], seconds["alone"], strict=True)
        )
        found[kind] = {"time_saved": saved, "part": saved / saved_macs}
    return found


def engine(job: BenchmarkJob) -> dict[str, Any]:
    """Training images/s of the engine over those of a bare loop of the same steps, both in one
    Ray Train worker: the same threads and niceness."""
    cluster.join()
    with tempfile.TemporaryDirectory() as folder:
        TorchTrainer(
            _engine_and_bare_loop,
            train_loop_config={
                "configuration": Configuration(spec=job.base, train=job.train).model_dump(
                    mode="json"
                ),
                "rounds": job.rounds,
                "threads": job.threads,
                "out": f"{folder}/out.json",
            },
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": job.threads}),
            run_config=ray.train.RunConfig(storage_path=folder),
        ).fit()
        return json.loads(Path(folder, "out.json").read_text())


def _engine_and_bare_loop(task: dict[str, Any]) -> None:
    torch.set_num_threads(task["threads"])
    given = Configuration.model_validate(task["configuration"])
    epochs = {"epochs": task["rounds"] + 1, "warmup_epochs": 0}
    configuration = given.model_copy(update={"train": given.train.model_copy(update=epochs)})
    source: Any = load_source(configuration)
    config = configuration.train
    reports = run(configuration, source)
    model = build_model(configuration).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, fused=True)
    rates: dict[str, list[float]] = {"engine": [], "bare loop": []}
    for number, report in enumerate(reports):
        began = time.perf_counter()
        for batch in torch.randperm(len(source.train)).split(config.batch_size):
            logits = model(source.train.images[batch])
            F.cross_entropy(
                logits, source.train.labels[batch], label_smoothing=config.smoothing
            ).backward()
            optimizer.step()
            optimizer.zero_grad()
        if number:  # the first of each warms up
            rates["bare loop"].append(len(source.train) / (time.perf_counter() - began))
            rates["engine"].append(report.metrics["perf/img_per_s"])
    each = [a / b for a, b in zip(rates["engine"], rates["bare loop"], strict=True)]
    found = {name: statistics.median(rate) for name, rate in rates.items()}
    Path(task["out"]).write_text(json.dumps(found | {"ratio": statistics.median(each)}))


def trials(job: BenchmarkJob) -> dict[str, Any]:
    """Seconds of a trial beyond its training, after the first one: one worker and two."""
    config = job.train.model_copy(update={"epochs": 2, "warmup_epochs": 0})
    found = {}
    for num_workers, number in ((1, 8), (2, 3)):
        configurations = [
            Configuration(spec=job.base, train=config.model_copy(update={"seed": seed}))
            for seed in range(number)
        ]
        with tempfile.TemporaryDirectory() as folder:
            ends: list[float] = []
            with _session(folder, num_workers) as session:
                proposals = _Timed(configurations, ends)
                run_trials(
                    session,
                    proposals,
                    Trials(workers_per_trial=num_workers, max_concurrent=1),
                    num_trials=number,
                )
        whole = statistics.median(b - a for a, b in itertools.pairwise(ends))
        bare = statistics.median(_seconds_alone(one) for one in configurations[:3])
        found[f"{num_workers} workers"] = {"seconds_outside_training": whole - bare}
    return found


class _Timed(FixedProposals):
    def __init__(self, configurations: list[Configuration], ends: list[float]) -> None:
        super().__init__(configurations)
        self._ends = ends

    def tell(self, key: str, top1: float | None) -> None:
        self._ends.append(time.monotonic())


def _seconds_alone(configuration: Configuration) -> float:
    began = time.perf_counter()
    list(run(configuration, load_source(configuration)))
    return time.perf_counter() - began


def tracked(job: BenchmarkJob) -> dict[str, Any]:
    """Seconds of the same run with a tracker that gets every epoch, over those without."""
    config = job.train.model_copy(update={"epochs": 3, "warmup_epochs": 0})
    configuration = Configuration(spec=job.base, train=config)
    source = load_source(configuration)
    with tempfile.TemporaryDirectory() as folder:
        tracker = tracking.Tracker(
            tracking.Experiment(
                tracking_uri=f"sqlite:///{folder}/mlflow.db",
                name="benchmark",
                search_id="benchmark",
                run_name="benchmark",
            )
        )

        def train(track: bool) -> None:
            record = Record(number=0, kind="fixed", params={}, configuration=configuration)
            for report in run(configuration, source):
                record = record.reported(report.values())
                if track:
                    tracker.put(record)

        works = {"tracked": partial(train, True), "alone": partial(train, False)}
        found = _ratio(works, job.rounds, inverse=True)
        tracker.close("FINISHED")
    return found


def _session(folder: str, num_workers: int) -> Any:
    return opened(
        Launch(storage=folder, name="benchmark"),
        default_name="benchmark",
        identity={},
        dataset="benchmark",
        num_workers=num_workers,
        resources=cluster.WorkerResources(),
    )


def _images(job: BenchmarkJob) -> torch.Tensor:
    return torch.randn(job.batch_size_of_models, 3, 224, 224)


def _forward(net: nn.Module, images: torch.Tensor) -> None:
    with torch.inference_mode():
        net.eval()(images)


def _train(net: nn.Module, images: torch.Tensor) -> None:
    net.train()(images).float().square().mean().backward()


def _ratio(
    works: Mapping[str, Callable[[], object]], rounds: int, *, inverse: bool = False
) -> dict[str, float]:
    """Median over rounds of the second's seconds over the first's (or inverse)."""
    seconds = interleaved(works, rounds=rounds)
    first, second = seconds.values()
    each = [b / a for a, b in zip(first, second, strict=True)]
    found = {name: statistics.median(times) for name, times in seconds.items()}
    ratio = statistics.median(each)
    return {f"{name} s": s for name, s in found.items()} | {
        "ratio": 1 / ratio if inverse else ratio
    }


if __name__ == "__main__":
    cli.run(BenchmarkJob, work)
