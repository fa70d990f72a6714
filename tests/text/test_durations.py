"""Durations as a user reads them."""

from __future__ import annotations

from psvit_ray.text.durations import time_left


def test_what_remains_takes_as_long_for_each_piece_as_what_is_done() -> None:
    assert time_left(60.0, done=4, remaining=9) == "2 min 15 s left"
    assert time_left(0.5, done=100, remaining=1_000) == "0 min 05 s left"
    assert time_left(3600.0, done=1, remaining=0) == "0 min 00 s left"
