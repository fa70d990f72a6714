"""Searches token pooling and attention sharing: Ray Tune tries configurations, MLflow has them all.

    python jobs/tune_psvit.py --recipe digits --num-trials 18 --max-gmacs 0.002
    ray job submit --working-dir . -- python jobs/tune_psvit.py --storage s3://bucket/psvit --name a

Without a cluster it starts Ray on this machine. Ends with a leaderboard, `best.yaml` and a picture
in `--storage/--name`. Ctrl-C ends it in order; `--resume` goes on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NoReturn

import yaml

from psvit_ray.arch.spec import Value
from psvit_ray.commands import command_line
from psvit_ray.commands.estimate import describe
from psvit_ray.data.sources.image_source import Source
from psvit_ray.report import leaderboard
from psvit_ray.report.oneshot import oneshot_files as oneshot_report
from psvit_ray.runtime.cluster.cluster import amounts_per_worker, gpu_settings_note
from psvit_ray.runtime.oneshot.phases import OneshotResult
from psvit_ray.runtime.oneshot.phases import search as search_oneshot
from psvit_ray.runtime.session.budget import TimeBudget
from psvit_ray.runtime.session.config import SessionConfig
from psvit_ray.runtime.session.session import Session, open_session
from psvit_ray.runtime.tune.asha import AshaConfig
from psvit_ray.runtime.tune.config import Trials
from psvit_ray.runtime.tune.tuner import TrialsResult, run_trials
from psvit_ray.search.config import SearchConfig
from psvit_ray.search.oneshot.config import OneshotConfig
from psvit_ray.search.oneshot.finalists import winner
from psvit_ray.search.oneshot.plan import check_oneshot, holdout_size_warning
from psvit_ray.search.proposals import Proposals
from psvit_ray.text.secrets import without_secrets_in
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.source import load_source

LIMITS = {"num_trials", "max_hours", "max_gpu_hours"}
LIMITS_OF_ONESHOT = {"candidates", "supernet_workers", "finalists", "finalist_seeds"}


class TuneJob(Value):
    """Search token pooling and attention sharing with Ray Tune."""

    recipe: str = "digits"
    """Name in psvit_ray/recipes, or path of a YAML file: the defaults of everything below."""
    train: TrainConfig = TrainConfig()
    search: SearchConfig
    strategy: Literal["scratch", "oneshot"] = "scratch"
    """Train each configuration, or one supernet whose weights all are scored with."""
    oneshot: OneshotConfig = OneshotConfig()
    trials: Trials = Trials()
    launch: SessionConfig = SessionConfig()
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
    if job.strategy == "oneshot":
        check_oneshot(job.oneshot, search, train)
    if job.dry_run:
        print(yaml.safe_dump(without_secrets_in(job.model_dump(mode="json")), sort_keys=False))
        shown = job.oneshot if job.strategy == "oneshot" else None
        print(describe(search, train, shown, concurrency=job.trials.max_concurrent))
        return 0

    with open_session(
        job.launch,
        default_name=Path(job.recipe).stem,
        identity=job.identity,
        source=source,
        num_workers=job.trials.workers_per_trial,
        resources=job.trials.resources,
    ) as session:
        per_worker = amounts_per_worker(job.trials.resources)
        for note in [*source.notes, gpu_settings_note(train, per_worker)]:
            if note:
                print(note)
        strategies: dict[str, Callable[..., TrialsResult | OneshotResult]]
        strategies = {"scratch": scratch, "oneshot": oneshot}
        outcome = strategies[job.strategy](job, session, source)
    if outcome.untracked:
        print(
            f"MLflow did not take {outcome.untracked} configurations; they are in the record, and "
            "--resume writes them",
            file=sys.stderr,
        )
    return outcome.exit_code


def scratch(job: TuneJob, session: Session, source: Source) -> TrialsResult:
    """Every configuration is trained, the weak not to their end."""
    search, train = job.search, job.train
    halving = None
    if search.reduction_factor:
        halving = AshaConfig(
            epochs=train.epochs,
            grace_epochs=search.grace_epochs,
            reduction_factor=search.reduction_factor,
        )
    outcome = run_trials(
        session,
        Proposals(search, train, session.records),
        job.trials,
        num_trials=search.num_trials,
        budget=TimeBudget.of(search),
        halving=halving,
    )
    leaderboard.write(outcome.records, session.folder, title=session.name)
    print(leaderboard.summary(outcome.records, session.folder, session.experiment.tracking_uri))
    return outcome


def oneshot(job: TuneJob, session: Session, source: Source) -> OneshotResult:
    """One supernet is trained, candidates are scored with its weights, the best trained."""
    if said := holdout_size_warning(len(source.holdout)):
        print(said, file=sys.stderr)
    found = search_oneshot(session, source, job.oneshot, job.search, job.train, job.trials)
    if said := found.fault or found.reason:
        print(said, file=sys.stderr)
    oneshot_report.write(found.scores, found.records, session.folder, title=session.name)
    if best := winner(found.records):
        session.folder.write("best.yaml", leaderboard.best_yaml(best, session.name).encode())
    print(
        oneshot_report.summary(
            found.scores,
            found.records,
            session.folder,
            session.experiment.tracking_uri,
            supernet_seconds=found.supernet.seconds,
            scoring_seconds=sum(score.seconds for score in found.scores),
            holdout_size=len(source.holdout),
        )
    )
    return found


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs `psvit tune` with these arguments, by default those of the process, and exits."""
    command_line.run(TuneJob, work, argv)
