"""Whether the sharing that a network's redundancy proposes beats random ones of the same cost.

    psvit redundancy --model model/ --data photos/ --out redundancy/
    python -m jobs.studies.sharing_study --redundancy redundancy/ --recipe my.yaml

The proposed sharing, random ones with as many groups in each stage, and the network without any
sharing are trained from scratch as the recipe says, with the same seeds.
"""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from psvit_ray.arch.cost import count_macs
from psvit_ray.arch.counting import compositions, draw_composition
from psvit_ray.arch.spec import ArchSpec, Value, format_pattern, parse_pattern
from psvit_ray.commands import command_line
from psvit_ray.model.attention_similarity import mean_to_leader
from psvit_ray.report import redundancy
from psvit_ray.report.redundancy import SharingProposal
from psvit_ray.report.summary import aligned
from psvit_ray.runtime.session.config import SessionConfig
from psvit_ray.runtime.tune.config import Trials
from psvit_ray.runtime.tune.tuner import train_each
from psvit_ray.search.record import Record
from psvit_ray.storage import files
from psvit_ray.storage.folder import Folder
from psvit_ray.training.config import Configuration, Repeats, Seed, TrainConfig
from psvit_ray.training.source import load_source

PROPOSED, UNSHARED = "proposed", "nothing shared"


class SharingStudy(Value):
    """Measure what a proposed sharing is worth."""

    redundancy: str
    """Folder or URI that `psvit redundancy` wrote."""
    recipe: str = "digits"
    """Name in psvit_ray/recipes, or path of a YAML file: how each network is trained."""
    train: TrainConfig = TrainConfig()
    sharings: Repeats = 5
    """Number of random sharings."""
    draw_seed: Seed = 0
    """Seed that draws the random sharings."""
    seeds: Annotated[Repeats, Field(ge=2)] = 3
    """Number of trainings of each sharing, with seeds from `--seed` on."""
    trials: Trials = Trials()
    launch: SessionConfig = SessionConfig()


def work(job: SharingStudy) -> int:
    measured = proposal(job.redundancy)
    assert measured.spec, "checked by `proposal`"
    unshared = format_pattern([(1,) * stage.depth for stage in measured.spec.stages])
    patterns = {
        PROPOSED: measured.pattern,
        **random_sharings(measured.pattern, job.sharings, job.draw_seed),
        UNSHARED: unshared,
    }
    configurations = {
        name: [
            Configuration(
                spec=measured.spec.with_pattern(pattern), train=with_seed(job.train, seed)
            )
            for seed in range(job.train.seed, job.train.seed + job.seeds)
        ]
        for name, pattern in patterns.items()
    }
    source = load_source(configurations[PROPOSED][0])
    with train_each(
        job.launch,
        configurations,
        source,
        job.trials,
        default_name=f"{Path(job.recipe).stem}-sharings",
    ) as (session, outcome):
        print(write(measured, configurations, outcome.records, session.folder))
    return outcome.exit_code


def proposal(where: str) -> SharingProposal:
    """The sharing proposal in a folder. Raises ValueError where there is none, or none that can be
    trained or compared."""
    folder = Folder.at(where)
    try:
        content = folder.read(redundancy.JSON)
    except OSError as error:
        raise ValueError(
            f"redundancy must be readable, got {folder}: {files.error_text(error)}"
        ) from None
    if content is None:
        raise ValueError(
            f"redundancy must be a folder that psvit redundancy wrote, got {folder}, without "
            f"{redundancy.JSON}"
        )
    try:
        measured = SharingProposal.model_validate_json(content)
    except ValidationError as error:
        raise ValueError(f"{folder / redundancy.JSON}: {command_line.one_line(error)}") from None
    if not measured.spec:
        raise ValueError(
            f"redundancy must be of a network that an ArchSpec describes, got {measured.model}"
        )
    if not redundancy.followers(measured.pattern):
        raise ValueError(
            f"redundancy must propose to share something, got {measured.pattern}; lower the "
            "threshold of psvit redundancy, or give it --followers"
        )
    return measured


