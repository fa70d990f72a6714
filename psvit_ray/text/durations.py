"""Durations as a user reads them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A duration in the two largest units that it has: 48 s, 3 min 05 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def time_left(elapsed_s: float, *, done: float, remaining: float) -> str:
    """Estimate of the time until the `remaining` pieces of work are done, at the mean speed of the
    `done` ones, which took `elapsed_s` seconds; `done` is more than 0."""
    return f"{duration(elapsed_s / done * remaining)} left"
