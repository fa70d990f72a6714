"""Speed as ratios: each of two things interleaved in one run, median of several. JSON out.

    python -m jobs.studies.benchmark                     # everything, about 10 minutes on two cores
    python -m jobs.studies.benchmark --only models sharing

Use it on a machine that does nothing else.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import ray.train
import timm
import torch
import torch.nn.functional as F
import tyro
from PIL import Image
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

import psvit_ray.model
from jobs.studies.loader_throughput import rates
from psvit_ray.arch.cost import count_macs
from psvit_ray.arch.presets import preset
from psvit_ray.arch.spec import ArchSpec, Value
from psvit_ray.commands import command_line
from psvit_ray.data.loading.augmentation import Augmentation
from psvit_ray.data.loading.transforms import Preprocessing
from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.sources.load_data import read_data
from psvit_ray.data.tables import ImageTable
from psvit_ray.model.psvit import PSViT
from psvit_ray.model.timing import interleaved
from psvit_ray.runtime.cluster import cluster
from psvit_ray.runtime.oneshot.subnet_actors import SubnetActors
from psvit_ray.runtime.session.config import SessionConfig
from psvit_ray.runtime.session.session import open_session
from psvit_ray.runtime.tracking import mlflow_tracker, parent_run, store_uri
from psvit_ray.runtime.tune.config import Trials
from psvit_ray.runtime.tune.tuner import run_trials
from psvit_ray.search.config import SearchConfig
from psvit_ray.search.oneshot.config import OneshotConfig
from psvit_ray.search.oneshot.plan import make_evolution, supernet_configuration
from psvit_ray.search.proposals import FixedProposals
from psvit_ray.search.record import Record
from psvit_ray.storage.folder import Folder
from psvit_ray.training.agreement import Request
from psvit_ray.training.checkpoint import CheckpointManager
from psvit_ray.training.config import BatchSize, Configuration, Processes, Repeats, TrainConfig
from psvit_ray.training.engine import run_training
from psvit_ray.training.execution import Execution
from psvit_ray.training.source import load_source
from psvit_ray.training.state import TrainState, build_model, run_info

PLAIN = Augmentation(train_crop_mode="rrc", train_interpolation="bicubic", hflip=0.5)
SCORED = 60  # candidates at a time
DEIT = PLAIN.model_copy(update={"aa": "rand-m9-mstd0.5-inc1", "reprob": 0.25})

Section = Literal[
    "models", "sharing", "loader", "engine", "checkpoints", "trials", "tracking", "scoring"
]


class BenchmarkJob(Value):
    """Measure speed, as ratios."""

    recipe: str = "digits"
    """Name in psvit_ray/recipes, or path of a YAML file: the engine is measured with its base
    spec."""
    base: Annotated[ArchSpec, tyro.conf.Suppress]
    train: TrainConfig
    search: Annotated[SearchConfig, tyro.conf.Suppress]
    only: tuple[Section, ...] = get_args(Section)
    """Sections to measure."""
    batch_size_of_models: BatchSize = 32
    """Images of 224 x 224 in a batch of the sections `models` and `sharing`."""
    rounds: Repeats = 9
    """Number of rounds, of which medians are taken."""
    threads: Processes = 1
    """Number of threads of torch."""
    images: tuple[str, ...] = ()
    """Folders or Parquet of the same photographs for the section `loader`, the first of them on
    this machine; by default JPEGs of 500 x 375 drawn for it."""
    loader_processes: Processes = os.cpu_count() or 1
    """Processes of the section `loader`, and of what it is compared with."""
    out: str = ""
    """JSON file to write beside printing it."""


def work(job: BenchmarkJob) -> int:
    torch.set_num_threads(job.threads)
    measure: dict[str, Callable[[BenchmarkJob], dict[str, Any]]] = {
        "models": models,
        "sharing": sharing,
        "loader": loader,
        "engine": engine,
        "checkpoints": checkpoints,
        "trials": trials,
        "tracking": tracking,
        "scoring": scoring,
    }
    results: dict[str, Any] = {"torch": torch.__version__, "threads": job.threads}
    for section in job.only:
        results[section] = measure[section](job)
        print(json.dumps({section: results[section]}), flush=True)
    if job.out:
        Path(job.out).write_text(json.dumps(results, indent=2))
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
    """Fraction of the MACs saved by sharing in psvit_2d_tiny that shows as time."""
    shared = preset("psvit_2d_tiny")
    alone = shared.with_pattern("|".join("-".join("1" * s.depth) for s in shared.stages))
    saved_macs = 1 - count_macs(shared) / count_macs(alone)
    results: dict[str, Any] = {"macs_saved": saved_macs}
    nets = {"shared": PSViT(shared), "alone": PSViT(alone)}
    for kind, step in (("forward", _forward), ("training", _train)):
        works = {name: partial(step, net, _images(job)) for name, net in nets.items()}
        seconds = interleaved(works, rounds=job.rounds)
        saved = 1 - statistics.median(
            a / b for a, b in zip(seconds["shared"], seconds["alone"], strict=True)
        )
        results[kind] = {"time_saved": saved, "part": saved / saved_macs}
    return results


def loader(job: BenchmarkJob) -> dict[str, Any]:
    """Training images/s of 224 x 224 over those of bare processes that decode and transform the
    same images, for our loader and timm's; without and with DeiT's RandAugment and erasing."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        tables: dict[str, ImageTable] = {
            name: read_data(name).train for name in job.images or (_photographs(folder),)
        }
        for kind, augmentation in (("plain", PLAIN), ("deit", DEIT)):
            images_per_s = rates(
                tables,
                Preprocessing(
                    img_size=224, in_chans=3, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD
                ),
                augmentation,
                limit=next(iter(tables.values())),
                processes=job.loader_processes,
                batch_size=64,
                rounds=job.rounds,
            )
            bare = images_per_s["bare"]
            for name, each in images_per_s.items():
                of_bare = statistics.median(a / b for a, b in zip(each, bare, strict=True))
                shown = "ours" if name in tables and not job.images else name
                results[f"{kind} {shown}"] = {
                    "img_per_s": statistics.median(each),
                    "ratio": of_bare,
                }
    return results


