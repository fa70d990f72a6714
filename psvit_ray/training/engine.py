"""A training run as a generator of reports, in plain PyTorch: its caller decides where it runs and
what becomes of the reports."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from psvit_ray.data.quarantine import BadImageRow
from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.tables import ImageTable
from psvit_ray.export.measures import commonest_measures
from psvit_ray.model.pretrained import LoadedWeights
from psvit_ray.training.checkpoint import Checkpoint
from psvit_ray.training.config import Configuration
from psvit_ray.training.distributed import all_gather
from psvit_ray.training.evaluation import Evaluation, evaluate
from psvit_ray.training.execution import Execution
from psvit_ray.training.loss import Teacher
from psvit_ray.training.results import RANKING, EpochResult, MetricName, Point
from psvit_ray.training.state import TrainState, build_model, load_init, run_info
from psvit_ray.training.steps import Diverged, Steps, TooManyBadImages


@dataclass(frozen=True)
class Report:
    """A report at the end of an epoch or where a checkpoint is due, the same on every worker."""

    epoch: int
    """Completed epochs."""
    step: int
    """Completed optimizer steps."""
    checkpoint: Callable[[], Checkpoint]
    """Makes a checkpoint of this state; to be called before the generator goes on."""
    checkpoint_due: bool = True
    """Whether the configuration asks for a checkpoint here."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the epoch that has ended; empty within an epoch."""
    metric: MetricName = "top1"
    """Metric that the run is ranked by."""
    stopped: bool = False
    """Whether the workers have agreed to stop here."""
    earlier: list[dict[str, Any]] = field(default_factory=list)
    """Reports of the epochs before the checkpoint that the run resumed from; only in the first
    report at the end of an epoch."""
    test: Evaluation | None = None
    """Scores on the test images, in the last report if they are wanted."""
    bad_images: list[BadImageRow] = field(default_factory=list)
    """Unreadable images found since the last report."""

    @property
    def score(self) -> float | None:
        """The ranking metric on the hold-out, higher where it is better; None within an epoch."""
        metric = RANKING[self.metric]
        return metric.score(metric.value(self.metrics)) if self.metrics else None

    def result(self) -> EpochResult:
        """The end of an epoch, as frameworks carry it."""
        point = Point(epoch=self.epoch, step=self.step, metrics=self.metrics)
        earlier = tuple(map(Point.model_validate, self.earlier))
        if self.test is None:
            return EpochResult(point=point, metric=self.metric, earlier=earlier)
        return EpochResult(
            point=point,
            metric=self.metric,
            earlier=earlier,
            test_top1=self.test.top1,
            test_correct="".join("1" if right else "0" for right in self.test.correct),
            test_metrics=self.test.values("test"),
        )


def check_networks(configuration: Configuration, source: Source) -> LoadedWeights | None:
    """Loads the initial weights and the teacher of a configuration, and returns what of the weights
    was taken; None if there are none. Raises ValueError if either cannot be used."""
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
    """Trains, and yields a report at the end of every epoch and wherever a checkpoint is due.

    Args:
        configuration: Architecture and settings of the run.
        source: Its data, from `load_source`.
        execution: Device of this worker, and its connection to a framework.
        start: Checkpoint to resume from. The run then does bit for bit what the undisturbed run
            did; from its last checkpoint it only reports the last epoch again.
        test: Evaluate on the test images at the end, if the data has any.

    It runs in every process of an initialised `torch.distributed` group, or in a single process.
    Close the generator to stop early: that ends the loader's processes.

    Raises ValueError for a checkpoint of another configuration or of other data, Diverged,
    TooManyBadImages, and WorkerHung if a worker does not reach a step.
    """
    config, execution = configuration.train, execution or Execution()
    run = run_info(configuration, source)
    if start and start.run.configuration != configuration:
        other = start.run.configuration
        raise ValueError(
            f"checkpoint must be of configuration {configuration.key} "
            f"({configuration.spec.pattern}), got one of {other.key} ({other.spec.pattern})"
        )
    if start:
        source.check_unchanged(start.run.data_digest)
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
                metric=config.metric,
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
    """Takes the remaining steps of an epoch, and yields a report at each checkpoint. If too many
    images are bad, they are reported before the error is raised."""

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
    metrics: dict[str, float]


def _scores(state: TrainState, source: Source, execution: Execution, *, test: bool) -> _Scores:
    """Scores of the evaluated weights on the hold-out and, with `test`, on the test images. Raises
    TooManyBadImages."""
    config = state.run.configuration.train
    score = functools.partial(
        evaluate,
        state.evaluated,
        preprocessing=state.run.preprocessing,
        num_classes=source.num_classes,
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
    metrics = holdout.values("holdout")
    # What the ranking metric is to be judged by stands beside it.
    commonest = commonest_measures(source.holdout.labels, source.num_classes)
    if config.metric in holdout.measures:
        metrics |= {
            f"holdout/{config.metric}_error": holdout.measures[config.metric].error,
            f"commonest/{config.metric}": commonest[config.metric],
        }
    return _Scores(holdout, score(source.test) if test and source.test else None, metrics)


def _end_epoch(state: TrainState, epoch: int, metrics: dict[str, float]) -> None:
    """Adds the epoch's metrics to the curve. Raises Diverged if one is not finite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise Diverged(f"{name} is {value} at epoch {epoch}, step {state.step}")
    if epoch > state.epoch:  # else the epoch is only reported again
        state.epoch = epoch
        state.curve.append({"epoch": epoch, "step": state.step, "metrics": metrics})


class _BadImages:
    """The unreadable images of a run, each of which is reported once."""

    def __init__(self) -> None:
        self._reported: set[BadImageRow] = set()

    def new(
        self, table: ImageTable, bad: dict[int, str], *, shared: bool = False
    ) -> list[BadImageRow]:
        """Rows of the images in `bad` (position in `table`, reason) that were not reported before,
        from all workers. With `shared` all workers pass the same images."""
        rows = [(*table.place(index), reason) for index, reason in bad.items()]
        fresh = sorted(set(rows if shared else all_gather(rows)) - self._reported)
        self._reported |= set(fresh)
        return fresh
