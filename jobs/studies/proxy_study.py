"""How well a cheaper training ranks configurations: smaller images, fewer, or a shorter run.

    python -m jobs.studies.proxy_study --recipe my.yaml --specs 16 --proxy-img-sizes 64 96
    python -m jobs.studies.proxy_study --recipe my.yaml --proxy-data-fractions 0.25 \
        --proxy-epochs 10

Specs are drawn from the recipe's space, spread over its MACs. Each is trained as the recipe says,
once more with another seed, and by every proxy. Kendall's tau with the first is the proxy's worth;
that of the second seed is the most that any proxy can have.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from psvit_ray.arch.cost import count_macs, count_params
from psvit_ray.arch.spec import Value
from psvit_ray.commands import command_line
from psvit_ray.report.rank_correlation import agreement
from psvit_ray.report.summary import aligned
from psvit_ray.runtime.session.config import SessionConfig
from psvit_ray.runtime.tune.config import Trials
from psvit_ray.runtime.tune.tuner import train_each
from psvit_ray.search.candidates import spread_over_macs
from psvit_ray.search.config import SearchConfig
from psvit_ray.search.record import Record
from psvit_ray.storage.folder import Folder
from psvit_ray.training.config import (
    Configuration,
    Epochs,
    PositiveCount,
    PositiveFraction,
    TrainConfig,
)
from psvit_ray.training.source import load_source


class ProxyStudy(Value):
    """Measure how well cheaper trainings rank architectures."""

    recipe: str = "digits"
    """Name in psvit_ray/recipes, or path of a YAML file: space and training."""
    train: TrainConfig = TrainConfig()
    search: SearchConfig
    specs: Annotated[int, Field(ge=8, le=10_000)] = 16
    """Architectures, spread over the MACs of the space; fewer than 8 say nothing."""
    proxy_img_sizes: tuple[PositiveCount, ...] = ()
    """Sides of smaller images, each a proxy."""
    proxy_data_fractions: tuple[PositiveFraction, ...] = ()
    """Parts of the training images, each a proxy."""
    proxy_epochs: tuple[Epochs, ...] = ()
    """Shorter runs, each a proxy."""
    trials: Trials = Trials()
    launch: SessionConfig = SessionConfig()

    def fidelities(self) -> dict[str, TrainConfig]:
        """Every way in which each spec is trained, by name; the first is the truth."""
        train = self.train
        changes: dict[str, dict[str, Any]] = {
            "in full": {},
            "in full, another seed": {"seed": train.seed + 1},
            **{f"images of {size}": {"img_size": size} for size in self.proxy_img_sizes},
            **{f"{f:g} of the data": {"data_fraction": f} for f in self.proxy_data_fractions},
            **{
                f"{n} epochs": {
                    "epochs": n,
                    "warmup_epochs": train.warmup_epochs * n / train.epochs,
                }
                for n in self.proxy_epochs
            },
        }
        return {
            name: TrainConfig.model_validate({**dict(train), **change})
            for name, change in changes.items()
        }


def work(job: ProxyStudy) -> int:
    fidelities = job.fidelities()
    for train in fidelities.values():
        job.search.check(train)
    specs = spread_over_macs(job.search.space, job.search.limits, job.specs, job.search.search_seed)
    configurations = {
        name: [Configuration(spec=spec, train=train) for spec in specs]
        for name, train in fidelities.items()
    }
    source, *_ = [load_source(group[0]) for group in configurations.values()]
    with train_each(
        job.launch,
        configurations,
        source,
        job.trials,
        default_name=f"{Path(job.recipe).stem}-proxies",
    ) as (session, outcome):
        print(write(configurations, outcome.records, session.folder))
    return outcome.exit_code


def write(
    configurations: Mapping[str, Sequence[Configuration]],
    records: Sequence[Record],
    folder: Folder,
) -> str:
    """Writes `proxies.json` to the folder. Returns the table for the terminal."""
    by_key = {record.key: record for record in records}
    names = list(configurations)
    trained = [
        [by_key[each.key] for each in group]
        for group in zip(*configurations.values(), strict=True)
        if all(each.key in by_key and by_key[each.key].ranks for each in group)
    ]
    if len(trained) < 3:
        return "fewer than three architectures are trained in every way: go on with --resume"
    scores = {name: [each[i].top1 or 0.0 for each in trained] for i, name in enumerate(names)}
    seconds = {name: sum(each[i].seconds for each in trained) for i, name in enumerate(names)}
    specs = [each[0].configuration.spec for each in trained]
    scores |= {
        "MACs": [count_macs(s) for s in specs],
        "parameters": [count_params(s) for s in specs],
    }
    truth, *proxies = scores
    lines = [["ranked by", "tau (95 % interval)", "time", "top-1 %"]]
    results: dict[str, Any] = {"n": len(trained)}
    for name in proxies:
        tau = agreement(scores[name], scores[truth]).tau
        time = seconds[name] / seconds[truth] if name in seconds else 0.0
        mean = statistics.mean(scores[name])
        results[name] = {"tau": tau.model_dump(), "time": time, "scores": scores[name]}
        lines.append([name, str(tau), f"{time:.2f}", f"{mean:.2f}" if name in seconds else "-"])
    results[truth] = {"scores": scores[truth], "seconds": seconds[truth]}
    folder.write("proxies.json", json.dumps(results, indent=2).encode())
    mean, deviation = statistics.mean(scores[truth]), statistics.stdev(scores[truth])
    return (
        f"{len(trained)} architectures; the truth is their hold-out top-1, trained in full: mean "
        f"{mean:.2f} %, deviation {deviation:.2f}\n\n{aligned(lines)}"
    )


if __name__ == "__main__":
    command_line.run(ProxyStudy, work)
