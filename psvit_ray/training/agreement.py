"""Agreement of all workers before every step: that all have come, the sums of the steps before, and
whether to write a checkpoint or to stop.

It runs over gloo in host memory: a GPU does not wait for it, and a worker that hangs is noticed
here first, before it blocks a collective on the device, which cannot tell whom it waits for.
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

ALIVE_TIMEOUT_S = 5.0  # workers that wait for the same one give up within so many seconds
Request = Literal["none", "checkpoint", "stop"]


class WorkerHung(RuntimeError):
    """A worker did not reach a step in time."""


@dataclass(frozen=True)
class StepDecision:
    """The outcome of an agreement, the same on every worker."""

    steps: tuple[tuple[int, float, int, int], ...]
    """Steps whose outcome became known: step, and sums over the workers of loss, images and bad
    images."""
    request: Request
    """Strongest request of any worker: `stop` before `checkpoint` before `none`."""


class StepAgreement:
    """The workers' agreement before each step. A worker that is `patience_s` later than the others
    is named in `WorkerHung`."""

    def __init__(self, device: torch.device, *, patience_s: float) -> None:
        self._patience_s = patience_s
        self._rank, self._world_size = rank_and_world_size()
        # On a GPU the outcome of a step is read a step later, when it has long been computed.
        self._lag = 2 if device.type == "cuda" else 1
        self._outcomes: deque[_Outcome] = deque()
        if self._world_size > 1:
            patience = timedelta(seconds=patience_s)
            self._group: Any = dist.new_group(backend="gloo", timeout=patience)
            self._alive = dist.PrefixStore("psvit_alive", _store())

    def note(self, step: int, loss_sum: Tensor, images: int, bad: int) -> None:
        """Adds this worker's share of a completed step: sum of losses (a scalar tensor), images and
        bad images."""
        self._outcomes.append(_Outcome(step, loss_sum, images, bad))

    def ask(self, step: int, request: Request, *, everything: bool = False) -> StepDecision:
        """Waits for all workers before `step`; `request` is what this one asks for. With
        `everything` the outcome of the last step is waited for too.

        Raises WorkerHung if a worker does not come.
        """
        outcomes = [self._outcomes.popleft() for _ in range(self._ready(everything))]
        values = [number for outcome in outcomes for number in outcome.numbers()]
        values += [float(request == "checkpoint"), float(request == "stop")]
        if self._world_size > 1:
            sums = torch.tensor(values, dtype=torch.float64)
            with self.naming(step):
                dist.all_reduce(sums, group=self._group)
            values = sums.tolist()
        *numbers, checkpoint, stop = values
        steps = zip(outcomes, numbers[::3], numbers[1::3], numbers[2::3], strict=True)
        return StepDecision(
            steps=tuple(
                (outcome.step, loss_sum, int(images), int(bad))
                for outcome, loss_sum, images, bad in steps
            ),
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
        """Ranks that do not report that they are alive, when the workers give up waiting."""
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
        return max(len(self._outcomes) - (0 if everything else self._lag - 1), 0)


class _Outcome:
    """The outcome of a step on this worker, which is copied from the device meanwhile."""

    def __init__(self, step: int, loss_sum: Tensor, images: int, bad: int) -> None:
        self.step, self._images, self._bad = step, images, bad
        self._copied: torch.cuda.Event | None = None
        self._loss_sum = loss_sum
        if loss_sum.is_cuda:
            self._loss_sum = torch.empty_like(loss_sum, device="cpu", pin_memory=True)
            self._loss_sum.copy_(loss_sum, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    def numbers(self) -> tuple[float, float, float]:
        """Sum of losses, images and bad images; waits for the copy."""
        if self._copied:
            self._copied.synchronize()
        return self._loss_sum.item(), float(self._images), float(self._bad)


def _store() -> dist.Store:
    """The store of the default process group, for which torch has no public name."""
    return dist.distributed_c10d._get_default_store()