def _photographs(folder: str) -> str:
    """512 JPEGs of 500 x 375 with the bytes of photographs (70 kB), in 8 classes."""
    rng = np.random.default_rng(0)
    for number in range(512):
        path = Path(folder, f"class-{number % 8}", f"{number:05}.jpg")
        path.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float32)
        grain = rng.normal(0, 14, smooth.shape)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(path, quality=85)
    return folder


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
    reports = run_training(configuration, source)
    images = run_info(configuration, source).preprocessing.normalize(source.train.images)
    labels = torch.as_tensor(source.train.labels)
    model = build_model(configuration).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, fused=True)
    images_per_s: dict[str, list[float]] = {"engine": [], "bare loop": []}
    for number, report in enumerate(reports):
        began = time.perf_counter()
        for batch in torch.randperm(len(labels)).split(config.batch_size):
            logits = model(images[batch])
            F.cross_entropy(logits, labels[batch], label_smoothing=config.smoothing).backward()
            optimizer.step()
            optimizer.zero_grad()
        if number:  # the first of each warms up
            images_per_s["bare loop"].append(len(labels) / (time.perf_counter() - began))
            images_per_s["engine"].append(report.metrics["perf/img_per_s"])
    each = [a / b for a, b in zip(*images_per_s.values(), strict=True)]
    medians = {name: statistics.median(rate) for name, rate in images_per_s.items()}
    Path(task["out"]).write_text(json.dumps(medians | {"ratio": statistics.median(each)}))


def checkpoints(job: BenchmarkJob) -> dict[str, Any]:
    """What a checkpoint at every epoch's end, the default, takes of training, and how long a resume
    is on its way to its first step."""
    epochs = {"epochs": job.rounds + 1, "warmup_epochs": 0}
    configuration = Configuration(spec=job.base, train=job.train.model_copy(update=epochs))
    source = load_source(configuration)
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(CheckpointManager(Folder(folder))) as kept,
    ):
        stalls, epochs_s = [], []
        began = time.perf_counter()
        for number, report in enumerate(run_training(configuration, source)):
            due = time.perf_counter()
            written = kept.put(report.checkpoint(), score=report.score)
            now = time.perf_counter()
            if number:  # the first warms up
                stalls.append(now - due)
                epochs_s.append(now - began)
            began = now
        written.result()
        seconds = statistics.median(_seconds_of_a_resume(configuration, kept) for _ in range(3))
    part = statistics.median(a / b for a, b in zip(stalls, epochs_s, strict=True))
    return {"stall s": statistics.median(stalls), "part of training": part, "resume s": seconds}


def _seconds_of_a_resume(configuration: Configuration, kept: CheckpointManager) -> float:
    """From the storage to the first step, within a process that runs."""
    more = configuration.train.model_copy(update={"epochs": configuration.train.epochs + 1})
    longer = configuration.model_copy(update={"train": more})
    asked: list[float] = []

    def request() -> Request:
        asked.append(time.perf_counter())
        return "stop"

    began = time.perf_counter()
    start = kept.newest()
    assert start
    start = replace(start, run=start.run.model_copy(update={"configuration": longer}))
    list(
        run_training(longer, load_source(longer), start=start, execution=Execution(request=request))
    )
    return asked[0] - began


