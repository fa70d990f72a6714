"""The phases of a one-shot search. What each leaves in the storage is where the next one, or a
resume, begins."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import ray
import torch

from psvit_ray.arch.space import SearchSpace
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data.output import new_folder
from psvit_ray.data.sources import Source
from psvit_ray.data.storage import Folder
from psvit_ray.model.latency import Conditions, LatencyTable, measure
from psvit_ray.runtime.elastic import Workers
from psvit_ray.runtime.launch import Session, exit_code
from psvit_ray.runtime.ray_train import CHECKPOINTS, Trained, train
from psvit_ray.runtime.ray_tune import Budget, Trials, run_trials
from psvit_ray.runtime.signals import listening
from psvit_ray.runtime.subnet_actors import SubnetActors
from psvit_ray.runtime.tracking import Tracker
from psvit_ray.search.config import SearchConfig
from psvit_ray.search.finalists import finalists, winner
from psvit_ray.search.oneshot import OneshotConfig, best_specs, trainings_of
from psvit_ray.search.proposals import FixedProposals
from psvit_ray.search.record import ENDED, Record, RecordStore
from psvit_ray.search.scores import Score, ScoreStore, ranked
from psvit_ray.training import export
from psvit_ray.training.checkpoint import Checkpoint, Kept
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.engine import load_source, run
from psvit_ray.training.export_config import CONFIG, Facts
from psvit_ray.training.place import Place
from psvit_ray.training.subnets import load_supernet

LATENCY = "latency.json"
SUPERNET = "supernet"
INHERITED = "inherited"
MODEL = "model"
PUT_EVERY_S = 0.5


@dataclass(frozen=True)
class Found:
    scores: list[Score]
    records: list[Record]
    """Of the finalists' trainings."""
    supernet: Record
    signal: int | None = None
    """That ended it early, if one did."""
    fault: str = ""
    """That ended it early, if one did."""
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
) -> Found:
    """Supernet, candidates, finalists, test: each goes on from what is there of it.

    Raises ValueError where a latency is asked for that no spec has.
    """
    latency_ms = None
    if config.asks_for_latency:
        latency_ms = latency_table(session, config, search, trials).predict
    proposed = config.evolution(search, latency_ms)
    supernet = train_supernet(
        session, config.supernet(search, train), trials, workers=config.supernet_workers
    )
    found = Found([], session.records, supernet.record, supernet.signal)
    if supernet.record.status != "completed":
        return dataclasses.replace(found, fault=supernet.record.reason)
    scored = score_candidates(
        session,
        proposed,
        source,
        trials,
        candidates=config.candidates,
        latency_ms=latency_ms,
    )
    found = dataclasses.replace(found, scores=scored.scores, signal=scored.signal)
    if scored.signal:
        return found
    specs = best_specs(scored.scores, config.finalists)
    configurations, kinds = trainings_of(
        config, search, train, specs, export_inherited(session, specs)
    )
    outcome = run_trials(
        session,
        FixedProposals(configurations, session.records, kinds),
        trials,
        num_trials=len(configurations),
        budget=Budget(search.max_hours, search.max_gpu_hours),
    )
    found = dataclasses.replace(
        found,
        records=outcome.records,
        signal=outcome.signal,
        fault=outcome.storage_fault,
        untracked=outcome.untracked,
    )
    whole = all(record.status in ENDED for record in outcome.records)
    if outcome.signal or outcome.storage_fault or not whole:
        return found
    return dataclasses.replace(
        found, records=export_winner(session, outcome.records, source, trials)
    )


def latency_table(
    session: Session, config: OneshotConfig, search: SearchConfig, trials: Trials
) -> LatencyTable:
    """The one of the search, which is kept: measured again it would not be the same."""
    if content := session.folder.read(LATENCY):
        return LatencyTable.model_validate_json(content)
    if config.latency_table:
        table = config.given_table(search)
    else:
        resources = trials.resources.resolved()
        conditions = Conditions(
            device="cuda" if resources.get("GPU") else "cpu",
            dtype="bfloat16" if resources.get("GPU") else "float32",
            batch_size=config.latency_batch_size,
        )
        task: Any = ray.remote(_measured)
        threads = int(resources["CPU"])
        table = ray.get(
            task.options(num_cpus=threads, num_gpus=resources.get("GPU", 0)).remote(
                search.space, conditions, threads
            )
        )
    session.folder.write(LATENCY, table.model_dump_json(indent=1).encode())
    return table


