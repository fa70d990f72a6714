"""Comparison of a search's winner with DeiT: test errors over seeds, costs, speed on this
machine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from psvit_ray.arch.cost import count_macs, count_params
from psvit_ray.model.timing import images_per_second
from psvit_ray.report.summary import aligned
from psvit_ray.search.oneshot.finalists import SeedMean
from psvit_ray.search.record import Record, best, best_deit
from psvit_ray.storage.folder import Folder
from psvit_ray.training.config import Configuration
from psvit_ray.training.results import RANKING
from psvit_ray.training.state import build_model

TIMED_BATCH = 64


def pair(
    search: Sequence[Record], baseline_search: Sequence[Record], *, max_macs: float | None = None
) -> dict[str, Record]:
    """The best DeiT of one search, and the best PSViT of another: both within a budget of
    `max_macs`, or the PSViT at no more MACs than the DeiT has.

    Raises ValueError if either is missing.
    """
    deit = best_deit(baseline_search, max_macs=math.inf if max_macs is None else max_macs)
    if deit is None:
        within = "" if max_macs is None else f" with at most {max_macs:,.0f} MACs"
        raise ValueError(f"baseline_search has no DeiT that was trained in full{within}")
    psvits = [record for record in search if not record.is_deit]
    limit, owner = (deit.macs, " of the best DeiT") if max_macs is None else (max_macs, "")
    winner = best(psvits, max_macs=limit)
    if winner is None:
        raise ValueError(
            f"search has no PSViT trained in full with at most {limit:,.0f} MACs{owner}; search "
            "again with --max-gmacs, or compare within a budget by --budget-gmacs"
        )
    return {"PSViT": winner, "DeiT": deit}


def write(
    pairs: Mapping[str, Sequence[Configuration]], records: Iterable[Record], folder: Folder
) -> str:
    """Writes `comparison.json` to the folder. Returns the table for the terminal."""
    by_key = {record.key: record for record in records}
    correct = {}
    metric_values: dict[str, list[float | None]] = {}
    for name, seeds in pairs.items():
        tested = [
            by_key[configuration.key] for configuration in seeds if configuration.key in by_key
        ]
        metric_values[name] = [record.test_value for record in tested]
        if len(tested) < len(seeds) or any(not record.test_correct for record in tested):
            return f"{name} is not trained with all {len(seeds)} seeds yet: go on with --resume"
        correct[name] = np.array([[c == "1" for c in record.test_correct] for record in tested])

    speed = images_per_second(
        {name: build_model(seeds[0]) for name, seeds in pairs.items()}, shape=_shape(pairs)
    )
    results: dict[str, Any] = {}
    for name, seeds in pairs.items():
        errors = 100 - 100 * correct[name].mean(axis=1)
        spec, train = seeds[0].spec, seeds[0].train
        results[name] = {
            "pattern": spec.pattern,
            "patch_size": spec.patch_size,
            "embed_dims": [stage.embed_dim for stage in spec.stages],
            "lr": train.lr,
            "mmacs": count_macs(spec) / 1e6,
            "params_k": count_params(spec) / 1e3,
            "img_per_s": speed[name],
            "test_errors": errors.tolist(),
            "test_error": errors.mean(),
            "test_error_std": errors.std(ddof=1) if len(errors) > 1 else 0.0,
        }
        mean = SeedMean.of(metric_values[name])
        if train.metric != "top1" and mean:
            results[name] |= {
                "metric": train.metric,
                f"test_{train.metric}s": metric_values[name],
                f"test_{train.metric}": mean.mean,
                f"test_{train.metric}_std": mean.sd or 0.0,
            }
    table = _table(results)
    results["error_ratio"] = error_ratio(correct["PSViT"], correct["DeiT"])
    folder.write("comparison.json", json.dumps(results, indent=2, allow_nan=False).encode())
    return f"{table}\n\n{_ratio_line(results['error_ratio'], *correct['DeiT'].shape)}"


def error_ratio(winner: np.ndarray, baseline: np.ndarray) -> dict[str, float | None] | None:
    """Ratio of the winner's errors to the baseline's: `mean` and its interval from `low` to `high`
    (see `error_ratio_interval`). `high` is None where the interval has no bound; the whole ratio is
    None where the baseline makes no error.

    Args:
        winner: (seeds, images) bool, True where an image is classified correctly.
        baseline: The same of the baseline, with the same seeds and images.
    """
    if baseline.all():
        return None
    low, high = error_ratio_interval(winner, baseline)
    mean = float((~winner).sum() / (~baseline).sum())
    return {"mean": mean, "low": low, "high": high if math.isfinite(high) else None}


def _ratio_line(ratio: Mapping[str, float | None] | None, num_seeds: int, num_images: int) -> str:
    images = f"{num_images:,} test images and {num_seeds} seeds"
    if ratio is None:
        return f"DeiT makes no error on {images}: too few to compare errors"
    high = "no bound" if ratio["high"] is None else f"{ratio['high']:.2f}"
    return (
        f"PSViT makes {ratio['mean']:.2f} of DeiT's errors (95 % interval {ratio['low']:.2f} to "
        f"{high}, paired over {images})"
    )


def _table(results: Mapping[str, Mapping[str, Any]]) -> str:
    heading = "pattern", "patch", "widths", "lr", "MMACs", "k params", "images/s", "test error %"
    metrics = [RANKING[result["metric"]] for result in results.values() if "metric" in result]
    lines = [["", *heading, *(f"test {metric.label}" for metric in metrics[:1])]]
    for name, result in results.items():
        lines.append(
            [
                name,
                result["pattern"],
                str(result["patch_size"]),
                "|".join(map(str, result["embed_dims"])),
                f"{result['lr']:g}",
                f"{result['mmacs']:.3f}",
                f"{result['params_k']:.1f}",
                f"{result['img_per_s']:.0f}",
                f"{result['test_error']:.2f} ± {result['test_error_std']:.2f}",
                *(
                    f"{metric.number(result[f'test_{metric.name}'])} ± "
                    f"{metric.number(result[f'test_{metric.name}_std'])}"
                    for metric in metrics[:1]
                ),
            ]
        )
    return aligned(lines)


def error_ratio_interval(
    winner: np.ndarray, baseline: np.ndarray, *, seed: int = 0, resamples: int = 10_000
) -> tuple[float, float]:
    """95 % bootstrap interval of the ratio of the winner's errors to the baseline's, from (seeds,
    images) bool that are True where an image is classified correctly.

    Seeds and images are drawn again together for both, so that what is hard for both does not widen
    the interval. Where the baseline makes no error in more than a 40th of the draws, it has no
    upper bound: infinity. Draws in which neither makes an error count as a ratio of 1.
    """
    rng = np.random.default_rng(seed)
    seeds, images = winner.shape
    ratios = np.empty(resamples)
    for i in range(resamples):
        # Drawing images with replacement is weighing them by a multinomial.
        weights = rng.multinomial(images, np.full(images, 1 / images))
        rows = rng.integers(seeds, size=seeds)
        wrong = [(~each[rows] @ weights).sum() for each in (winner, baseline)]
        ratios[i] = wrong[0] / wrong[1] if wrong[1] else np.inf if wrong[0] else 1.0
    # Without interpolation, which knows no infinity.
    low, high = np.percentile(ratios, [2.5, 97.5], method="inverted_cdf")
    return float(low), float(high)


def _shape(pairs: Mapping[str, Sequence[Configuration]]) -> tuple[int, int, int, int]:
    spec = next(iter(pairs.values()))[0].spec
    return TIMED_BATCH, spec.in_chans, spec.img_size, spec.img_size
