"""A one-shot search: one set of weights is trained for the whole space, specs are scored with it,
and the best are trained on their own."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from psvit_ray.arch.cost import count_macs, count_params
from psvit_ray.arch.parts import cover
from psvit_ray.arch.spec import ArchSpec, Value
from psvit_ray.model.latency import LatencyTable
from psvit_ray.search.candidates import baselines, first_points
from psvit_ray.search.config import SearchConfig
from psvit_ray.search.oneshot.evolution import CostLimits, Evolution, Sampler
from psvit_ray.search.oneshot.scores import Score, rank_scores
from psvit_ray.search.record import Kind
from psvit_ray.storage import files
from psvit_ray.storage.folder import Folder
from psvit_ray.training.config import (
    BatchSize,
    Configuration,
    Epochs,
    NonNegativeCount,
    NumWorkers,
    PathConfig,
    PositiveNumber,
    Repeats,
    Runs,
    SupernetConfig,
    TrainConfig,
)
from psvit_ray.training.paths import PathSampler

EXPECTED_TOP1 = 90.0
COARSE = 1.0  # points of standard error from which on a hold-out is said to be small


class OneshotConfig(Value):
    """A one-shot search, with `--strategy oneshot`."""

    supernet_epochs: Epochs = 100
    """Epochs of the supernet; what else its training is stands with the recipe's."""
    supernet_workers: NumWorkers = 1
    """Workers that train it."""
    paths: PathConfig = PathConfig()
    candidates: Runs = 1000
    """Specs that are scored with its weights."""
    population: Annotated[Runs, Field(ge=2)] = 50
    """Specs of a generation."""
    sampler: Sampler = "nsga2"
    """How candidates are chosen: evolution, or chance alone as its control."""
    cost: Literal["macs", "params", "latency"] = "macs"
    """What evolution keeps low beside top-1 up."""
    max_latency_ms: PositiveNumber | None = None
    """Most milliseconds of a forward pass of `latency_batch_size` images, as a table predicts."""
    latency_batch_size: BatchSize = 1
    """Images whose time is taken together."""
    latency_table: str = ""
    """Table that jobs/latency.py wrote for the space; by default one is measured first, on a
    worker's device."""
    finalists: Repeats = 3
    """Best candidates that are then trained from scratch, with the DeiT of equal cost."""
    finalist_seeds: Repeats = 3
    """Trainings of each."""
    finetune_epochs: NonNegativeCount | None = None
    """Epochs of the finalists' trainings that start from the supernet's weights; by default as many
    as from scratch, 0 leaves them out."""
    finetune_lr: PositiveNumber | None = None
    """Their peak learning rate; by default a quarter of that from scratch."""

    def check(self, search: SearchConfig, train: TrainConfig) -> None:
        """Raises ValueError for what cannot work, as far as no latency has to be measured."""
        self.supernet(search, train)
        if self.asks_for_latency and self.latency_table:
            self.evolution(search, self.given_table(search).predict)
        else:
            self.model_copy(update={"cost": "macs"}).evolution(search, None)

    def given_table(self, search: SearchConfig) -> LatencyTable:
        """That of `latency_table`. Raises ValueError where it is none, or of another space."""
        where = Folder.at(self.latency_table)
        above, name = files.parent(where)
        content = above.read(name)
        if content is None:
            raise ValueError(f"latency_table must be a file of jobs/latency.py, got {where}")
        try:
            table = LatencyTable.model_validate_json(content)
        except ValidationError as error:
            raise ValueError(
                f"latency_table must be a file of jobs/latency.py, got {where}: "
                f"{error.errors()[0]['msg']}"
            ) from None
        for spec in cover(search.space, 1, seed=0):
            table.predict(spec)
        size = table.conditions.batch_size
        if size != self.latency_batch_size:
            raise ValueError(
                f"latency_batch_size must be {size}, as in {where}, got {self.latency_batch_size}"
            )
        return table

    def supernet(self, search: SearchConfig, train: TrainConfig) -> Configuration:
        """How the supernet is trained. Its largest spec is the one that its curve shows.

        Raises ValueError for settings that it cannot be trained with.
        """
        epochs = self.supernet_epochs
        changed = {
            "epochs": epochs,
            "warmup_epochs": min(train.warmup_epochs, epochs / 2),
            "compile": False,  # every spec would be compiled anew
        }
        config = SupernetConfig(space=search.space, limits=search.limits, paths=self.paths)
        return Configuration(
            spec=PathSampler(config, train.seed).largest,
            train=TrainConfig.model_validate({**dict(train), **changed}),
            supernet=config,
        )

    def evolution(
        self,
        search: SearchConfig,
        latency_ms: Callable[[ArchSpec], float] | None,
        first: Sequence[ArchSpec] = (),
    ) -> Evolution:
        """`first` are among the first generation, beside large specs that share nothing or in
        pairs.

        Raises ValueError for limits that nothing meets, and for a population of more than do.
        """
        costs: dict[str, Callable[[ArchSpec], float] | None] = {
            "macs": count_macs,
            "params": count_params,
            "latency": latency_ms,
        }
        cost_of = costs[self.cost]
        assert cost_of, "a search by latency has a table"
        return Evolution(
            search.space,
            CostLimits(search.limits, latency_ms, self.max_latency_ms),
            cost_of=cost_of,
            population=self.population,
            seed=search.search_seed,
            first=[*large_specs(search), *first],
            sampler=self.sampler,
        )

    @property
    def asks_for_latency(self) -> bool:
        return self.cost == "latency" or self.max_latency_ms is not None


