"""The two strategies of `psvit tune`, each from an open session to what it prints."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from psvit_ray.commands.hours import ENDING_S, planned
from psvit_ray.commands.options import TuneJob
from psvit_ray.commands.search_page import SearchPage
from psvit_ray.commands.winner_model import publish
from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.sources.load_data import load_data
from psvit_ray.report import leaderboard
from psvit_ray.report.oneshot import oneshot_files
from psvit_ray.report.summary import ranking_note
from psvit_ray.runtime.cluster.cluster import amounts_per_worker, gpu_settings_note
from psvit_ray.runtime.oneshot.phases import OneshotResult
from psvit_ray.runtime.oneshot.phases import search as search_oneshot
from psvit_ray.runtime.session.budget import TimeBudget
from psvit_ray.runtime.session.session import Session, open_session
from psvit_ray.runtime.tracking import registry
from psvit_ray.runtime.tune.asha import AshaConfig
from psvit_ray.runtime.tune.tuner import TrialsResult, run_trials
from psvit_ray.search.oneshot.plan import holdout_size_warning
from psvit_ray.search.proposals import Proposals
from psvit_ray.search.record import FINAL_STATUSES
from psvit_ray.text.durations import duration


def run(job: TuneJob, source: Source) -> int:
    """Searches in a session of its own. Returns the exit code."""
    begun = time.monotonic()
    if job.register_as:
        registry.check_name(job.register_as)
    data_fraction = job.train.data_fraction
    job = planned(job, source, begun=begun)
    train = job.train
    if train.data_fraction != data_fraction:
        source = load_data(train)
    with open_session(
        job.launch,
        default_name=Path(job.recipe).stem,
        identity=job.identity,
        source=source,
        num_workers=job.trials.workers_per_trial,
        resources=job.trials.resources,
    ) as session:
        per_worker = amounts_per_worker(job.trials.resources)
        head = ranking_note(train.metric, source.holdout.labels, source.class_names)
        for note in [*source.notes, gpu_settings_note(train, per_worker), head]:
            if note:
                print(note)
        page = SearchPage(job, session, source)
        if job.strategy == "oneshot":
            result: TrialsResult | OneshotResult = oneshot(job, session, source)
        else:
            result = scratch(job, session, begun)
        if winner := page.winner(result.records):
            print("\n".join(publish(session, winner, job.register_as)))
        print(page.finish(result.records))
    if result.untracked:
        print(
            f"MLflow did not take {result.untracked} configurations; they are in the record, and "
            "--resume writes them",
            file=sys.stderr,
        )
    if result.exit_code:
        print(f"goes on with: {job.resume_command(session.name)}")
    return result.exit_code


def scratch(job: TuneJob, session: Session, begun: float) -> TrialsResult:
    """Trains every configuration, the weak ones not to their end. Hours count from the moment
    `begun` of time.monotonic()."""
    search, train = job.search, job.train
    asha = None
    if search.reduction_factor:
        asha = AshaConfig(
            epochs=train.epochs,
            grace_epochs=search.grace_epochs,
            reduction_factor=search.reduction_factor,
        )
    plan = job.time_plan
    result = run_trials(
        session,
        Proposals(search, train, session.records),
        job.trials,
        num_trials=search.num_trials,
        budget=TimeBudget.of(search, begun, kept_s=ENDING_S if plan else 0.0),
        trial_s=plan.trial_s if plan else None,
        halving=asha,
    )
    text = leaderboard.summary(result.records, session.folder, session.experiment.tracking_uri)
    leaderboard.write(result.records, session.folder, title=session.name, text=text)
    print(text)
    if plan:
        ended = sum(record.status in FINAL_STATUSES for record in result.records)
        print(
            f"{ended} configurations, where about {plan.trials} were expected, in "
            f"{duration(time.monotonic() - begun)}"
        )
    return result


def oneshot(job: TuneJob, session: Session, source: Source) -> OneshotResult:
    """Trains one supernet, scores candidates with its weights and trains the best."""
    if warning := holdout_size_warning(len(source.holdout)):
        print(warning, file=sys.stderr)
    result = search_oneshot(session, source, job.oneshot, job.search, job.train, job.trials)
    if reason := result.fault or result.reason:
        print(reason, file=sys.stderr)
    text = oneshot_files.summary(
        result.scores,
        result.records,
        session.folder,
        session.experiment.tracking_uri,
        supernet_seconds=result.supernet.seconds,
        holdout_size=len(source.holdout),
    )
    oneshot_files.write(
        result.scores, result.records, session.folder, title=session.name, text=text
    )
    print(text)
    return result
