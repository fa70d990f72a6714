"""A Tune trial: one configuration, trained in this process or in workers of its own."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.sources.load_data import DriverData
from psvit_ray.data.splits.layout import DataSettings
from psvit_ray.runtime.train.control_channel import STOP, ControlChannel, HeadMonitor
from psvit_ray.runtime.train.worker import DRIVER_ERRORS, RunTask, record_bad_images
from psvit_ray.text.secrets import without_secrets
from psvit_ray.training.agreement import Request
from psvit_ray.training.checkpoint import CheckpointManager
from psvit_ray.training.engine import run_training
from psvit_ray.training.execution import Execution
from psvit_ray.training.results import FailedResult
from psvit_ray.training.source import check_fits
from psvit_ray.training.steps import Diverged

MONITOR_S = 5.0


def train_trial(raw_task: dict[str, Any]) -> None:
    """Runs a Tune trial. With one worker it trains here, in a process that the next trial uses
    again; several workers are a Ray Train run of their own, which this process drives."""
    task = RunTask.model_validate(raw_task)
    if task.workers.max_workers == 1:
        _train_here(task)
    else:
        _train_in_workers(task)


def _train_here(task: RunTask) -> None:
    configuration, fence = task.configuration, task.fence
    keep, on_gpu = configuration.train.keep_checkpoints, bool(ray.get_gpu_ids())
    torch.set_num_threads(int(task.resources_per_worker["CPU"]))
    epoch = step = 0
    try:
        # Tune stops a trial by SystemExit out of `report`: the process lives on, loaders must not,
        # and what is being written is written.
        with contextlib.ExitStack() as stack:
            channel = ControlChannel(task.channel)
            stack.enter_context(channel.forwarding_warnings())
            monitor = HeadMonitor(lambda: channel.read(STOP), every_s=MONITOR_S)
            stack.enter_context(contextlib.closing(monitor))
            kept = CheckpointManager(fence.over(task.checkpoints), keep=keep)
            stack.enter_context(contextlib.closing(kept))
            source = opened(task.data, configuration.train.data_settings)
            check_fits(configuration, source)
            reports = run_training(
                configuration,
                source,
                execution=Execution(
                    torch.device("cuda" if on_gpu else "cpu"),
                    accelerated=on_gpu,
                    request=lambda: _check_monitor(monitor),
                ),
                start=kept.newest(),
                test=task.test,
            )
            stack.enter_context(contextlib.closing(reports))  # type: ignore[type-var]
            for report in reports:
                record_bad_images(report, fence.over(task.quarantine))
                if report.checkpoint_due:
                    kept.put(report.checkpoint(), score=report.score)
                if report.metrics:
                    epoch, step = report.epoch, report.step
                    tune.report(report.result().to_metrics())
    except DRIVER_ERRORS as error:  # not this trial's: so the next would fare too
        failed = FailedResult(epoch=epoch, step=step, reason=str(error), of_driver=True)
        tune.report(failed.to_metrics())
    except (Diverged, ValueError, torch.OutOfMemoryError) as error:
        # The configuration's own fault is a result. What Tune sees fail is infrastructure.
        reason = without_secrets(f"{type(error).__name__}: {error}").splitlines()[0]
        tune.report(FailedResult(epoch=epoch, step=step, reason=reason).to_metrics())


@functools.lru_cache(maxsize=1)
def opened(data: DriverData, settings: DataSettings) -> Source:
    """The data of a search, which the process keeps open for its next trial."""
    return data.open(settings)


def _check_monitor(monitor: HeadMonitor) -> Request:
    """Raises HeadLost where the head is lost; otherwise the trial goes on, of which a search asks
    nothing."""
    monitor.check()
    return "none"


def _train_in_workers(task: RunTask) -> None:
    # Not where a trial trains by itself: it brings MLflow with it, in each process of trials.
    from psvit_ray.runtime.train.trainer import make_trainer

    trainer = make_trainer(
        task,
        name=task.configuration.key,
        scratch=tune.get_context().get_trial_dir(),
        callbacks=[TuneReportCallback()],
    )
    trainer.fit()  # nothing may follow: where the trial is stopped, this does not return
