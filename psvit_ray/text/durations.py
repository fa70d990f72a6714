"""Durations as a user reads them."""

from __future__ import annotations


def time_left(elapsed_s: float, *, done: float, remaining: float) -> str:
    """Estimate of the time until the `remaining` pieces of work are done, at the mean speed of the
    `done` ones, which took `elapsed_s` seconds; `done` is more than 0."""
    minutes, seconds = divmod(round(elapsed_s / done * remaining), 60)
    return f"{minutes} min {seconds:02} s left"
