"""Progress of long work, a line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from psvit_ray.text.durations import time_left

SAY_EVERY_S = 10.0

Piece = TypeVar("Piece")


def print_line(line: str) -> None:
    """Prints a line at once."""
    print(line, flush=True)


def with_progress(
    pieces: Iterable[Piece],
    total: int,
    *,
    size: Callable[[Piece], int] = lambda _: 1,
    every_s: float = SAY_EVERY_S,
    say: Callable[[str], None] = print_line,
) -> Iterator[Piece]:
    """Yields `pieces` as they are, and prints progress every `every_s` seconds.

    Args:
        total: Number of images in all pieces.
        size: Number of images in a piece.
    """
    began = last_line_at = time.monotonic()
    images = 0
    for piece in pieces:
        yield piece
        images += size(piece)
        now = time.monotonic()
        if now - last_line_at >= every_s and images < total:
            last_line_at = now
            elapsed_s = max(now - began, 1e-9)
            left = time_left(elapsed_s, done=images, remaining=total - images)
            say(f"{images:,} of {total:,} images, {images / elapsed_s:,.0f} images/s, {left}")
