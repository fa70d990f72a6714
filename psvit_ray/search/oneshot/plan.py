"""The plan of a one-shot search: a supernet with one set of weights is trained for the whole space,
specs are scored with it, and the best are trained on their own."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence

from pydantic import ValidationError

from psvit_ray.arch.cost import count_macs, count_params
from psvit_ray.arch.latency import LatencyTable
from psvit_ray.arch.parts import cover
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.search.candidates import baselines, first_points
from psvit_ray.search.config import SearchConfig
from psvit_ray.search.oneshot.config import OneshotConfig
from psvit_ray.search.oneshot.evolution import CostLimits, Evolution
from psvit_ray.search.oneshot.scores import Score, rank_scores
from psvit_ray.search.record import Kind
from psvit_ray.storage import files
from psvit_ray.storage.folder import Folder
from psvit_ray.training.config import (
    Configuration,
    SupernetConfig,
    TrainConfig,
)
from psvit_ray.training.paths import PathSampler

EXPECTED_TOP1 = 90.0
COARSE = 1.0  # points of standard error from which on a hold-out is said to be small


def check_oneshot(config: OneshotConfig, search: SearchConfig, train: TrainConfig) -> None:
    """Raises ValueError for settings that cannot work, as far as that is known without measuring a
    latency."""
    supernet_configuration(config, search, train)
    if config.asks_for_latency and config.latency_table:
        make_evolution(config, search, read_latency_table(config, search).predict)
    else:
        make_evolution(config.model_copy(update={"cost": "macs"}), search, None)


def read_latency_table(config: OneshotConfig, search: SearchConfig) -> LatencyTable:
    """The latency table that `latency_table` names. Raises ValueError where it is no table, or of
    another space."""
    where = Folder.at(config.latency_table)
    above, name = files.parent(where)
    content = above.read(name)
    if content is None:
        raise ValueError(f"latency_table must be a file of psvit latency, got {where}")
    try:
        table = LatencyTable.model_validate_json(content)
    except ValidationError as error:
        raise ValueError(
            f"latency_table must be a file of psvit latency, got {where}: "
            f"{error.errors()[0]['msg']}"
        ) from None
    for spec in cover(search.space, 1, seed=0):
        table.predict(spec)
    size = table.conditions.batch_size
    if size != config.latency_batch_size:
        raise ValueError(
            f"latency_batch_size must be {size}, as in {where}, got {config.latency_batch_size}"
        )
    return table


def supernet_configuration(
    config: OneshotConfig, search: SearchConfig, train: TrainConfig
) -> Configuration:
    """The configuration of the supernet's training, whose spec is the largest: the curve is of that
    subnet.

    Raises ValueError for settings that a supernet cannot be trained with.
    """
    epochs = config.supernet_epochs
    changed = {
        "epochs": epochs,
        "warmup_epochs": min(train.warmup_epochs, epochs / 2),
        "compile": False,  # every spec would be compiled anew
    }
    supernet = SupernetConfig(space=search.space, limits=search.limits, paths=config.paths)
    return Configuration(
        spec=PathSampler(supernet, train.seed).largest,
        train=TrainConfig.model_validate({**dict(train), **changed}),
        supernet=supernet,
    )


def make_evolution(
    config: OneshotConfig,
    search: SearchConfig,
    latency_ms: Callable[[ArchSpec], float] | None,
    first: Sequence[ArchSpec] = (),
) -> Evolution:
    """The evolution that proposes candidates.

    Args:
        search: Space, limits and seed.
        latency_ms: Predicted latency of a spec in milliseconds; None in a search without latency.
        first: Specs for the first generation, beside large specs that share nothing or in pairs.

    Raises ValueError for limits that no spec meets, and for a population larger than the number of
    specs that do.
    """
    costs: dict[str, Callable[[ArchSpec], float] | None] = {
        "macs": count_macs,
        "params": count_params,
        "latency": latency_ms,
    }
    cost_of = costs[config.cost]
    assert cost_of, "a search by latency has a table"
    return Evolution(
        search.space,
        CostLimits(search.limits, latency_ms, config.max_latency_ms),
        cost_of=cost_of,
        population=config.population,
        seed=search.search_seed,
        first=[*large_specs(search), *first],
        sampler=config.candidate_sampler,
    )


def large_specs(search: SearchConfig) -> list[ArchSpec]:
    """Large specs of each pooling kind: one that shares nothing, one that shares in pairs."""
    return first_points(search.space, search.limits, random.Random(search.search_seed))


def best_scored_specs(scores: Sequence[Score], number: int) -> list[ArchSpec]:
    """The `number` specs with the best scores, the best first."""
    return [score.spec for score in rank_scores(scores)[:number]]


def finalist_configurations(
    config: OneshotConfig,
    search: SearchConfig,
    train: TrainConfig,
    specs: Sequence[ArchSpec],
    inherited: Mapping[ArchSpec, str],
) -> tuple[list[Configuration], dict[str, Kind]]:
    """Configurations of the final trainings, seed by seed, and their kinds by key.

    They are the specs from scratch and from the weights that are `inherited` (exported folders),
    and DeiTs within the same limits.
    """
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
    """Standard error, in points, of a top-1 in percent on `holdout` images."""
    return math.sqrt(top1 * (100 - top1) / holdout)


def holdout_size_warning(holdout: int) -> str:
    """Warning about a hold-out of so few images that candidates are not told apart; empty where it
    is large enough."""
    error = standard_error(holdout)
    if error < COARSE:
        return ""
    return (
        f"the hold-out has {holdout:,} images: a top-1 near {EXPECTED_TOP1:g} % has a standard "
        f"error of {error:.2g} points, and candidates closer than that are not told apart; a "
        "larger --holdout tells more"
    )
