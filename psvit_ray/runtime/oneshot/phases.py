"""The phases of a one-shot search. Each begins with what the one before it, or an earlier start,
left in the storage."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
import torch
from pydantic import TypeAdapter

from psvit_ray.arch.latency import Conditions, LatencyTable
from psvit_ray.arch.space import SearchSpace
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data.sources.image_source import Source
from psvit_ray.model.timing import measure_table
from psvit_ray.runtime.cluster.cluster import amounts_per_worker
from psvit_ray.runtime.oneshot.candidate_scoring import score_candidates
from psvit_ray.runtime.oneshot.finalists import export_inherited, export_winner
from psvit_ray.runtime.session.budget import TimeBudget
from psvit_ray.runtime.session.session import Session, exit_code
from psvit_ray.runtime.train.config import WorkerRange
from psvit_ray.runtime.train.trainer import CHECKPOINTS, TrainResult, train
from psvit_ray.runtime.tune.config import Trials
from psvit_ray.runtime.tune.tuner import run_trials, trials_at_once
from psvit_ray.search.config import SearchConfig
from psvit_ray.search.oneshot.config import OneshotConfig
from psvit_ray.search.oneshot.plan import (
    best_scored_specs,
    finalist_configurations,
    large_specs,
    make_evolution,
    read_latency_table,
    supernet_configuration,
)
from psvit_ray.search.oneshot.scores import Score, ScoreStore
from psvit_ray.search.oneshot.subnets import read_holdout, suggested_sharings
from psvit_ray.search.proposals import FixedProposals
from psvit_ray.search.record import FINAL_STATUSES, Record, RecordStore
from psvit_ray.storage import json_files
from psvit_ray.training.checkpoint import Checkpoint, last_checkpoint
from psvit_ray.training.config import Configuration, TrainConfig

LATENCY = "latency.json"
FIRST = "first-candidates.json"
IMAGES_FOR_MAPS = 256
SUPERNET = "supernet"


@dataclass(frozen=True)
class OneshotResult:
    """Scores and records of a one-shot search, and why it ended."""

    scores: list[Score]
    records: list[Record]
    """Records of the finalists' trainings."""
    supernet: Record
    signal: int | None = None
    """Number of the signal that ended the search early, or None."""
    reason: str = ""
    """Why the search ended early, if not by an error; else empty."""
    fault: str = ""
    """Error that ended the search early; else empty."""
    untracked: int = 0

    @property
    def exit_code(self) -> int:
        return 1 if self.fault else exit_code(self.signal)


def search(
    session: Session,
    source: Source,
    config: OneshotConfig,
    search: SearchConfig,
    train: TrainConfig,
    trials: Trials,
) -> OneshotResult:
    """Trains the supernet, scores candidates, trains finalists and tests the winner: each phase
    goes on from what is there of it, while the search's hours and GPU-hours last.

    Raises ValueError where a latency is asked for that no spec has.
    """
    budget, gpus = TimeBudget.of(search), amounts_per_worker(trials.resources).get("GPU", 0)
    latency_ms = None
    if config.asks_for_latency:
        latency_ms = latency_table(session, config, search, trials).predict
    make_evolution(config, search, latency_ms)  # raises, before hours are spent
    gpus_of_supernet = config.supernet_workers * gpus
    before = sum(record.seconds for record in RecordStore(session.folder / SUPERNET).all())
    supernet = train_supernet(
        session,
        supernet_configuration(config, search, train),
        trials,
        workers=config.supernet_workers,
        deadline=budget.without(before * gpus_of_supernet).until(gpus_of_supernet),
    )
    result = OneshotResult([], session.records, supernet.record, supernet.signal)
    if supernet.record.status == "interrupted":
        return replace(result, reason=supernet.record.reason)
    if supernet.record.status != "completed":
        return replace(result, fault=supernet.record.reason)
    budget = budget.without(supernet.record.seconds * gpus_of_supernet)
    scored_before = sum(score.seconds for score in ScoreStore(session.folder).all())
    scored = score_candidates(
        session,
        make_evolution(config, search, latency_ms, first_candidates(session, search, source)),
        lambda: supernet_checkpoint(session),
        source,
        trials,
        candidates=config.candidates,
        metric=train.metric,
        latency_ms=latency_ms,
        deadline=budget.without(scored_before * gpus).until(gpus * trials_at_once(trials)),
    )
    result = replace(result, scores=scored.scores, signal=scored.signal, reason=scored.reason)
    if scored.signal or scored.reason:
        return result
    budget = budget.without(sum(score.seconds for score in scored.scores) * gpus)
    specs = best_scored_specs(scored.scores, config.finalists)
    inherited = export_inherited(session, specs, lambda: supernet_checkpoint(session))
    configurations, kinds = finalist_configurations(config, search, train, specs, inherited)
    outcome = run_trials(
        session,
        FixedProposals(configurations, session.records, kinds),
        trials,
        num_trials=len(configurations),
        budget=budget,
    )
    result = replace(
        result,
        records=outcome.records,
        signal=outcome.signal,
        reason=next(
            (record.reason for record in outcome.records if record.status == "interrupted"), ""
        ),
        fault=outcome.storage_fault,
        untracked=outcome.untracked,
    )
    all_ended = all(record.status in FINAL_STATUSES for record in outcome.records)
    if outcome.signal or outcome.storage_fault or not all_ended:
        return result
    return replace(result, records=export_winner(session, outcome.records, source, trials))