def trials(job: BenchmarkJob) -> dict[str, Any]:
    """Seconds of a trial beyond its training, after the first one: one worker and two."""
    config = job.train.model_copy(update={"epochs": 2, "warmup_epochs": 0})
    source = load_source(Configuration(spec=job.base, train=config))
    results = {}
    for num_workers, number in ((1, 8), (2, 3)):
        configurations = [
            Configuration(spec=job.base, train=config.model_copy(update={"seed": seed}))
            for seed in range(number)
        ]
        with tempfile.TemporaryDirectory() as folder:
            ends: list[float] = []
            with _session(folder, source, num_workers) as session:
                proposals = _Timed(configurations, ends)
                run_trials(
                    session,
                    proposals,
                    Trials(workers_per_trial=num_workers, max_concurrent=1),
                    num_trials=number,
                )
        trial_s = statistics.median(b - a for a, b in itertools.pairwise(ends))
        bare = statistics.median(
            _seconds_alone(configuration) for configuration in configurations[:3]
        )
        results[f"{num_workers} workers"] = {"seconds_outside_training": trial_s - bare}
    return results


class _Timed(FixedProposals):
    def __init__(self, configurations: list[Configuration], ends: list[float]) -> None:
        super().__init__(configurations)
        self._ends = ends

    def tell(self, key: str, top1: float | None) -> None:
        self._ends.append(time.monotonic())


def _seconds_alone(configuration: Configuration) -> float:
    began = time.perf_counter()
    list(run_training(configuration, load_source(configuration)))
    return time.perf_counter() - began


def tracking(job: BenchmarkJob) -> dict[str, Any]:
    """Seconds of the same run with a tracker that gets every epoch, over those without."""
    config = job.train.model_copy(update={"epochs": 3, "warmup_epochs": 0})
    configuration = Configuration(spec=job.base, train=config)
    source = load_source(configuration)
    with tempfile.TemporaryDirectory() as folder:
        tracker = mlflow_tracker.Tracker(
            parent_run.Experiment(
                tracking_uri=store_uri.sqlite_uri(Path(folder, "mlflow.db")),
                name="benchmark",
                search_id="benchmark",
                run_name="benchmark",
            )
        )

        def train(track: bool) -> None:
            record = Record(number=0, kind="fixed", params={}, configuration=configuration)
            for report in run_training(configuration, source):
                record = record.reported(report.result())
                if track:
                    tracker.put(record)

        works = {"tracked": partial(train, True), "alone": partial(train, False)}
        result = _ratio(works, job.rounds, inverse=True)
        tracker.close("completed")
    return result


def scoring(job: BenchmarkJob) -> dict[str, Any]:
    """Candidates/s of two actors over those of one, a thread each; and seconds of the driver's
    processor for a candidate, which are where many actors end."""
    cluster.join()
    config = OneshotConfig(population=SCORED)
    configuration = supernet_configuration(config, job.search, job.train)
    source = load_source(configuration)
    facts = run_info(configuration, source)
    checkpoint = TrainState.of(facts, torch.device("cpu"), None).checkpoint()
    evolution = make_evolution(config, job.search, None)
    per_s: dict[int, list[float]] = {1: [], 2: []}
    driver: dict[str, list[float]] = {"proposing": [], "asking": []}
    for number in [1, 2] * job.rounds:
        began = time.process_time()
        specs = evolution.ask(SCORED)
        driver["proposing"].append((time.process_time() - began) / len(specs))
        actors = SubnetActors(
            checkpoint,
            source,
            number=number,
            resources_per_worker={"CPU": 1.0},
            wait_minutes=5.0,
        )
        list(actors.scores(specs))  # an actor makes each part of a network once
        began, used = time.perf_counter(), time.process_time()
        scored = {spec: measures["top1"].value for spec, measures, _ in actors.scores(specs)}
        per_s[number].append(len(specs) / (time.perf_counter() - began))
        driver["asking"].append((time.process_time() - used) / len(specs))
        actors.close()
        evolution.tell([scored[spec] for spec in specs])
    each = [b / a for a, b in zip(per_s[1], per_s[2], strict=True)]
    return {
        "holdout": len(source.holdout),
        "1 actor per s": statistics.median(per_s[1]),
        "2 actors per s": statistics.median(per_s[2]),
        "ratio": statistics.median(each),
        **{f"{name} s": statistics.median(times) for name, times in driver.items()},
    }


def _session(folder: str, source: Source, num_workers: int) -> Any:
    return open_session(
        SessionConfig(storage=folder, name="benchmark"),
        default_name="benchmark",
        identity={},
        source=source,
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
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    ratio = statistics.median(each)
    return {f"{name} s": s for name, s in medians.items()} | {
        "ratio": 1 / ratio if inverse else ratio
    }


if __name__ == "__main__":
    command_line.run(BenchmarkJob, work)
