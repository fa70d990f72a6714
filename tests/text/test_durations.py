"""Durations as a user reads them."""

from __future__ import annotations

from psvit_ray.text.durations import duration, time_left


def test_what_remains_takes_as_long_for_each_piece_as_what_is_done() -> None:
    assert time_left(60.0, done=4, remaining=9) == "2 min 15 s left"
    assert time_left(0.5, done=100, remaining=1_000) == "5 s left"
    assert time_left(3600.0, done=1, remaining=0) == "0 s left"


def test_a_duration_has_the_units_that_it_needs() -> None:
    assert [duration(s) for s in (0.4, 59.4, 59.6, 185, 3599.7, 7_805, 360_000)] == [
        "0 s",
        "59 s",
        "1 min 00 s",
        "3 min 05 s",
        "1 h 00 min",
        "2 h 10 min",
        "100 h 00 min",
    ]
