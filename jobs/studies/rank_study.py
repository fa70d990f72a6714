"""Is the ranking of a one-shot search right? Supernet scores against trainings from scratch.

    python -m jobs.studies.rank_study --recipe my.yaml --specs 24 --seeds 4 --name ranks

Specs are drawn from the recipe's space, spread over its MACs. Each is trained from scratch with
several seeds, and scored with the weights of several supernets. The mean over the seeds is the
truth; what half of the seeds say of the other half is the most that any score can be worth, and
MACs and parameters, which cost nothing, the least. `--resume` goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Annotated

from pydantic import Field

from jobs.studies import rank_study_report
from psvit_ray.arch.spec import Value
from psvit_ray.commands import command_line
from psvit_ray.runtime.oneshot.candidate_scoring import score_candidates
from psvit_ray.runtime.oneshot.phases import supernet_checkpoint, train_supernet
from psvit_ray.runtime.session.config import SessionConfig
from psvit_ray.runtime.session.session import Session, exit_code, open_session
from psvit_ray.runtime.tune.config import Trials
from psvit_ray.runtime.tune.tuner import run_trials
from psvit_ray.search.candidates import spread_over_macs
from psvit_ray.search.config import SearchConfig
from psvit_ray.search.oneshot.config import OneshotConfig
from psvit_ray.search.oneshot.evolution import FixedSpecs
from psvit_ray.search.oneshot.plan import supernet_configuration
from psvit_ray.search.oneshot.scores import Score
from psvit_ray.search.proposals import FixedProposals
from psvit_ray.training.config import Configuration, Repeats, TrainConfig
from psvit_ray.training.source import load_source


class RankStudy(Value):
    """Measure how well a supernet's weights rank architectures."""

    recipe: str = "digits"
    """Name in psvit_ray/recipes, or path of a YAML file: space and training."""
    train: TrainConfig = TrainConfig()
    search: SearchConfig
    specs: Annotated[int, Field(ge=8, le=10_000)] = 24
    """Number of architectures, spread over the MACs of the space; fewer than 8 say nothing."""
    seeds: Annotated[Repeats, Field(ge=2)] = 4
    """Number of trainings of each architecture from scratch, with different seeds."""
    supernet_seeds: Repeats = 3
    """Number of supernets, with different seeds."""
    oneshot: OneshotConfig = OneshotConfig()
    trials: Trials = Trials()
    launch: SessionConfig = SessionConfig()


def work(job: RankStudy) -> int:
    search, train = job.search, job.train
    search.check(train)
    specs = spread_over_macs(search.space, search.limits, job.specs, search.search_seed)
    scratch = [
        Configuration(spec=spec, train=train.model_copy(update={"seed": seed}))
        for seed in range(train.seed, train.seed + job.seeds)
        for spec in specs
    ]
    supernets = [
        supernet_configuration(job.oneshot, search, train.model_copy(update={"seed": seed}))
        for seed in range(train.seed, train.seed + job.supernet_seeds)
    ]
    source = load_source(scratch[0])
    with open_session(
        job.launch,
        default_name=f"{Path(job.recipe).stem}-ranks",
        identity={
            "train": train.model_dump(mode="json"),
            "space": search.space.model_dump(mode="json"),
            "specs": [spec.spec_id for spec in specs],
            "supernet_epochs": job.oneshot.supernet_epochs,
            "paths": job.oneshot.paths.model_dump(mode="json"),
        },
        source=source,
        num_workers=job.trials.workers_per_trial,
        resources=job.trials.resources,
    ) as session:
        scores: list[list[Score]] = []
        seconds = 0.0
        for supernet in supernets:
            here = study_subfolder(session, f"supernet-{supernet.train.seed}")
            trained = train_supernet(
                here, supernet, job.trials, workers=job.oneshot.supernet_workers
            )
            if trained.record.status != "completed":
                print(f"supernet: {trained.record.reason}", file=sys.stderr)
                return exit_code(trained.signal) or 1
            scored = score_candidates(
                here,
                FixedSpecs(specs),
                functools.partial(supernet_checkpoint, here),
                source,
                job.trials,
                candidates=len(specs),
            )
            if scored.signal:
                return exit_code(scored.signal)
            scores.append(scored.scores)
            seconds += trained.record.seconds
        outcome = run_trials(
            session,
            FixedProposals(scratch, session.records),
            job.trials,
            num_trials=len(scratch),
        )
        print(rank_study_report.write(scores, outcome.records, session.folder))
    return outcome.exit_code


def study_subfolder(session: Session, name: str) -> Session:
    return dataclasses.replace(session, folder=session.folder / name)


if __name__ == "__main__":
    command_line.run(RankStudy, work)