def latency_table(
    session: Session, config: OneshotConfig, search: SearchConfig, trials: Trials
) -> LatencyTable:
    """The latency table of the search, which is stored: measured again it would not be the same."""
    remedy = "restore it from a copy: candidates were scored with it"
    kind = TypeAdapter(LatencyTable)
    if table := json_files.read_json(session.folder, LATENCY, kind, "a latency table", remedy):
        return table
    if config.latency_table:
        table = read_latency_table(config, search)
    else:
        resources = amounts_per_worker(trials.resources)
        conditions = Conditions(
            device="cuda" if resources.get("GPU") else "cpu",
            dtype="bfloat16" if resources.get("GPU") else "float32",
            batch_size=config.latency_batch_size,
        )
        task: Any = ray.remote(_measure_latency)
        threads = int(resources["CPU"])
        table = ray.get(
            task.options(num_cpus=threads, num_gpus=resources.get("GPU", 0)).remote(
                search.space, conditions, threads
            )
        )
    session.folder.write(LATENCY, table.model_dump_json(indent=1).encode())
    return table


def _measure_latency(space: SearchSpace, conditions: Conditions, threads: int) -> LatencyTable:
    torch.set_num_threads(threads)
    return measure_table(space, conditions)


def train_supernet(
    session: Session,
    configuration: Configuration,
    trials: Trials,
    *,
    workers: int,
    deadline: float = math.inf,
) -> TrainResult:
    """Trains the supernet from its newest checkpoint; returns at once where it is trained."""
    folder = session.folder / SUPERNET
    store = RecordStore(folder)
    (record,) = store.all() or [
        Record(
            number=0,
            kind="supernet",
            params={},
            configuration=configuration,
            data_digest=session.data.digest,
        )
    ]
    if record.status == "completed":
        return TrainResult(record, None)
    return train(
        replace(session, folder=folder, store=store, records=[record]),
        configuration,
        workers=WorkerRange(workers, workers),
        resources_per_worker=amounts_per_worker(trials.resources),
        wait_minutes=trials.resources.wait_minutes,
        test=False,
        deadline=deadline,
    )


def first_candidates(session: Session, search: SearchConfig, source: Source) -> list[ArchSpec]:
    """Sharings that the supernet's own attention maps suggest, as the first candidates.

    They are stored, as another machine might round a similarity to the other side of its threshold.
    """
    remedy = "restore it from a copy: generations were bred from it"
    kind = TypeAdapter(list[ArchSpec])
    specs = json_files.read_json(session.folder, FIRST, kind, "a list of architectures", remedy)
    if specs is not None:
        return specs
    checkpoint = supernet_checkpoint(session)
    every = max(1, len(source.holdout) // IMAGES_FOR_MAPS)
    table = source.holdout.take(np.arange(0, len(source.holdout), every))
    suggested = suggested_sharings(
        checkpoint,
        read_holdout(table, checkpoint.run.preprocessing),
        (spec for spec in large_specs(search) if not has_sharing(spec)),
    )
    content = json.dumps([spec.model_dump(mode="json") for spec in suggested], indent=1).encode()
    session.folder.write(FIRST, content)
    return suggested


def has_sharing(spec: ArchSpec) -> bool:
    """Whether a layer of the spec uses another layer's attention map."""
    return any(size > 1 for stage in spec.stages for size in stage.share_groups)


def supernet_checkpoint(session: Session) -> Checkpoint:
    """The last checkpoint of the supernet, which is trained."""
    return last_checkpoint(session.folder / SUPERNET / CHECKPOINTS)