def _measured(space: SearchSpace, conditions: Conditions, threads: int) -> LatencyTable:
    torch.set_num_threads(threads)
    return measure(space, conditions)


def train_supernet(
    session: Session, configuration: Configuration, trials: Trials, *, workers: int
) -> Trained:
    """Goes on with what is there; has nothing to do where it is trained."""
    folder = session.folder / SUPERNET
    store = RecordStore(folder)
    (record,) = store.all() or [
        Record(number=0, kind="supernet", params={}, configuration=configuration)
    ]
    if record.status == "completed":
        return Trained(record, None)
    return train(
        dataclasses.replace(session, folder=folder, store=store, records=[record]),
        configuration,
        workers=Workers(workers, workers),
        resources_per_worker=trials.resources.resolved(),
        wait_minutes=trials.resources.wait_minutes,
        test=False,
    )


def last_checkpoint(folder: Folder) -> Checkpoint:
    """Of a training that has ended."""
    with contextlib.closing(Kept(folder)) as kept:
        found = kept.newest()
    assert found, f"a training that has ended has a checkpoint in {folder}"
    return found


@dataclass(frozen=True)
class Scored:
    scores: list[Score]
    signal: int | None
    """That ended it early, if one did."""


class Candidates(Protocol):
    def ask(self, most: int) -> list[ArchSpec]:
        """A generation, of `most` at most; none where there is nothing left to score."""

    def tell(self, top1: Sequence[float]) -> None:
        """In percent, of the generation that was asked for."""


def score_candidates(
    session: Session,
    proposed: Candidates,
    source: Source,
    trials: Trials,
    *,
    candidates: int,
    latency_ms: Callable[[ArchSpec], float] | None = None,
) -> Scored:
    """Asks for generations from the first on, and scores what the record does not have yet."""
    store = ScoreStore(session.folder)
    known = {score.spec: score for score in store.all()}
    scores: list[Score] = []
    tracker = Tracker(session.experiment)
    with contextlib.ExitStack() as stack:
        heard = stack.enter_context(listening())
        actors: SubnetActors | None = None
        while len(scores) < candidates and not heard.number:
            specs = proposed.ask(candidates - len(scores))
            if not specs:
                break
            generation = scores[-1].generation + 1 if scores else 0
            numbers = {spec: len(scores) + i for i, spec in enumerate(specs)}
            found = {spec: known[spec] for spec in specs if spec in known}
            if missing := [spec for spec in specs if spec not in known]:
                if actors is None:
                    actors = _actors(session, source, trials)
                    stack.callback(actors.close)
                put_at = time.monotonic() + PUT_EVERY_S
                for spec, loss, top1, seconds in actors.scores(missing):
                    found[spec] = Score(
                        number=numbers[spec],
                        generation=generation,
                        spec=spec,
                        loss=loss,
                        top1=top1,
                        seconds=seconds,
                        latency_ms=latency_ms(spec) if latency_ms else None,
                    )
                    if heard.number:
                        break
                    if time.monotonic() > put_at:
                        store.put(generation, found.values())
                        put_at = time.monotonic() + PUT_EVERY_S
                store.put(generation, found.values())
            scores += found.values()
            if len(found) == len(specs):
                proposed.tell([found[spec].top1 for spec in specs])
                tracker.put_scores(scores)
                best = ranked(scores)[0]
                print(
                    f"[{len(scores)}/{candidates}] generation {generation}: best so far "
                    f"{best.top1:.2f} % with shared weights, {best.spec.pattern}, "
                    f"{best.gmacs:.4g} GMACs",
                    flush=True,
                )
    tracker.close("KILLED" if heard.number else "FINISHED")
    return Scored(sorted(scores, key=lambda score: score.number), heard.number)


