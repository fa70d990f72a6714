"""How far from the best of a whole space is what searches chose, and what did it cost them?

    python -m jobs.studies.rank_study --recipe my.yaml --specs 100 --seeds 3 --name ranks
    python jobs/tune_psvit.py --recipe my.yaml --strategy oneshot --seed 100 --name once
    python -m jobs.studies.regret --study ranks --search once

The study has trained the architectures, each with several seeds: their means are the truth, and
the best mean is a little too good, as the best of many is. Beside each search stands what random
search finds with as many seconds of training, drawn many times from the study's trainings.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import tyro
from pydantic import Field

from jobs.studies.rank_study_report import Trainings
from psvit_ray.arch.spec import ArchSpec, Value
from psvit_ray.commands import command_line
from psvit_ray.report.summary import aligned
from psvit_ray.runtime.oneshot.phases import SUPERNET
from psvit_ray.search.description import read_records
from psvit_ray.search.oneshot.finalists import winner
from psvit_ray.search.oneshot.scores import ScoreStore
from psvit_ray.search.record import Record, RecordStore, best
from psvit_ray.storage.folder import Folder

RESAMPLES = 10_000


class RegretJob(Value):
    """Compare what searches chose with the best of a study."""

    study: str
    """Name of a rank study (jobs.studies.rank_study) of all architectures that the searches may
    choose."""
    search: Annotated[tuple[str, ...], Field(min_length=1), tyro.conf.UseAppendAction]
    """Name of a search with the study's training but other seeds; give the flag again for more."""
    storage: str = "outputs"
    """Folder or URI with the study and the searches."""


@dataclass(frozen=True)
class SearchOutcome:
    """What a search chose, and what it cost."""

    name: str
    choice: ArchSpec
    strategy: str
    seconds: float
    """Seconds of all workers of supernet, scoring and trainings."""

    @classmethod
    def of(cls, storage: Folder, name: str, study: Sequence[Record]) -> SearchOutcome:
        """Raises ValueError where nothing is chosen yet, or with what the study has trained."""
        records = read_records(storage, name)
        if {record.key for record in records} & {record.key for record in study}:
            raise ValueError(
                f"search must be of other seeds than the study, got trainings of it in {name!r}; "
                "give the search another --seed"
            )
        winning = winner(records) or best(records)
        if winning is None:
            raise ValueError(f"search must have trained a PSViT in full, got {name!r}, with none")
        scores = ScoreStore(storage / name).all()
        trainings = records + RecordStore(storage / name / SUPERNET).all()
        return cls(
            name,
            winning.configuration.spec,
            "oneshot" if scores else "scratch",
            sum(map(worker_seconds, trainings)) + sum(score.seconds for score in scores),
        )


def worker_seconds(record: Record) -> float:
    """Seconds of a training, times its workers."""
    workers = (point.metrics.get("perf/workers", 1.0) for point in record.curve)
    return record.seconds * max(workers, default=1.0)


def work(job: RegretJob) -> int:
    storage = Folder.at(job.storage)
    study = read_records(storage, job.study)
    truth = truth_of(study)
    searches = [SearchOutcome.of(storage, name, study) for name in job.search]
    for search in searches:
        if search.choice not in truth.specs:
            raise ValueError(
                f"search must choose among the study's architectures, got {search.name!r}, which "
                f"chose {search.choice.pattern}"
            )
    print(report(truth, searches))
    return 0


def truth_of(study: Sequence[Record]) -> Trainings:
    """The trainings of a study. Raises ValueError unless there are two seeds or more of each
    architecture."""
    trainings = Trainings.of(study)
    seeds = trainings.top1.shape[1]
    if trainings.missing or seeds < 2:
        raise ValueError(
            "study must have two seeds or more of each architecture, got "
            f"{seeds} with {trainings.missing} trainings missing; go on with --resume"
        )
    return trainings


def regret_of(truth: Trainings, spec: ArchSpec) -> float:
    """Points between the best mean and that of a spec."""
    return float(truth.means.max() - truth.means[truth.specs.index(spec)])


def random_search(truth: Trainings, seconds: float, *, seed: int = 0) -> tuple[float, float]:
    """Mean and deviation of the regret of the best of as many architectures as can be trained, once
    each, in so many seconds. The best is judged by its other seeds, as the seed that it was chosen
    by was lucky."""
    rng = np.random.default_rng(seed)
    num_specs, num_seeds = truth.top1.shape
    others = (truth.top1.sum(axis=1, keepdims=True) - truth.top1) / (num_seeds - 1)
    best_mean = truth.means.max()
    regrets = []
    for _ in range(RESAMPLES):
        order = rng.permutation(num_specs)
        seeds = rng.integers(num_seeds, size=order.shape)
        spent = truth.seconds[order, seeds].cumsum()
        trained = max(1, int((spent <= seconds).sum()))
        chosen = truth.top1[order, seeds][:trained].argmax()
        regrets.append(best_mean - others[order[chosen], seeds[chosen]])
    return statistics.mean(regrets), statistics.pstdev(regrets)


def report(truth: Trainings, searches: Sequence[SearchOutcome]) -> str:
    total_seconds = truth.seconds.sum()
    means = truth.means
    num_specs, num_seeds = truth.top1.shape
    error = truth.take(truth.better_half).within / math.sqrt(num_seeds)
    lines = [
        ["search", "strategy", "seconds", "of the study %", "chose", "patch", "kind", "its mean %"]
        + ["below the best", "random search, as long"]
    ]
    by_strategy: dict[str, list[float]] = {}
    for search in searches:
        spec, regret = search.choice, regret_of(truth, search.choice)
        by_strategy.setdefault(search.strategy, []).append(regret)
        mean, deviation = random_search(truth, search.seconds)
        lines.append(
            [search.name, search.strategy, f"{search.seconds:.0f}"]
            + [f"{100 * search.seconds / total_seconds:.1f}", spec.pattern, str(spec.patch_size)]
            + [f"{spec.pooling} {spec.pool_op}", f"{means.max() - regret:.2f}", f"{regret:.2f}"]
            + [f"{mean:.2f} ± {deviation:.2f}"]
        )
    paragraphs = [
        f"{num_specs} architectures, {num_seeds} seeds each, {total_seconds:,.0f} s of "
        f"training; the best, {truth.specs[int(means.argmax())].pattern}, has "
        f"{means.max():.2f} % hold-out top-1; "
        f"standard error of a mean, in the better half, {error:.2f} points",
        aligned(lines),
    ]
    for strategy, regrets in by_strategy.items():
        if len(regrets) > 1:
            paragraphs.append(
                f"{strategy}: {statistics.mean(regrets):.2f} ± {statistics.stdev(regrets):.2f} "
                f"points below the best, over {len(regrets)} searches"
            )
    return "\n\n".join(paragraphs)


if __name__ == "__main__":
    command_line.run(RegretJob, work)