def large_specs(search: SearchConfig) -> list[ArchSpec]:
    """For each pooling kind those that share nothing, and those that share in pairs."""
    return first_points(search.space, search.limits, random.Random(search.search_seed))


def best_scored_specs(scores: Sequence[Score], number: int) -> list[ArchSpec]:
    return [score.spec for score in rank_scores(scores)[:number]]


def finalist_configurations(
    config: OneshotConfig,
    search: SearchConfig,
    train: TrainConfig,
    specs: Sequence[ArchSpec],
    inherited: Mapping[ArchSpec, str],
) -> tuple[list[Configuration], dict[str, Kind]]:
    """What is trained in the end, seed by seed, and its kinds by key: the specs from scratch and
    from the weights that are `inherited` (folders), and DeiTs within the same limits."""
    finetuned = {
        "epochs": config.finetune_epochs or train.epochs,
        "lr": config.finetune_lr or train.lr / 4,
    }
    if config.finetune_epochs:
        finetuned["warmup_epochs"] = min(train.warmup_epochs, config.finetune_epochs / 2)
    finetuned["min_lr"] = min(train.min_lr, finetuned["lr"])
    deits = baselines(search.space, search.limits, search.baselines)
    trainings: dict[str, tuple[Configuration, Kind]] = {}

    def add(spec: ArchSpec, kind: Kind, **changes: object) -> None:
        configuration = Configuration(
            spec=spec, train=TrainConfig.model_validate({**dict(train), **changes})
        )
        trainings.setdefault(configuration.key, (configuration, kind))

    for seed in range(train.seed, train.seed + config.finalist_seeds):
        for spec in deits:
            add(spec, "baseline", seed=seed)
        for spec in specs:
            add(spec, "finalist", seed=seed)
            if config.finetune_epochs != 0:
                add(spec, "finetuned", seed=seed, init=inherited[spec], **finetuned)
    return [configuration for configuration, _ in trainings.values()], {
        key: kind for key, (_, kind) in trainings.items()
    }


def standard_error(holdout: int, top1: float = EXPECTED_TOP1) -> float:
    """Of a top-1 on so many images, in points."""
    return math.sqrt(top1 * (100 - top1) / holdout)


def holdout_size_warning(holdout: int) -> str:
    """What a user should know of a hold-out of so many images; empty where it is large enough."""
    error = standard_error(holdout)
    if error < COARSE:
        return ""
    return (
        f"the hold-out has {holdout:,} images: a top-1 near {EXPECTED_TOP1:g} % has a standard "
        f"error of {error:.2g} points, and candidates closer than that are not told apart; a "
        "larger --holdout tells more"
    )
