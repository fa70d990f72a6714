"""How pictures look by a sample: what a search derives from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from psvit_ray.data.images.tone_range import DEFAULT_TONES
from psvit_ray.data.sources.appearance import Appearance, appearance
from psvit_ray.data.sources.load_data import read_data


def look(folder: Path) -> Appearance:
    return appearance(read_data(str(folder)).train, "photos", DEFAULT_TONES)


def in_classes(folder: Path, *pictures: Image.Image, suffix: str = "png") -> Path:
    for number, picture in enumerate(pictures):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        picture.save(folder / "ab"[number % 2] / f"{number}.{suffix}")
    return folder


def test_size_colour_mean_and_deviation_are_those_of_the_pictures(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = [(20, 50), (64, 30), (40, 40)]
    pixels = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in sizes]
    found = look(in_classes(tmp_path / "photos", *map(Image.fromarray, pixels)))
    assert (found.pictures, found.short_side, found.in_chans) == (3, 30, 3)
    means = np.mean([each.mean(axis=(0, 1)) / 255 for each in pixels], axis=0)
    squares = np.mean([((each / 255) ** 2).mean(axis=(0, 1)) for each in pixels], axis=0)
    assert found.mean == pytest.approx(means, abs=6e-4)
    assert found.std == pytest.approx(np.sqrt(squares - means**2), abs=6e-4)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("RGB", "png"), ("RGB", "jpg"), ("I;16", "png")]
)
def test_grey_pictures_have_one_channel_however_they_are_stored(
    mode: str, suffix: str, tmp_path: Path
) -> None:
    ramp = np.linspace(0, 255, 48 * 48).reshape(48, 48).astype(np.uint8)
    grey = Image.fromarray(ramp)
    if mode == "I;16":
        grey = Image.fromarray(ramp.astype(np.uint16) * 257)
    elif mode == "RGB":
        grey = grey.convert("RGB")
    found = look(in_classes(tmp_path / "photos", grey, grey, suffix=suffix))
    assert found.in_chans == len(found.mean) == len(found.std) == 1
    assert found.mean == pytest.approx((ramp.mean() / 255,), abs=0.004)


def test_a_picture_in_colour_among_grey_ones_makes_three_channels(tmp_path: Path) -> None:
    grey, red = Image.new("L", (40, 40), 90), Image.new("RGB", (40, 40), "red")
    found = look(in_classes(tmp_path / "photos", grey, grey, grey, red))
    assert (found.in_chans, len(found.mean)) == (3, 3)


def test_pictures_of_one_colour_have_a_deviation_to_divide_by(tmp_path: Path) -> None:
    black = Image.new("RGB", (40, 40))
    assert look(in_classes(tmp_path / "photos", black, black)).std == (0.01,)


def test_broken_files_are_passed_over_and_a_large_jpeg_counts_at_its_full_size(
    tmp_path: Path,
) -> None:
    folder = in_classes(tmp_path / "photos", *[Image.new("RGB", (1200, 900))] * 4, suffix="jpg")
    (folder / "a" / "broken.jpg").write_bytes((folder / "a" / "0.jpg").read_bytes()[:100])
    found = look(folder)
    assert (found.pictures, found.short_side) == (4, 900)


def test_data_of_broken_files_alone_is_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="must have pictures that can be read, got none"):
        look(tmp_path)