def random_sharings(pattern: str, number: int, seed: int) -> dict[str, str]:
    """Distinct random patterns with as many groups in each stage as `pattern`, each as likely as
    any other. Raises ValueError where there are not so many."""
    stages = parse_pattern(pattern)
    ways = math.prod(compositions(sum(groups), len(groups), sum(groups)) for groups in stages) - 1
    if number > ways:
        raise ValueError(
            f"sharings must be at most {ways}, as no more cost what {pattern} does, got {number}"
        )
    rng = random.Random(seed)
    drawn: dict[str, None] = {}
    while len(drawn) < number:
        groups = [draw_composition(rng, sum(sizes), len(sizes), sum(sizes)) for sizes in stages]
        if (other := format_pattern(groups)) != pattern:
            drawn[other] = None
    return {f"random {place}": other for place, other in enumerate(drawn, start=1)}


def with_seed(train: TrainConfig, seed: int) -> TrainConfig:
    return train.model_copy(update={"seed": seed})


def write(
    measured: SharingProposal,
    configurations: Mapping[str, Sequence[Configuration]],
    records: Iterable[Record],
    folder: Folder,
) -> str:
    """Writes `sharings.json` to the folder. Returns the table for the terminal."""
    by_key = {record.key: record for record in records}
    scores: dict[str, list[float]] = {}
    for name, seeds in configurations.items():
        trained = [
            by_key[configuration.key] for configuration in seeds if configuration.key in by_key
        ]
        scores[name] = [record.top1 or 0.0 for record in trained if record.ranks]
        if len(scores[name]) < len(seeds):
            return f"{name} is not trained with all {len(seeds)} seeds: go on with --resume"
    specs = {name: seeds[0].spec for name, seeds in configurations.items()}
    rows = [
        row_of(name, spec, measured, scores[name])
        for name, spec in sorted(specs.items(), key=lambda item: -statistics.mean(scores[item[0]]))
    ]
    names = [row["name"] for row in rows if row["name"] != UNSHARED]
    randoms = [name for name in names if name != PROPOSED]
    # The random sharings of one seed have its luck in common with the proposed one.
    gains = [
        score - statistics.mean(scores[name][i] for name in randoms)
        for i, score in enumerate(scores[PROPOSED])
    ]
    gain, deviation = statistics.mean(gains), statistics.stdev(gains)
    rank = names.index(PROPOSED) + 1
    folder.write(
        "sharings.json",
        json.dumps({"rank": rank, "gains": gains, "sharings": rows}, indent=2).encode(),
    )
    lines = [["", "pattern", "MMACs", "as the leader", "hold-out top-1 %"]]
    for row in rows:
        alike = "-" if row["mean_to_leader"] is None else f"{row['mean_to_leader']:.3f}"
        mean, std = row["top1"], row["top1_std"]
        lines.append(
            [row["name"], row["pattern"], f"{row['mmacs']:.3f}", alike, f"{mean:.2f} ± {std:.2f}"]
        )
    return (
        f"{aligned(lines)}\n\nThe proposed sharing is number {rank} of {len(names)} of its cost: "
        f"{gain:+.2f} ± {deviation:.2f} points against the mean of the random ones (deviation over "
        f"{len(gains)} seeds)"
    )


def row_of(
    name: str, spec: ArchSpec, measured: SharingProposal, top1: Sequence[float]
) -> dict[str, Any]:
    shares = redundancy.followers(spec.pattern) > 0
    return {
        "name": name,
        "pattern": spec.pattern,
        "mmacs": count_macs(spec) / 1e6,
        "mean_to_leader": (
            mean_to_leader(measured.redundancy.similarity, spec.pattern) if shares else None
        ),
        "top1": statistics.mean(top1),
        "top1_std": statistics.stdev(top1),
        "scores": list(top1),
    }


if __name__ == "__main__":
    command_line.run(SharingStudy, work)
