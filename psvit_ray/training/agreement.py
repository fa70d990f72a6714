"""What all workers of a run agree on before every step: that all are there, what the steps before
came to, and whether to write a checkpoint or to stop.

Over gloo, in memory of the host: on a GPU nothing waits for it, and a worker that hangs is noticed
here first, before it blocks a collective on the device that cannot say whom it waits for.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from psvit_ray.training.distributed import rank_and_world_size

ALIVE_TIMEOUT_S = 5.0  # in which those who have waited for the same worker give up too
Request = Literal["none", "checkpoint", "stop"]


class WorkerHung(RuntimeError):
    """A worker did not come in time."""


@dataclass(frozen=True)
class StepDecision:
    """The same on every worker. `steps`: (step, loss sum, images, bad images) of each step whose
    outcome became known, summed over the workers."""

    steps: tuple[tuple[int, float, int, int], ...]
    request: Request


class StepAgreement:
    """`patience_s`: a worker that is later than this is named, in `WorkerHung`."""

    def __init__(self, device: torch.device, *, patience_s: float) -> None:
        self._patience_s = patience_s
        self._rank, self._world_size = rank_and_world_size()
        # On a GPU the outcome of a step is asked for a step later, when it has long been computed.
        self._lag = 2 if device.type == "cuda" else 1
        self._known: deque[_Outcome] = deque()
        if self._world_size > 1:
            patience = timedelta(seconds=patience_s)
            self._group: Any = dist.new_group(backend="gloo", timeout=patience)
            self._alive = dist.PrefixStore("psvit_alive", _store())

    def note(self, step: int, loss_sum: Tensor, images: int, bad: int) -> None:
        """This worker's share of a step that was taken."""
        self._known.append(_Outcome(step, loss_sum, images, bad))

    def ask(self, step: int, request: Request, *, everything: bool = False) -> StepDecision:
        """Waits for all workers before `step`. `everything`: also the last step's outcome.

        Raises WorkerHung if one does not come.
        """
        known = [self._known.popleft() for _ in range(self._ready(everything))]
        told = [number for one in known for number in one.numbers()]
        told += [float(request == "checkpoint"), float(request == "stop")]
        if self._world_size > 1:
            values = torch.tensor(told, dtype=torch.float64)
            with self.naming(step):
                dist.all_reduce(values, group=self._group)
            told = values.tolist()
        *numbers, checkpoint, stop = told
        steps = zip(known, numbers[::3], numbers[1::3], numbers[2::3], strict=True)
        return StepDecision(
            steps=tuple((one.step, a, int(b), int(c)) for one, a, b, c in steps),
            request="stop" if stop else "checkpoint" if checkpoint else "none",
        )

    @contextlib.contextmanager
    def naming(self, step: int) -> Iterator[None]:
        """Context of a collective of step `step`. Raises WorkerHung, which names the missing
        workers, where it fails because some did not come."""
        began = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            together = isinstance(error, dist.DistError) or "gloo" in str(error)
            if self._world_size == 1 or not together or not (silent := self._silent()):
                raise
            waited = time.monotonic() - began
            late = f" within {self._patience_s:g} s" if waited >= 0.9 * self._patience_s else ""
            ranks = ", ".join(map(str, silent))
            raise WorkerHung(f"rank {ranks} did not reach step {step}{late}") from error

    def _silent(self) -> list[int]:
        """Ranks that do not say that they are alive, where one after the other gives up waiting."""
        alive: set[int] = set()

        def look() -> None:
            self._alive.set(str(self._rank), "")
            end = time.monotonic() + ALIVE_TIMEOUT_S
            for rank in (self._rank, *range(self._world_size)):
                with contextlib.suppress(RuntimeError):
                    left = timedelta(seconds=max(end - time.monotonic(), 0.1))
                    self._alive.wait([str(rank)], left)
                    alive.add(rank)

        # A store whose process stands still keeps even a wait that has timed out.
        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        thread.join(ALIVE_TIMEOUT_S + self._world_size)
        if self._rank not in alive:
            return [0]  # whose process has the store
        return [rank for rank in range(self._world_size) if rank not in alive]

    def _ready(self, everything: bool) -> int:
        return max(len(self._known) - (0 if everything else self._lag - 1), 0)


class _Outcome:
    """Of a step; on its way from the device."""

    def __init__(self, step: int, loss_sum: Tensor, images: int, bad: int) -> None:
        self.step, self._images, self._bad = step, images, bad
        self._there: torch.cuda.Event | None = None
        self._loss_sum = loss_sum
        if loss_sum.is_cuda:
            self._loss_sum = torch.empty_like(loss_sum, device="cpu", pin_memory=True)
            self._loss_sum.copy_(loss_sum, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()

    def numbers(self) -> tuple[float, float, float]:
        if self._there:
            self._there.synchronize()
        return self._loss_sum.item(), float(self._images), float(self._bad)


def _store() -> dist.Store:
    """Torch has no public name for the store that a process group was initialised with."""
    return dist.distributed_c10d._get_default_store()
