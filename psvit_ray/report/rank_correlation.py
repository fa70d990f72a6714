"""Rank correlation of a score with the truth."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import ConstantInputWarning, kendalltau, spearmanr

from psvit_ray.arch.spec import Value

RESAMPLES = 1_000


class Estimate(Value):
    """A value with its 95 % bootstrap interval over the ranked items."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


class RankAgreement(Value):
    """Agreement of two rankings."""

    tau: Estimate
    """Kendall's tau-b: 1 for the same order, 0 for none in common, -1 for the reverse."""
    rho: Estimate
    """Spearman's rank correlation."""
    top: Estimate
    """Fraction of the best quarter of one ranking that is in the best quarter of the other."""
    n: int


def agreement(scores: ArrayLike, truth: ArrayLike, *, seed: int = 0) -> RankAgreement:
    """Agreement of the ranking by `scores` with that by `truth`, (n,) each; `seed` draws the
    bootstrap.

    Raises ValueError for fewer than three values, or where all scores or all truths are equal:
    nothing is ranked.
    """
    scored, true = _check_scores(scores, truth)
    return RankAgreement(
        tau=_estimate(_tau, scored, true, seed),
        rho=_estimate(lambda a, b: float(spearmanr(a, b).statistic), scored, true, seed),
        top=_estimate(_overlap, scored, true, seed),
        n=len(scored),
    )


def tau(scores: ArrayLike, truth: ArrayLike) -> float:
    """Kendall's tau-b without its interval. Raises ValueError as `agreement` does."""
    return _tau(*_check_scores(scores, truth))


def _tau(scored: np.ndarray, true: np.ndarray) -> float:
    return float(kendalltau(scored, true).statistic)


def _estimate(
    of: Callable[[np.ndarray, np.ndarray], float], scored: np.ndarray, true: np.ndarray, seed: int
) -> Estimate:
    drawn = np.random.default_rng(seed).integers(len(scored), size=(RESAMPLES, len(scored)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        values = [of(scored[rows], true[rows]) for rows in drawn]
    low, high = np.nanpercentile(values, [2.5, 97.5])  # a draw of one thing alone ranks nothing
    return Estimate(value=of(scored, true), low=float(low), high=float(high))


def _overlap(scored: np.ndarray, true: np.ndarray) -> float:
    best = max(1, round(len(scored) / 4))
    # What was drawn more than once counts as often: places, not values, are compared.
    first, second = (set(np.argsort(-each, kind="stable")[:best]) for each in (scored, true))
    return len(first & second) / best


def _check_scores(scores: ArrayLike, truth: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    scored, true = np.asarray(scores, dtype=float), np.asarray(truth, dtype=float)
    if len(scored) < 3 or np.ptp(scored) == 0 or np.ptp(true) == 0:
        raise ValueError(f"scores must be three or more that differ, got {len(scored)}")
    return scored, true
