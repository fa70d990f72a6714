"""Long-lived actors that hold a supernet and the hold-out, and score one spec after the other."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data.sources.image_source import Source
from psvit_ray.export.measures import Measure
from psvit_ray.runtime.train.elastic import NoHostsError
from psvit_ray.search.oneshot.subnets import HoldoutImages, SubnetScorer, read_holdout
from psvit_ray.training.checkpoint import Checkpoint

WAITING = 2
"""Number of specs that an actor is given at once, so that it never waits for the next."""
MAX_FAILURES = 3
LOOK_S = 1.0


@ray.remote
class SubnetActor:
    """An actor that holds a supernet and the hold-out."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)

    @ray.method(max_task_retries=-1)  # waits for an actor that is being started again
    def load(self, checkpoint: Checkpoint, held_out: HoldoutImages) -> None:
        """Loads supernet and images: the first call, also after a restart."""
        on_gpu = bool(ray.get_gpu_ids())
        self._subnets = SubnetScorer(
            checkpoint,
            held_out,
            device=torch.device("cuda" if on_gpu else "cpu"),
            amp=on_gpu and checkpoint.run.configuration.train.amp,
        )

    def score(self, spec: str) -> tuple[dict[str, Measure], float]:
        """The measures of a spec as JSON, and the seconds they took."""
        began = time.perf_counter()
        measures = self._subnets.score(ArchSpec.from_json(spec))
        return measures, time.perf_counter() - began


@dataclass
class _ActorState:
    actor: Any
    awake: bool = False
    asked: int = 0
    """Number of results that the actor still owes."""
    failures: int = 0
    """Number of failures since its last score."""


class SubnetActors:
    """`number` actors that score specs, wherever the cluster has room. One that dies is started
    again, and its specs are scored by another."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        source: Source,
        *,
        number: int,
        resources_per_worker: dict[str, float],
        wait_minutes: float,
    ) -> None:
        """Raises ValueError where no hold-out image can be read."""
        train = checkpoint.run.configuration.train
        held_out = read_holdout(
            source.holdout,
            checkpoint.run.preprocessing,
            processes=train.num_loaders,
            decoder=train.decoder,
        )
        self._held = ray.put(checkpoint), ray.put(held_out)
        self._wait_s = 60 * wait_minutes
        kind: Any = SubnetActor
        cpus = resources_per_worker.get("CPU", 0)
        options = kind.options(
            num_cpus=cpus, num_gpus=resources_per_worker.get("GPU", 0), max_restarts=-1
        )
        self.members = [_ActorState(options.remote(max(1, int(cpus)))) for _ in range(number)]
        self._owed: dict[ray.ObjectRef, tuple[_ActorState, ArchSpec | None]] = {}
        """Calls without a result yet: the score of a spec, or, with None, loading."""
        for member in self.members:
            self._ask(member, None)

    def scores(
        self, specs: Sequence[ArchSpec]
    ) -> Iterator[tuple[ArchSpec, dict[str, Measure], float]]:
        """Yields each spec with its measures and the seconds that they took, in the order in which
        they come.

        Raises NoHostsError where no actor has a host for `wait_minutes`, and RayActorError where
        one dies over and over.
        """
        waiting, left = deque(specs), len(specs)
        last_answer = time.monotonic()
        while left:
            for member in self.members:
                while waiting and member.awake and member.asked < WAITING:
                    self._ask(member, waiting.popleft())
            done, _ = ray.wait(list(self._owed), timeout=LOOK_S)
            if done:
                last_answer = time.monotonic()
            elif time.monotonic() - last_answer > self._wait_s and not any(
                member.awake for member in self.members
            ):
                raise NoHostsError(
                    f"no place for a scoring actor for {self._wait_s / 60:g} minutes"
                )
            for reference in done:
                member, spec = self._owed.pop(reference)
                member.asked -= 1
                try:
                    answer = ray.get(reference)
                except RayActorError:
                    member.awake = False
                    if spec is not None:
                        waiting.appendleft(spec)
                    if not member.asked:  # what it owed has come back
                        member.failures += 1
                        if member.failures > MAX_FAILURES:
                            raise
                        self._ask(member, None)
                    continue
                member.awake = True
                if spec is not None:
                    member.failures = 0
                    left -= 1
                    yield (spec, *answer)

    def close(self) -> None:
        """Ends the actors, so that their resources are free."""
        for member in self.members:
            ray.kill(member.actor)

    def _ask(self, member: _ActorState, spec: ArchSpec | None) -> None:
        actor = member.actor
        ref = actor.load.remote(*self._held) if spec is None else actor.score.remote(spec.to_json())
        self._owed[ref] = member, spec
        member.asked += 1
