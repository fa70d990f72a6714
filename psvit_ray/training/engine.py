"""One run as a generator of reports. Plain PyTorch: where a run happens, and what becomes of its
reports, is the caller's affair."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from psvit_ray.data.quarantine import BadImageRow
from psvit_ray.data.sources.image_source import Source, check_unchanged
from psvit_ray.data.tables import ImageTable
from psvit_ray.model.pretrained import LoadedWeights
from psvit_ray.training.checkpoint import Checkpoint
from psvit_ray.training.config import Configuration
from psvit_ray.training.distributed import all_gather
from psvit_ray.training.evaluation import Evaluation, evaluate
from psvit_ray.training.execution import Execution
from psvit_ray.training.loss import Teacher
from psvit_ray.training.state import TrainState, build_model, load_init, run_info
from psvit_ray.training.steps import Diverged, Steps, TooManyBadImages


@dataclass(frozen=True)
class Report:
    """What a run says at the end of an epoch and wherever a checkpoint is due, on every worker the
    same. `checkpoint` gives the whole state: call it while the generator stands here. `step` counts
    updates."""

    epoch: int
    step: int
    checkpoint: Callable[[], Checkpoint]
    checkpoint_due: bool = True
    metrics: dict[str, float] = field(default_factory=dict)
    """Empty within an epoch."""
    stopped: bool = False
    """The workers have agreed to stop here."""
    earlier: list[dict[str, Any]] = field(default_factory=list)
    """In the first report of an epoch after a start from a checkpoint: what was reported before."""
    test: Evaluation | None = None
    bad_images: list[BadImageRow] = field(default_factory=list)
    """That were found since the report before."""

    @property
    def top1(self) -> float | None:
        """On the hold-out, in percent."""
        return self.metrics.get("holdout/top1")

    def values(self) -> dict[str, Any]:
        """Primitives, as frameworks take them."""
        values: dict[str, Any] = {"epoch": self.epoch, "step": self.step, **self.metrics}
        if self.earlier:
            values["earlier"] = self.earlier
        if self.test:
            values["test/top1"] = self.test.top1
            values["test_correct"] = "".join("1" if right else "0" for right in self.test.correct)
        return values


def check_networks(configuration: Configuration, source: Source) -> LoadedWeights | None:
    """What of the weights to start from fits, if there are any. Raises ValueError where these, or
    the teacher, cannot be used."""
    Teacher.of(run_info(configuration, source), torch.device("cpu"))
    return load_init(build_model(configuration), configuration.train)


def run_training(
    configuration: Configuration,
    source: Source,
    *,
    execution: Execution | None = None,
    start: Checkpoint | None = None,
    test: bool = False,
) -> Iterator[Report]:
    """Trains, and yields a report at the end of every epoch and wherever a checkpoint is due; with
    `test` the last one has the score on the test images, where the data has any.

    Started from a checkpoint, it goes on after that step and does bit for bit what the undisturbed
    run did; started from the last, it only reports that epoch again. Works in every process of an
    initialised `torch.distributed` group, or alone. Close the generator to stop early: it puts its
    loaders away.

    Raises ValueError for a checkpoint of another configuration or of other data, Diverged for a
    loss that is not finite, TooManyBadImages, and WorkerHung for a worker that does not come.
    """
    config, execution = configuration.train, execution or Execution()
    run = run_info(configuration, source)
    if start and start.run.configuration != configuration:
        theirs = start.run.configuration
        raise ValueError(
            f"checkpoint must be of configuration {configuration.key} "
            f"({configuration.spec.pattern}), got one of {theirs.key} ({theirs.spec.pattern})"
        )
    if start:
        check_unchanged(source, start.run.data_digest)
    state = TrainState.of(run, execution.device, start)
    earlier = list(state.curve)
    with contextlib.closing(Steps(state, source, execution)) as steps:
        bad = _BadImages()
        for epoch in range(min(state.epoch + 1, config.epochs), config.epochs + 1):
            metrics = {}
            if epoch > state.epoch:
                for report in _within(epoch, steps, state, source, bad):
                    yield report
                    if report.stopped:
                        return
                metrics = steps.metrics()
            scores = _scores(state, source, execution, test=test and epoch == config.epochs)
            _end_epoch(state, epoch, metrics | scores.metrics)
            yield Report(
                epoch=epoch,
                step=state.step,
                checkpoint=state.checkpoint,
                checkpoint_due=epoch == config.epochs
                or (config.checkpoint_every > 0 and epoch % config.checkpoint_every == 0),
                metrics=metrics | scores.metrics,
                earlier=earlier,
                test=scores.test,
                bad_images=[
                    *bad.new(source.train, steps.bad),
                    *bad.new(source.holdout, dict(scores.holdout.bad), shared=True),
                    *(
                        bad.new(source.test, dict(scores.test.bad), shared=True)
                        if source.test and scores.test
                        else ()
                    ),
                ],
            )
            earlier = []


def _within(
    epoch: int, steps: Steps, state: TrainState, source: Source, bad: _BadImages
) -> Iterator[Report]:
    """Takes the steps that the epoch lacks. Where too many images are bad, which ones is told
    first."""

    def report(*, stopped: bool = False, checkpoint_due: bool = True) -> Report:
        return Report(
            epoch=epoch - 1,
            step=state.step,
            checkpoint=state.checkpoint,
            checkpoint_due=checkpoint_due,
            stopped=stopped,
            bad_images=bad.new(source.train, steps.bad),
        )

    try:
        for request in steps.rest_of_epoch(epoch):
            yield report(stopped=request == "stop")
    except TooManyBadImages:
        yield report(checkpoint_due=False)
        raise


@dataclass(frozen=True)
class _Scores:
    holdout: Evaluation
    test: Evaluation | None

    @property
    def metrics(self) -> dict[str, float]:
        return {"holdout/loss": self.holdout.loss, "holdout/top1": self.holdout.top1}


def _scores(state: TrainState, source: Source, execution: Execution, *, test: bool) -> _Scores:
    """Of the averaged weights, where there are any. Raises TooManyBadImages."""
    config = state.run.configuration.train
    score = functools.partial(
        evaluate,
        state.evaluated,
        preprocessing=state.run.preprocessing,
        device=execution.device,
        batch_size=config.batch_size,
        amp=config.amp and execution.accelerated,
        processes=config.num_loaders,
        decoder=config.decoder,
    )
    holdout = score(source.holdout)
    if len(holdout.bad) > config.max_bad_fraction * len(source.holdout):
        raise TooManyBadImages(
            f"more than {config.max_bad_fraction:.3g} of the hold-out images cannot be read: "
            f"{len(holdout.bad)} of {len(source.holdout)}"
        )
    return _Scores(holdout, score(source.test) if test and source.test else None)


def _end_epoch(state: TrainState, epoch: int, metrics: dict[str, float]) -> None:
    """Raises Diverged."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise Diverged(f"{name} is {value} at epoch {epoch}, step {state.step}")
    if epoch > state.epoch:  # else it is only reported again
        state.epoch = epoch
        state.curve.append({"epoch": epoch, "step": state.step, "metrics": metrics})


class _BadImages:
    """Tells each image once."""

    def __init__(self) -> None:
        self._told: set[BadImageRow] = set()

    def new(
        self, table: ImageTable, found: dict[int, str], *, shared: bool = False
    ) -> list[BadImageRow]:
        """`shared`: all workers have found the same."""
        named = [(*table.place(index), reason) for index, reason in found.items()]
        fresh = sorted(set(named if shared else all_gather(named)) - self._told)
        self._told |= set(fresh)
        return fresh
