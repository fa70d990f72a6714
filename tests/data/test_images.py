"""Odd pictures give Pillow's pixels, broken ones their reason; neither a warning nor a crash."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from psvit_ray.data.images.decode import BadImage, Mode, check_decoder, convert, decode
from tests.helpers.pictures import (
    BAD,
    COLOUR,
    FRAMES,
    GREY,
    JPEG,
    MODES,
    ODD,
    encoded,
    exif,
)

TONES = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


CLEAR = ("palette with transparency", "RGBA", "grey with alpha")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [kind for kind in ODD if kind not in CLEAR])
def test_an_odd_picture_has_the_pixels_of_pillows_conversion(kind: str, mode: Mode) -> None:
    picture = decode(ODD[kind], mode)
    expected = Image.open(io.BytesIO(ODD[kind])).convert("RGB").convert(mode)
    assert picture.mode == mode
    assert np.array_equal(np.asarray(picture), np.asarray(expected))


def test_the_first_frame_is_taken() -> None:
    for kind in ("animated WebP", "animated PNG"):
        assert np.array_equal(np.asarray(decode(ODD[kind], "RGB")), np.asarray(FRAMES[0]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_upright(orientation: int) -> None:
    wide = COLOUR.resize((64, 40))
    content = encoded(wide, "JPEG", exif=exif(orientation))
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    picture = decode(content, "RGB")
    assert picture.size == ((64, 40) if orientation < 5 else (40, 64))
    assert np.array_equal(np.asarray(picture), np.asarray(turned))
    assert ExifTags.Base.Orientation not in picture.getexif() or orientation == 1


def test_broken_exif_does_not_cost_the_picture() -> None:
    content = encoded(COLOUR, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12garbage")
    expected = Image.open(io.BytesIO(encoded(COLOUR, "JPEG")))
    assert np.array_equal(np.asarray(decode(content, "RGB")), np.asarray(expected))


def netpbm(most: int, tones: np.ndarray) -> bytes:
    return b"P5 64 64 %d\n" % most + tones.astype(">u2").tobytes()


@pytest.mark.parametrize(
    "content",
    [
        encoded(Image.fromarray(TONES)),
        encoded(Image.fromarray(TONES), "TIFF"),
        encoded(Image.fromarray(TONES.astype(np.int32)), "TIFF"),
        netpbm(65535, TONES),
    ],
    ids=["PNG", "TIFF", "TIFF of 32 bits", "PGM"],
)
@pytest.mark.parametrize("mode", MODES)
def test_sixteen_bits_are_scaled_not_cut_off(content: bytes, mode: Mode) -> None:
    pixels = np.asarray(decode(content, mode)).reshape(64, 64, -1)
    assert np.array_equal(pixels, np.repeat((TONES >> 8)[..., None], pixels.shape[-1], axis=2))


def test_converting_leaves_the_picture_that_was_given_as_it_is() -> None:
    turned = Image.open(io.BytesIO(encoded(COLOUR.resize((64, 40)), "JPEG", exif=exif(6))))
    assert convert(turned, "L").size == (40, 64)
    assert (turned.size, turned.mode) == ((64, 40), "RGB")
    assert convert(COLOUR, "RGB") is COLOUR


@pytest.mark.parametrize("decoder", ["pil", "torchcodec"])
@pytest.mark.parametrize("kind", BAD)
def test_a_broken_file_is_refused_with_its_reason(kind: str, decoder: Any) -> None:
    if decoder == "torchcodec":
        needs_torchcodec()
    content, reason = BAD[kind]
    with pytest.raises(BadImage) as caught:
        decode(content, "RGB", decoder)
    assert str(caught.value) == reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_a_damaged_file_gives_a_picture_or_a_reason_and_nothing_else(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    content, rng = encoded(COLOUR, kind), np.random.default_rng(0)
    for number in range(200):
        damaged = bytearray(content)
        for at in rng.integers(0, min(len(content), 200 if number % 2 else len(content)), 3):
            damaged[at] = rng.integers(256)
        try:
            said = decode(bytes(damaged), "RGB").mode
        except BadImage as error:
            said = str(error)
        assert 0 < len(said.splitlines()[0]) == len(said) <= 100
    assert capfd.readouterr() == ("", "")


@pytest.mark.processes
def test_what_pillow_logs_of_a_broken_file_is_not_printed(tmp_path: Path) -> None:
    content = encoded(COLOUR, "TIFF")
    samples_per_pixel = struct.pack("<HHI", 277, 3, 1)
    assert samples_per_pixel in content
    at = content.index(samples_per_pixel) + len(samples_per_pixel)
    (tmp_path / "x.tif").write_bytes(content[:at] + struct.pack("<H", 6000) + content[at + 2 :])
    code = """import pathlib, sys
from psvit_ray.data.images.decode import BadImage, decode
try:
    decode(pathlib.Path(sys.argv[1]).read_bytes(), "RGB")
except BadImage as error:
    print(error)"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.tif")], capture_output=True, text=True
    )
    said = "cannot be decoded: Invalid value for samples per pixel"
    assert (done.stdout.strip(), done.stderr) == (said, "")


def test_a_picture_without_pixels_is_refused() -> None:
    with pytest.raises(BadImage, match="zero size"):
        convert(Image.new("RGB", (0, 5)), "RGB")


def needs_torchcodec() -> None:
    try:
        check_decoder("torchcodec")
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("orientation", [1, 6])
def test_torchcodec_gives_the_same_pixels(
    monkeypatch: pytest.MonkeyPatch, orientation: int, mode: Mode
) -> None:
    needs_torchcodec()
    from torchcodec import decoders

    used: list[bytes] = []
    real = decoders.decode_jpeg

    def watched(content: list[bytes], **settings: Any) -> Any:
        used.extend(content)
        return real(content, **settings)

    monkeypatch.setattr(decoders, "decode_jpeg", watched)
    for picture in (COLOUR, GREY, COLOUR.convert("CMYK")):
        content = encoded(picture.resize((63, 41)), "JPEG", exif=exif(orientation))
        ours, theirs = decode(content, mode, "torchcodec"), decode(content, mode)
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    assert len(used) == (2 if orientation == 1 else 0)  # of CMYK and what is turned it sees none


def test_a_decoder_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)  # as if it were not there
    said = "^decoder must be installed: pip install torchcodec, or choose pil; got 'torchcodec'"
    with pytest.raises(ValueError, match=said):
        check_decoder("torchcodec")
    with pytest.raises(ValueError, match=said):
        decode(JPEG, "RGB", "torchcodec")
    assert decode(JPEG, "RGB").size == (64, 64)
