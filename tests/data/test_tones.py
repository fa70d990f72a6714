"""Pictures of more than 8 bits and transparent ones are read by one rule for a whole data set."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from psvit_ray.data.images.decode import BadImage, Mode, convert, decode
from psvit_ray.data.images.options import parse_tone_range
from psvit_ray.data.images.tone_range import Tones
from psvit_ray.data.shards.settings import ShardSettings
from psvit_ray.data.shards.shard_file import contents
from psvit_ray.data.sources.load_data import read_data
from psvit_ray.data.sources.survey import survey
from psvit_ray.data.sources.unlabelled import read_unlabelled
from psvit_ray.data.tables import ArrayTable
from psvit_ray.export.model_folder import Transform
from psvit_ray.training.config import TrainConfig
from psvit_ray.training.state import run_info
from tests.helpers.pictures import COLOUR, GREY, MODES, encoded
from tests.helpers.stored import as_rows, load, write_parquet
from tests.helpers.training import configured_for

RAMP = np.tile(np.linspace(0, 1, 256), (16, 1))
"""Of 256 tones."""


def wide(high: float, low: float = 0.0, kind: str = "uint16") -> Image.Image:
    values = RAMP * (high - low) + low
    return Image.fromarray(values.astype(kind) if kind != "uint16" else values.round().astype(kind))


def tones_of(picture: Image.Image, tones: Tones | None = None) -> np.ndarray:
    return np.asarray(convert(picture, "L", tones=tones))


def folder_of(path: Path, **splits: list[Image.Image]) -> Path:
    """Two classes, of which each has all pictures of a split."""
    for split, pictures in splits.items():
        for name in "ab":
            (path / split / name).mkdir(parents=True)
            for number, picture in enumerate(pictures):
                kind = "tif" if picture.mode in "IF" else "png"
                picture.save(path / split / name / f"{number:02}.{kind}")
    return path


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("kind", ["uint16", "int32"])
@pytest.mark.parametrize("mode", MODES)
def test_integers_are_read_with_the_smallest_usual_depth_by_their_high_bits(
    bits: int, kind: str, mode: Mode
) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, (64, 64)).astype(kind)
    values[0, 0] = 2**bits - 1
    content = encoded(Image.fromarray(values), "TIFF")
    pixels = np.asarray(decode(content, mode)).reshape(64, 64, -1)
    assert (pixels == (values >> (bits - 8))[..., None]).all()


@pytest.mark.parametrize("limits", [(0, 1), (-1, 1), (0, 255)])
def test_floats_are_read_with_one_of_three_ranges(limits: tuple[int, int]) -> None:
    low, high = limits
    levels = np.linspace(0, 1, 64 * 64, dtype=np.float32).reshape(64, 64)
    content = encoded(Image.fromarray(levels * (high - low) + low), "TIFF")
    assert np.array_equal(np.asarray(decode(content, "L")), (levels * 255).round())


@pytest.mark.parametrize(
    "picture",
    [
        wide(3000, -1000, "int32"),
        wide(900_000, 70_000, "int32"),
        wide(4095, 300, "float32"),
        wide(1.5, 0, "float32"),
        wide(-5, -9, "float32"),
    ],
    ids=["CT", "above 16 bits", "12 bits as float", "a little above 1", "below 0"],
)
def test_a_picture_alone_has_its_own_range_where_no_usual_one_fits(picture: Image.Image) -> None:
    assert np.unique(tones_of(picture)).size > 250
    assert (tones_of(picture).min(), tones_of(picture).max()) == (0, 255)


def test_integers_of_any_range_are_cut_into_256_steps() -> None:
    values = np.arange(-1000, 3001, dtype=np.int32).reshape(1, -1)
    tones = tones_of(Image.fromarray(values), Tones(integers=(-1000, 3000)))
    assert np.array_equal(tones, (values + 1000) * 256 // 4001)
    assert tones_of(Image.new("I", (2, 2), 7)).tolist() == [[7, 7], [7, 7]]  # of 8 bits


def test_what_is_no_number_is_black_and_counts_for_nothing() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 0.5]], dtype=np.float32)
    assert tones_of(Image.fromarray(values)).tolist() == [[0, 255, 0, 128]]
    nothing = Image.fromarray(np.full((2, 2), np.nan, dtype=np.float32))
    assert not tones_of(nothing).any()


def test_a_picture_outside_the_range_is_refused_with_its_values() -> None:
    twelve = Tones(integers=(0, 4095))
    said = "^has values from 0 to 5,000, outside tone_range=0:4095$"
    for picture in (wide(5000), wide(5000, kind="int32")):
        with pytest.raises(BadImage, match=said):
            tones_of(picture, twelve)
    assert tones_of(wide(4095), twelve).max() == 255
    with pytest.raises(BadImage, match=r"^has values from -0\.5 to 1, outside tone_range=0:1$"):
        tones_of(wide(1, -0.5, "float32"), Tones())
    rounding = wide(1 + 1 / 520, -1 / 520, "float32")  # less than half a tone
    assert (tones_of(rounding, Tones()) == np.rint(np.asarray(rounding) * 255).clip(0, 255)).all()


def test_a_dark_picture_among_others_stays_dark(tmp_path: Path) -> None:
    data = folder_of(tmp_path, train=[wide(4095), *[wide(500)] * 7])
    source = load(data)
    assert source.tones == Tones(integers=(0, 4095))
    assert source.notes[-1] == (
        "16-bit pictures with values up to 4,095: read as 12 bits (tone_range 0:4095)"
    )
    preprocessing = run_info(configured_for(data, 2), source).preprocessing
    assert preprocessing.tones == source.tones
    dark = np.asarray(preprocessing.picture(encoded(wide(500))))[..., 0]
    assert np.array_equal(dark, np.asarray(wide(500)) >> 4)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_the_sample_is_of_the_whole_set_however_it_is_stored(tmp_path: Path, kind: str) -> None:
    plain = [COLOUR] * 40
    data = folder_of(tmp_path / "folder", train=[*plain, wide(1023), *plain, wide(4000)])
    if kind == "parquet":
        images, labels = as_rows(data / "train")
        write_parquet(tmp_path / "parquet" / "x.parquet", images, labels, row_group_size=41)
        data = tmp_path / "parquet"
    table = read_data(str(data)).train
    looked = survey(table)
    assert (looked.images, looked.floats, looked.transparent) == (64, None, 0)
    assert survey(table) == looked
    assert load(data).tones == Tones(integers=(0, 4095))  # of the last of all


def test_the_sample_of_several_tables_is_of_all_of_them(tmp_path: Path) -> None:
    pictures = [*[COLOUR] * 99, wide(4000)]
    data = folder_of(tmp_path, **{f"split{i}": [picture] for i, picture in enumerate(pictures)})
    parts = read_unlabelled([str(data / f"split{i}") for i in range(100)])
    looked = survey(*(part.table for part in parts))
    assert (looked.images, looked.integers) == (64, (0, 4000))
    first = survey(parts[0].table, parts[99].table)
    assert (first.images, first.integers) == (4, (0, 4000))


def test_ordinary_pictures_and_arrays_say_nothing(tmp_path: Path) -> None:
    data = folder_of(tmp_path, train=[COLOUR, GREY, COLOUR.convert("P"), COLOUR, GREY])
    source = load(data)
    assert source.tones == Tones()
    assert [note.partition(":")[0] for note in source.notes] == ["hold-out"]
    digits = read_data("digits").train
    assert isinstance(digits, ArrayTable)
    assert survey(digits).images == 0


def test_values_of_no_usual_range_are_refused_unless_one_is_given(tmp_path: Path) -> None:
    data = folder_of(tmp_path, train=[wide(3000, -1000, "int32")] * 8)
    said = "tone_range must be given, as 16-bit .* from -1,000 to 3,000, .* such as -1000:3000$"
    with pytest.raises(ValueError, match=said):
        load(data)
    source = load(data, tone_range="-1000:3000")
    assert source.tones == Tones(integers=(-1000, 3000), floats=(-1000, 3000))
    floats = folder_of(tmp_path / "floats", train=[wide(1.5, 0, "float32")] * 8)
    with pytest.raises(ValueError, match=r"floating-point pictures .* values from 0 to 1\.5,"):
        load(floats)


def test_splits_of_another_depth_are_read_as_those_trained_on_and_it_is_said(
    tmp_path: Path,
) -> None:
    data = folder_of(
        tmp_path, train=[wide(65535)] * 4, val=[wide(65535)] * 4, test=[wide(4095), GREY]
    )
    source = load(data)
    assert source.tones == Tones()
    assert source.notes == (
        "16-bit pictures with values up to 65,535: read as 16 bits (tone_range 0:65535)",
        "test: 16-bit pictures with values up to 4,095: read as 16 bits (tone_range 0:65535)",
    )


def test_a_new_picture_is_read_with_the_range_of_the_model(tmp_path: Path) -> None:
    data = folder_of(tmp_path, train=[wide(4095)] * 8)
    preprocessing = run_info(configured_for(data, 2), load(data)).preprocessing
    again = type(preprocessing).model_validate_json(preprocessing.model_dump_json())
    assert again == preprocessing
    transform = Transform(again.model_copy(update={"img_size": 16, "crop_pct": 1.0}))
    square = wide(1000).crop((0, 0, 16, 16))
    pixels = transform(square) * again.std[0] + again.mean[0]
    assert np.allclose(pixels[0].numpy() * 255, np.asarray(square) >> 4, atol=0.51)
    with pytest.raises(BadImage, match="outside tone_range=0:4095"):
        transform(wide(65535))


@pytest.mark.parametrize("text", ["4095", "5:5", "9:1", "0:nan", "0:inf", "a:b", "0:1:2"])
def test_a_range_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match=f"tone_range must be LOW:HIGH, .*'{text}'"):
        TrainConfig(tone_range=text)


def test_settings_of_pictures_at_their_defaults_rename_nothing() -> None:
    assert (
        configured_for(Path("digits"), 10).key
        == configured_for(Path("digits"), 10, background="white").key
    )
    assert TrainConfig(tone_range=" 0.0:4095.0").tone_range == "0:4095"
    assert parse_tone_range("-1000:3000") == (-1000, 3000)


ALPHA = np.asarray(GREY)
GROUNDS: Any = {"white": (255, 255, 255), "#102030": (16, 32, 48)}


def blended(alpha: np.ndarray, background: str) -> np.ndarray:
    """By arithmetic."""
    opacity = alpha[..., None] / 255
    return np.asarray(COLOUR) * opacity + np.array(GROUNDS[background]) * (1 - opacity)


@pytest.mark.parametrize("background", GROUNDS)
def test_transparent_pictures_are_put_on_the_background(background: str) -> None:
    clear = COLOUR.copy()
    clear.putalpha(GREY)
    for content in (encoded(clear), encoded(clear, "TIFF"), encoded(clear, "WEBP", lossless=True)):
        pixels = np.asarray(decode(content, "RGB", background=background)).astype(int)
        seen = blended(ALPHA, background)
        if Image.open(io.BytesIO(content)).format == "WEBP":  # keeps no colour where nothing shows
            seen[ALPHA == 0] = GROUNDS[background]
        assert np.abs(pixels - seen).max() <= 1
        grey = np.asarray(decode(content, "L", background=background))
        colour = decode(content, "RGB", background=background)
        assert np.array_equal(grey, np.asarray(colour.convert("L")))


@pytest.mark.parametrize("mode", MODES)
def test_black_glyphs_on_transparency_are_seen(mode: Mode) -> None:
    shape = np.zeros((64, 64, 4), np.uint8)
    shape[20:40, 20:40, 3] = 255
    glyph = Image.fromarray(shape)
    palette = Image.new("P", (64, 64), 1)
    palette.putpalette([0, 0, 0] * 2)
    palette.paste(0, (20, 20, 40, 40))
    contents = [
        encoded(glyph),
        encoded(glyph.convert("LA")),
        encoded(glyph, "TIFF"),
        encoded(palette, transparency=1),
        encoded(palette, "GIF", transparency=1),
        encoded(palette, transparency=bytes([255, 0])),
        encoded(Image.fromarray(255 - shape[..., 3]), transparency=255),
        encoded(Image.fromarray(np.where(shape[..., 3], 0, 9).astype(np.uint16)), transparency=9),
    ]
    expected = np.where(shape[..., 3], 0, 255)
    for content in contents:
        pixels = np.asarray(decode(content, mode)).reshape(64, 64, -1)
        assert (pixels == expected[..., None]).all()


@pytest.mark.parametrize("mode", MODES)
def test_an_opaque_alpha_changes_no_pixel(mode: Mode) -> None:
    opaque = COLOUR.convert("RGBA")
    expected = np.asarray(COLOUR.convert(mode))
    assert np.array_equal(np.asarray(decode(encoded(opaque), mode, background="red")), expected)
    grey = encoded(GREY.convert("LA"))
    assert np.array_equal(
        np.asarray(decode(grey, mode, background="red")), np.asarray(GREY.convert(mode))
    )


def test_transparency_and_its_background_are_said(tmp_path: Path) -> None:
    clear = COLOUR.copy()
    clear.putalpha(GREY)
    source = load(
        folder_of(tmp_path, train=[clear, clear, COLOUR.convert("RGBA"), COLOUR]),
        background="black",
    )
    said = "transparent pictures, 4 of 8 looked at: put on black (background)"
    assert source.notes[-1] == said
    configuration = configured_for(tmp_path, 2, background="black")
    preprocessing = run_info(configuration, source).preprocessing
    assert np.array_equal(
        np.asarray(preprocessing.picture(encoded(clear))),
        np.asarray(decode(encoded(clear), "RGB", background="black")),
    )


def test_a_background_that_is_no_colour_is_refused() -> None:
    said = "background must be a colour, by name or as #rrggbb, got 'whit'; nearest is 'white'"
    with pytest.raises(ValidationError, match=said):
        TrainConfig(background="whit")


def in_mode(mode: str) -> Image.Image:
    clear = COLOUR.copy()
    clear.putalpha(GREY)
    if mode == "La":
        return clear.convert("LA").convert("La")
    if mode == "PA":
        picture = COLOUR.quantize(16).convert("PA")
        picture.putalpha(GREY)
        return picture
    if mode == "I;16N":
        return Image.new(mode, (64, 64), 300)
    if mode[0] == "I" and mode != "I":
        return GREY.convert("I").convert(mode)
    if mode in "IF":
        return GREY.convert(mode)
    return (clear if mode in ("LA", "RGBA", "RGBa") else COLOUR).convert(mode)


@pytest.mark.parametrize(
    "mode",
    ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB"]
    + ["HSV", "I", "I;16", "I;16L", "I;16B", "I;16N", "F"],
)
def test_every_kind_of_picture_is_the_same_in_grey_as_in_colour(mode: str) -> None:
    picture = in_mode(mode)
    assert picture.mode == mode
    colour = convert(picture, "RGB")
    assert colour.mode == "RGB"
    assert np.array_equal(np.asarray(convert(picture, "L")), np.asarray(colour.convert("L")))
    if mode in ("RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
        assert np.abs(np.asarray(colour).astype(int) - np.asarray(COLOUR)).mean() < 6


def test_a_picture_made_smaller_keeps_its_bits_and_its_transparency(tmp_path: Path) -> None:
    clear = COLOUR.copy()
    clear.putalpha(GREY)
    pictures = [wide(4095), wide(4095, kind="int32"), wide(1, kind="float32"), clear]
    table = load(folder_of(tmp_path, train=[*pictures, COLOUR])).train
    settings = ShardSettings(resize_longer=32)
    for index, stored in contents(table, settings):
        given, smaller = (Image.open(io.BytesIO(file)) for file in (table.read(index), stored))  # type: ignore[arg-type]
        assert (smaller.mode, max(smaller.size)) == (given.mode, 32)
        expected = given.copy()
        gap = None if given.mode == "I;16" else 2.0
        expected.thumbnail((32, 32), Image.Resampling.LANCZOS, gap)
        assert np.array_equal(np.asarray(smaller), np.asarray(expected))
