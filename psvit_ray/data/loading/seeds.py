"""Seeds from numbers: a function of a run's seed, its step and more, so that nothing of a generator
needs saving."""

from __future__ import annotations

import numpy as np


def mix_seed(*parts: int) -> int:
    """A seed from several numbers, such as (seed, step, rank), without correlation to others."""
    value = 0
    for part in parts:  # splitmix64, Steele et al. 2014
        value = (value + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value


def mix_seeds(seed: int, numbers: np.ndarray) -> np.ndarray:
    """`mix_seed(seed, number)` for each of `numbers`, as int64 of 63 bits."""
    value = np.uint64(mix_seed(seed)) + numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((value ^ (value >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)
