"""How fast networks are here, measured beside each other."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import nn


def interleaved(
    works: Mapping[str, Callable[[], object]], *, rounds: int
) -> dict[str, list[float]]:
    """Seconds of each call, one of each kind a round: what disturbs the machine meets all alike."""
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
    """Median of the forward pass, without gradients, of a batch of this shape (B, C, S, S)."""
    images = torch.randn(shape)

    def forward(model: nn.Module) -> Callable[[], object]:
        def work() -> object:
            with torch.inference_mode():
                return model(images)

        return work

    works = {name: forward(model.eval()) for name, model in models.items()}
    times = interleaved(works, rounds=rounds)
    return {name: shape[0] / statistics.median(seconds) for name, seconds in times.items()}
