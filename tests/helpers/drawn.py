"""Drawn images to learn from: textured shapes in any colour, place, size and turn, on a noisy
ground. The class is the shape and its texture, so that neither colour nor brightness tells it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SHAPES = ("triangle", "square", "disc", "star", "ring")
TEXTURES = ("dotted", "striped", "plain")
CLASS_NAMES = tuple(f"{texture}-{shape}" for texture in TEXTURES for shape in SHAPES)


def drawn(class_name: str, number: int, *, size: int = 64, seed: int = 0) -> Image.Image:
    """An RGB picture of `size` by `size` pixels: a function of these arguments alone."""
    texture, shape = class_name.split("-")
    rng = np.random.default_rng([seed, CLASS_NAMES.index(class_name), number])
    ground = rng.integers(0, 256, 3)
    bright = (ground + rng.integers(70, 186, 3)) % 256  # differs from the ground in every channel
    dark = bright if texture == "plain" else (bright + 128) % 256
    inside = np.where(_pattern(texture, size, rng), bright, dark)
    pixels = np.where(_mask(shape, size, rng), inside, ground)
    noisy = pixels + rng.normal(0, 12, pixels.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def drawn_folder(
    path: Path,
    *,
    classes: int = 10,
    per_class: int = 20,
    size: int = 64,
    seed: int = 0,
    splits: Mapping[str, int] | None = None,
    suffix: str = ".png",
) -> Path:
    """A folder of class folders or, where `splits` says how many images of each class go into
    `train`, `val` and so on, of splits that hold them. No picture is in two. Returns `path`."""
    start = 0
    for split, count in (splits or {"": per_class}).items():
        for class_name in CLASS_NAMES[:classes]:
            folder = path / split / class_name
            folder.mkdir(parents=True)
            for number in range(start, start + count):
                picture = drawn(class_name, number, size=size, seed=seed)
                picture.save(folder / f"{number:05}{suffix}")
        start += count
    return path


def _pattern(texture: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 1) bool: stripes in any direction, or dots on a turned grid."""
    turn, phase, width = rng.uniform(0, np.pi), rng.uniform(0, 6, 2), rng.uniform(5, 8)
    y, x = np.mgrid[:size, :size]
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    waves = np.cos(2 * np.pi * (along + phase[0]) / width)
    if texture == "dotted":
        waves = waves + np.cos(2 * np.pi * (across + phase[1]) / width) - 0.8
    return (waves > 0)[..., None]


def _mask(shape: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size, 1) bool: where the shape is."""
    radius = size * rng.uniform(0.28, 0.45)
    center = rng.uniform(radius, size - radius, 2)
    corners = {"triangle": 3, "square": 4, "star": 10}.get(shape, 60)
    angles = rng.uniform(0, 2 * np.pi) + np.arange(corners) * 2 * np.pi / corners
    radii = np.where(np.arange(corners) % 2, 0.45, 1.0) if shape == "star" else np.ones(corners)
    outline = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None] * radius
    picture = Image.new("1", (size, size))
    draw = ImageDraw.Draw(picture)
    draw.polygon([tuple(point) for point in (center + outline).tolist()], fill=1)
    if shape == "ring":
        draw.polygon([tuple(point) for point in (center + outline / 2).tolist()], fill=0)
    return np.asarray(picture)[..., None]
