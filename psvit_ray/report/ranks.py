"""How well one score ranks as another does."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import kendalltau

from psvit_ray.arch.spec import Value

RESAMPLES = 1_000


class RankCorrelation(Value):
    """Kendall's tau-b: 1 for the same order, 0 for none in common, -1 for the reverse."""

    tau: float
    low: float
    """Of the 95 % bootstrap interval over the things ranked."""
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.tau:.2f} ({self.low:.2f} to {self.high:.2f})"


def rank_correlation(scores: ArrayLike, truth: ArrayLike, *, seed: int = 0) -> RankCorrelation:
    """Raises ValueError for fewer than three, or where all of a kind are equal: nothing is
    ranked."""
    ours, theirs = np.asarray(scores, dtype=float), np.asarray(truth, dtype=float)
    if len(ours) < 3 or np.ptp(ours) == 0 or np.ptp(theirs) == 0:
        raise ValueError(f"scores must be three or more that differ, got {len(ours)}")
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(ours), size=(RESAMPLES, len(ours)))
    taus = [kendalltau(ours[rows], theirs[rows]).statistic for rows in drawn]
    low, high = np.nanpercentile(taus, [2.5, 97.5])  # a draw of one thing alone ranks nothing
    tau = kendalltau(ours, theirs).statistic
    return RankCorrelation(tau=float(tau), low=float(low), high=float(high), n=len(ours))
