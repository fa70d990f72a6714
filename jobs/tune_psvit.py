"""Searches token pooling and attention sharing: Ray Tune tries configurations, MLflow has them all.

    python jobs/tune_psvit.py --recipe digits --num-trials 18 --max-gmacs 0.002
    ray job submit --working-dir . -- python jobs/tune_psvit.py --storage s3://bucket/psvit --name a

Without a cluster it starts Ray on this machine. Ends with a leaderboard, `best.yaml` and a picture
in `--storage/--name`. Ctrl-C ends it in order; `--resume` goes on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import yaml

from psvit_ray import cli
from psvit_ray.arch.spec import Value
from psvit_ray.data.sources import Source
from psvit_ray.report import leaderboard
from psvit_ray.runtime.asha import Halving
from psvit_ray.runtime.cluster import off_without_gpus
from psvit_ray.runtime.launch import Launch, Session, exit_code, opened
from psvit_ray.runtime.oneshot import (
    export_inherited,
    export_winner,
    score_candidates,
    train_supernet,
)
from psvit_ray.runtime.ray_tune import Budget, Trials, run_trials
from psvit_ray.search.config import SearchConfig
from psvit_ray.search.estimate import describe
from psvit_ray.search.oneshot import OneshotConfig, best_specs, finalists, warning
from psvit_ray.search.proposals import FixedProposals, Proposals
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.engine import load_source

LIMITS = {"num_trials", "max_hours", "max_gpu_hours"}
LIMITS_OF_ONESHOT = {"candidates", "supernet_workers", "finalists", "finalist_seeds"}


class TuneJob(Value):
    """Search token pooling and attention sharing with Ray Tune."""

    recipe: str = "digits"
    """Name in jobs/recipes, or path of a YAML file: the defaults of everything below."""
    train: TrainConfig = TrainConfig()
    search: SearchConfig
    strategy: Literal["scratch", "oneshot"] = "scratch"
    """Train each configuration, or one supernet whose weights all are scored with."""
    oneshot: OneshotConfig = OneshotConfig()
    trials: Trials = Trials()
    launch: Launch = Launch()
    dry_run: bool = False
    """Say what would be done and how long it would take; start nothing."""

    @property
    def identity(self) -> dict[str, object]:
        """What a resume must not change. How much is tried, and how fast, may."""
        search = self.search.model_dump(mode="json", exclude=LIMITS)
        identity: dict[str, object] = {
            "train": self.train.model_dump(mode="json"),
            "search": search,
        }
        if self.strategy == "oneshot":
            identity["oneshot"] = self.oneshot.model_dump(mode="json", exclude=LIMITS_OF_ONESHOT)
        return identity


def work(job: TuneJob) -> int:
    search, train = job.search, job.train
    search.check(train)
    source = load_source(Configuration(spec=search.space.smallest()[0], train=train))
    if job.dry_run:
        print(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False))
        print(describe(search, train, concurrency=job.trials.max_concurrent))
        return 0

    halving = None
    if search.reduction_factor:
        halving = Halving(
            epochs=train.epochs,
            grace_epochs=search.grace_epochs,
            reduction_factor=search.reduction_factor,
        )
    with opened(
        job.launch,
        default_name=Path(job.recipe).stem,
        identity=job.identity,
        source=source,
        num_workers=job.trials.workers_per_trial,
        resources=job.trials.resources,
    ) as session:
        if off := off_without_gpus(train, job.trials.resources.resolved()):
            print(off)
        if job.strategy == "oneshot":
            return oneshot(job, session, source)
        outcome = run_trials(
            session,
            Proposals(search, train, session.records),
            job.trials,
            num_trials=search.num_trials,
            budget=Budget(search.max_hours, search.max_gpu_hours),
            halving=halving,
        )
        leaderboard.write(outcome.records, session.folder, title=session.name)
        print(leaderboard.summary(outcome.records, session.folder, session.experiment.tracking_uri))
    if outcome.untracked:
        print(
            f"MLflow did not take {outcome.untracked} configurations; they are in the record, and "
            "--resume writes them",
            file=sys.stderr,
        )
    return outcome.exit_code


def oneshot(job: TuneJob, session: Session, source: Source) -> int:
    """Supernet, candidates, finalists, test: each goes on from what is there of it."""
    config, search, train = job.oneshot, job.search, job.train
    if said := warning(len(source.holdout)):
        print(said, file=sys.stderr)
    evolution = config.evolution(search, None)
    supernet = train_supernet(
        session, config.supernet(search, train), job.trials, workers=config.supernet_workers
    )
    if supernet.record.status != "completed":
        print(f"supernet: {supernet.record.reason}", file=sys.stderr)
        return exit_code(supernet.signal) or 1
    scored = score_candidates(session, evolution, source, job.trials, candidates=config.candidates)
    if scored.signal:
        return exit_code(scored.signal)
    specs = best_specs(scored.scores, config.finalists)
    configurations, kinds = finalists(
        config, search, train, specs, export_inherited(session, specs)
    )
    outcome = run_trials(
        session,
        FixedProposals(configurations, session.records, kinds),
        job.trials,
        num_trials=len(configurations),
        budget=Budget(search.max_hours, search.max_gpu_hours),
    )
    if outcome.signal or outcome.storage_fault:
        return outcome.exit_code
    records = export_winner(session, outcome.records, source, job.trials)
    print(leaderboard.summary(records, session.folder, session.experiment.tracking_uri))
    return outcome.exit_code


if __name__ == "__main__":
    cli.run(TuneJob, work)