def _actors(session: Session, source: Source, trials: Trials) -> SubnetActors:
    return SubnetActors(
        last_checkpoint(session.folder / SUPERNET / CHECKPOINTS),
        source,
        number=trials.concurrency(),
        resources_per_worker=trials.resources.resolved(),
        wait_minutes=trials.resources.wait_minutes,
    )


def export_inherited(session: Session, specs: Sequence[ArchSpec]) -> dict[ArchSpec, str]:
    """Each spec with the weights that it has in the supernet, as an exported folder."""
    folders = {spec: session.folder / INHERITED / spec.spec_id for spec in specs}
    lacking = [spec for spec, folder in folders.items() if folder.read(CONFIG) is None]
    if lacking:
        checkpoint = last_checkpoint(session.folder / SUPERNET / CHECKPOINTS)
        supernet = load_supernet(checkpoint)
        configuration = checkpoint.facts.configuration
        for spec in lacking:
            alone = Configuration(spec=spec, train=configuration.train)
            subnet = dataclasses.replace(
                checkpoint,
                facts=checkpoint.facts.model_copy(update={"configuration": alone}),
                model=supernet.extract(spec).state_dict(),
                ema=None,
                curve=[],
            )
            export_to(folders[spec], subnet, name=session.name)
    return {spec: folder.uri for spec, folder in folders.items()}


def export_to(folder: Folder, checkpoint: Checkpoint, *, name: str, **facts: Any) -> None:
    """Replaces what stands there. `facts`: what else is known, as in `Facts.of`."""
    folder.delete_all()
    with new_folder(folder) as path:
        export.write(path, checkpoint, Facts.of(checkpoint, which="last", name=name, **facts))


def score_test(session: Session, records: Sequence[Record], trials: Trials) -> list[Record]:
    """The records with the score of their trained networks on the test images, which are touched
    here alone, after the choice."""
    resources = trials.resources.resolved()
    task: Any = ray.remote(_test_values)
    untested = [record for record in records if record.test_top1 is None]
    asked = {
        record.key: task.options(
            num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0), max_retries=3
        ).remote(
            record.configuration.model_dump_json(),
            (session.folder / CHECKPOINTS / record.key).uri,
            int(resources["CPU"]),
        )
        for record in untested
    }
    tracker = Tracker(session.experiment)
    tested = []
    for record in records:
        if record.key in asked:
            record = record.reported(ray.get(asked[record.key]))
            session.store.put(record)
            tracker.put(record)
        tested.append(record)
    tracker.close("FINISHED")
    return tested


def _test_values(configuration: str, checkpoints: str, threads: int) -> dict[str, Any]:
    """What the last report of a training says, asked for again with the test images."""
    torch.set_num_threads(threads)
    one = Configuration.model_validate_json(configuration)
    on_gpu = bool(ray.get_gpu_ids())
    place = Place(torch.device("cuda" if on_gpu else "cpu"), accelerated=on_gpu)
    start = last_checkpoint(Folder(checkpoints))
    *_, last = run(one, load_source(one), place=place, start=start, test=True)
    return last.values()


def export_winner(
    session: Session, records: Sequence[Record], source: Source, trials: Trials
) -> list[Record]:
    """The winner's network in `model/`. It and the best DeiT are scored on the test images, where
    the data has any, all their seeds. Returns the records with these scores."""
    chosen = winner(records)
    if chosen is None:
        return list(records)
    if source.test:
        deit = [one for one in finalists(records) if one.kind == "baseline"][:1]
        best = [one for one in finalists(records) if chosen in one.runs]
        tested = score_test(session, [run for one in deit + best for run in one.runs], trials)
        now = {record.key: record for record in [*records, *tested]}
        records, chosen = [now[record.key] for record in records], now[chosen.key]
    export_to(
        session.folder / MODEL,
        last_checkpoint(session.folder / CHECKPOINTS / chosen.key),
        name=session.name,
        run_id=chosen.run_id,
        test_top1=chosen.test_top1,
    )
    return list(records)
