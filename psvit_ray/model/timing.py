"""Measurement of the latency of networks on this host: side by side, and part by part."""

from __future__ import annotations

import platform
import random
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from psvit_ray.arch.latency import Conditions, LatencyTable, MeasuredNetwork
from psvit_ray.arch.parts import cover, parts
from psvit_ray.arch.space import SearchSpace
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.model.psvit import PSViT

WARM_UP = 2  # passes


def interleaved(
    works: Mapping[str, Callable[[], object]], *, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each call of the functions `works`. Each round calls every function once, so that
    disturbances of the machine affect all alike."""
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            began = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def images_per_second(
    models: Mapping[str, nn.Module], *, shape: tuple[int, ...], rounds: int = 15
) -> dict[str, float]:
    """Median throughput of forward passes without gradients, for a batch of shape (B, C, S, S)."""
    images = torch.randn(shape)

    def forward(model: nn.Module) -> Callable[[], object]:
        def work() -> object:
            with torch.inference_mode():
                return model(images)

        return work

    works = {name: forward(model.eval()) for name, model in models.items()}
    times = interleaved(works, rounds=rounds)
    return {name: shape[0] / statistics.median(seconds) for name, seconds in times.items()}


def torch_device(conditions: Conditions) -> torch.device:
    """torch's device of `conditions`. Raises ValueError if this host does not have it, or if its
    time cannot be measured."""
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    here = ["cpu", *(["cuda"] if gpus else []), *gpus]
    if conditions.device not in here:
        raise ValueError(
            f"device must be one that this host has ({', '.join(here)}), got {conditions.device!r}"
        )
    return torch.device(conditions.device)


def measure_table(space: SearchSpace, conditions: Conditions, *, seed: int = 0) -> LatencyTable:
    """Measures a latency table with every part of every spec of the space.

    Parts are timed within forward passes of networks of the space that together have all parts
    (`cover`): so caches, the layout of tensors in memory and a GPU's queue are as in any network.
    """
    samples: dict[str, list[float]] = defaultdict(list)
    specs = cover(space, conditions.times, seed=seed)
    random.Random(seed).shuffle(specs)  # so that a part is timed at moments apart from each other
    for spec in specs:
        pieces = PSViT(spec).eval().to(torch_device(conditions)).pieces()
        for part, ms in zip(parts(spec), _fastest(pieces, spec, conditions), strict=True):
            samples[part].append(ms)
    return LatencyTable(
        conditions=conditions,
        device_name=device_name(torch_device(conditions)),
        threads=torch.get_num_threads(),
        torch_version=torch.__version__,
        img_size=space.img_size,
        in_chans=space.in_chans,
        num_classes=space.num_classes,
        layer_scale=space.layer_scale,
        ms={part: statistics.median(times) for part, times in sorted(samples.items())},
    )


def tried_on(table: LatencyTable, specs: Sequence[ArchSpec]) -> LatencyTable:
    """The table with its error on these networks, measured now."""
    times = time_networks(specs, table.conditions)
    unseen = [
        MeasuredNetwork(spec=spec, predicted=table.predict(spec), measured=ms)
        for spec, ms in zip(specs, times, strict=True)
    ]
    return table.model_copy(update={"unseen": tuple(unseen)})


def time_networks(specs: Sequence[ArchSpec], conditions: Conditions) -> list[float]:
    """Milliseconds of a batch of each network, timed as the parts of a table are."""
    models = [PSViT(spec).eval().to(torch_device(conditions)) for spec in specs]
    turns = [
        [_fastest([model], model.spec, conditions)[0] for model in models]
        for _ in range(conditions.times)
    ]
    return [statistics.median(times) for times in zip(*turns, strict=True)]


def _fastest(
    pieces: Sequence[Callable[[Tensor], Tensor]], spec: ArchSpec, conditions: Conditions
) -> list[float]:
    """Milliseconds of each piece in the fastest pass of all."""
    shape = (conditions.batch_size, spec.in_chans, spec.img_size, spec.img_size)
    images = torch.randn(shape, device=torch_device(conditions))
    half = conditions.dtype == "bfloat16"
    passes = []
    for _ in range(WARM_UP + conditions.rounds):
        with (
            torch.inference_mode(),
            torch.autocast(images.device.type, torch.bfloat16, enabled=half),
        ):
            passes.append(time_pieces(pieces, images))
    return min(passes[WARM_UP:], key=sum)  # the fastest time of each piece would add up to less


def time_pieces(pieces: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> list[float]:
    """Milliseconds of each piece on the output of the piece before, the first on `x`."""
    if x.device.type == "cpu":
        # A single thread's own time leaves out what others on the machine take from it.
        clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
        seconds = [clock()]
        for piece in pieces:
            x = piece(x)
            seconds.append(clock())
        return [1000 * (after - before) for before, after in pairwise(seconds)]
    stream = torch.cuda.current_stream(x.device)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(pieces) + 1)]
    events[0].record(stream)
    for piece, event in zip(pieces, events[1:], strict=True):
        x = piece(x)
        event.record(stream)
    stream.synchronize()
    return [before.elapsed_time(after) for before, after in pairwise(events)]


def device_name(device: torch.device) -> str:
    """The product name of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        name = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        name = None
    return name[1] if name else platform.processor() or platform.machine()
