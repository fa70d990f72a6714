"""What one picture takes of a process is bounded by its own pixels and by what is made of it, and
small files that would take more are refused before they are decoded."""

from __future__ import annotations

import io
import random
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from psvit_ray.data.images import limits
from psvit_ray.data.images.decode import BadImage, decode
from psvit_ray.data.loading.augmentation import Augmentation
from psvit_ray.data.loading.transforms import Preprocessing, seed_generators, train_transform
from psvit_ray.data.shards.settings import ShardSettings
from psvit_ray.data.shards.shard_file import contents
from tests.helpers.pictures import COLOUR, JPEG, encoded, exif, png
from tests.helpers.stored import load

SMALL = Preprocessing(img_size=32, in_chans=3, mean=(0.5,) * 3, std=(0.5,) * 3)
CROP_MODES: Any = ("center", "rrc", "rkrc", "rkrr")


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def timms(preprocessing: Preprocessing, crop_mode: Any) -> Any:
    """The transform without what is ours."""
    ours: Any = train_transform(Augmentation(train_crop_mode=crop_mode), preprocessing)
    return type(ours)([each for each in ours.transforms if type(each).__name__ != "Shortened"])


@pytest.mark.parametrize("crop_mode", CROP_MODES)
def test_ordinary_pictures_are_cut_as_timm_cuts_them(crop_mode: Any) -> None:
    ours = train_transform(Augmentation(train_crop_mode=crop_mode), SMALL)
    theirs = timms(SMALL, crop_mode)
    sizes = [(64, 48), (20, 20), (31, 496), (496, 31), (7, 100), (300, 36), (5, 4)]
    sizes += [(640, 37), (1000, 200)] if crop_mode in ("center", "rrc") else []
    for number, size in enumerate(sizes):
        for transform in (ours, theirs):
            seed_generators(number)
            pixels = transform(noise(*size))
            if transform is ours:
                expected = pixels
        assert torch.equal(pixels, expected), size


@pytest.mark.parametrize("crop_mode", ["center", "rrc"])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_narrow_picture_is_cut_as_if_it_were_enlarged_whole(crop_mode: Any, width: int) -> None:
    """Its scale is a whole number here: of others, the last bit of a tone may differ."""
    ours = train_transform(Augmentation(train_crop_mode=crop_mode), SMALL)
    theirs = timms(SMALL, crop_mode)
    for seed, length in enumerate((299, 300, 301, 302)):
        for size in ((width, length), (length, width)):
            results = []
            for transform in (ours, theirs):
                seed_generators(seed)
                results.append(transform(noise(*size)))
            assert torch.equal(*results), size


def test_the_middle_of_a_narrow_picture_is_its_middle_at_any_scale() -> None:
    transform = train_transform(Augmentation(train_crop_mode="rkrc"), SMALL)
    levels = np.tile(np.linspace(0, 255, 600).astype(np.uint8)[:, None, None], (1, 2, 3))
    for seed in range(100):
        seed_generators(seed)
        assert abs(transform(Image.fromarray(levels)).float().mean().item() - 127.5) < 1


def test_a_random_place_of_a_narrow_picture_is_anywhere_in_it() -> None:
    transform = train_transform(Augmentation(train_crop_mode="rkrr"), SMALL)
    levels = np.tile(np.linspace(0, 255, 600).astype(np.uint8)[:, None, None], (1, 2, 3))
    seen = []
    for seed in range(200):
        seed_generators(seed)
        seen.append(transform(Image.fromarray(levels)).float().mean().item())
    assert min(seen) < 40
    assert max(seen) > 215


@pytest.mark.parametrize("crop_mode", CROP_MODES)
@pytest.mark.parametrize("size", [(1, 65_500), (65_500, 1), (3, 65_500)])
def test_the_narrowest_jpeg_takes_little(crop_mode: Any, size: tuple[int, int]) -> None:
    preprocessing = SMALL.model_copy(update={"img_size": 224})
    picture = decode(encoded(Image.new("RGB", size, "red"), "JPEG"), "RGB")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(5):
        random.seed(seed)
        for transform in (
            train_transform(Augmentation(train_crop_mode=crop_mode), preprocessing),
            preprocessing.transform(),
        ):
            assert (transform(picture).float().mean(dim=(1, 2)).round().tolist()) == [254, 0, 0]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_narrow_picture_is_made_no_narrower_than_a_pixel(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(4):
            file = encoded(Image.new("RGB", (65_500, 1)), "JPEG")
            (tmp_path / name / f"{number}.jpg").write_bytes(file)
    for _, stored in contents(load(tmp_path).train, ShardSettings(resize_longer=512)):
        assert isinstance(stored, bytes)
        assert Image.open(io.BytesIO(stored)).size == (512, 1)


def test_a_picture_of_more_pixels_is_refused_and_a_jpeg_is_halved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = "^too large: 64,016,001 pixels, of at most 64,000,000 in such a file$"
    with pytest.raises(BadImage, match=said):
        decode(png(8001, 8001, zlib.compress(b"")), "RGB")
    with pytest.raises(BadImage, match=r"^too large: a side of 1,000,001 pixels"):
        decode(png(1_000_001, 1, zlib.compress(b"")), "RGB")
    wide = encoded(COLOUR.resize((60, 40)), "JPEG", exif=exif(6))
    monkeypatch.setattr(limits, "MAX_PIXELS", 60 * 40)
    assert decode(wide, "RGB").size == (40, 60)
    monkeypatch.setattr(limits, "MAX_PIXELS", 60 * 40 - 1)
    halved = Image.open(io.BytesIO(wide))
    halved.draft(None, (30, 20))
    expected = halved.transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(np.asarray(decode(wide, "RGB")), np.asarray(expected))


def test_a_jpeg_in_scans_is_not_halved_as_that_would_not_help(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = encoded(COLOUR, "JPEG", progressive=True)
    assert decode(content, "RGB").size == (64, 64)
    monkeypatch.setattr(limits, "MAX_PIXELS_IN_SCANS", 64 * 64 - 1)
    assert decode(JPEG, "RGB").size == (64, 64)
    with pytest.raises(BadImage, match=r"^too large: 4,096 pixels, of at most 4,095"):
        decode(content, "RGB")


@pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow without JPEG 2000")
def test_a_jpeg_2000_is_read_at_the_size_that_its_time_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content = encoded(noise(64, 64), "JPEG2000")
    assert np.array_equal(np.asarray(decode(content, "RGB")), np.asarray(noise(64, 64)))
    monkeypatch.setattr(limits, "JPEG2000_PIXELS", 64 * 64 // 4)
    assert decode(content, "RGB").size == (32, 32)
    monkeypatch.setattr(limits, "JPEG2000_BYTES", len(content) // 16 + 1)
    assert decode(content, "RGB").size == (16, 16)


def directory(entries: int, size: int, order: str = "<") -> bytes:
    """A directory of TIFF whose entries all name the same bytes."""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "L", 8)
    place = 8 + 2 + 12 * entries + 4
    rows = [struct.pack(order + "HHLL", 40_000 + n, 1, size, place) for n in range(entries)]
    return b"".join([head, struct.pack(order + "H", entries), *rows, bytes(4), bytes(size)])


def tiff(**tags: int) -> bytes:
    """A small one, some of whose tags are changed."""
    numbers = {"width": 256, "length": 257, "tile_width": 322, "tile_length": 323}
    entries = {256: 1, 257: 1, 258: 8, 259: 8, 262: 1, 277: 1, 322: 16, 323: 16, 324: 0, 325: 0}
    entries |= {numbers[name]: value for name, value in tags.items()}
    data = zlib.compress(bytes(256))
    entries[324], entries[325] = 8 + 2 + 12 * len(entries) + 4, len(data)
    rows = [struct.pack("<HHLL", tag, 4, 1, value) for tag, value in sorted(entries.items())]
    return b"".join([b"II*\0\x08\0\0\0", struct.pack("<H", len(rows)), *rows, bytes(4), data])


def with_chunk(content: bytes, kind: bytes, data: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return content[:33] + struct.pack(">I", len(data)) + kind + data + crc + content[33:]


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def bmp_in_runs(width: int, height: int) -> bytes:
    """Whose pixels are one jump up by 255 rows."""
    pixels = b"\0\2\0\xff\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    start = 14 + len(header) + 1024
    size = struct.pack("<IHHI", start + len(pixels), 0, 0, start)
    return b"BM" + size + header + bytes(1024) + pixels


SCAN = JPEG[JPEG.index(b"\xff\xda") :]
PROGRESSIVE = encoded(COLOUR, "JPEG", progressive=True)
LAST = PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]
EXIF = directory(20_000, 240_000)
GREEDY = {
    "JPEG whose scans go over it again and again": (
        PROGRESSIVE[:-2] + 200 * LAST + b"\xff\xd9",
        "JPEG of more than 100 scans",
    ),
    "JPEG of padding": (
        b"\xff\xd8" + b"\xff" * 200_000 + JPEG[2:],
        "JPEG of more than 100,000 segments before its picture",
    ),
    "TIFF directory": (
        directory(20_000, 1_000_000),
        "TIFF directory that names the same bytes again and again",
    ),
    "TIFF directory, the other way round": (
        directory(20_000, 1_000_000, ">"),
        "TIFF directory that names the same bytes again and again",
    ),
    "EXIF of a JPEG in pieces": (
        JPEG[:2]
        + b"".join(
            segment(0xE1, b"Exif\0\0" + EXIF[at : at + 65_000])
            for at in range(0, len(EXIF), 65_000)
        )
        + JPEG[2:],
        "TIFF directory that names the same bytes again and again",
    ),
    "TIFF of strips": (
        b"II*\0\x08\0\0\0" + struct.pack("<HHHLL", 1, 273, 4, 200_000, 26) + bytes(800_004),
        "TIFF of more than 100,000 strips",
    ),
    "TIFF of one pixel in a tile": (
        tiff(tile_width=32_000, tile_length=32_000),
        "too large: 1,024,000,000 pixels, of at most 64,000,000 in such a file",
    ),
    "BMP in runs": (
        bmp_in_runs(1_000_000, 5),
        "too large: 5,000,000 pixels, of at most 4,500,000 in such a file",
    ),
    "PPM of odd tones": (
        b"P6 3000 3000 100\n" + bytes(27_000_000),
        "too large: 9,000,000 pixels, of at most 4,500,000 in such a file",
    ),
    "GIF of a comment": (
        encoded(COLOUR.convert("L"), "GIF", comment=bytes(2_000_000)),
        "GIF with more than 1,000,000 bytes before its picture",
    ),
    "PNG of text": (
        with_chunk(encoded(COLOUR), b"zTXt", b"x\0\0" + zlib.compress(bytes(100_000_000))),
        "cannot be decoded: Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK",
    ),
}


@pytest.mark.parametrize("kind", GREEDY)
def test_a_file_that_would_take_much_is_refused_before(kind: str) -> None:
    content, reason = GREEDY[kind]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadImage) as caught:
        decode(content, "RGB")
    assert str(caught.value) == reason
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_what_is_like_them_and_small_is_read() -> None:
    assert decode(tiff(), "L").size == (1, 1)
    assert decode(PROGRESSIVE[:-2] + 50 * LAST + b"\xff\xd9", "RGB").size == (64, 64)
    assert decode(b"P6 2 2 100\n" + bytes([100] * 12), "L").getextrema() == (255, 255)
    comment = encoded(COLOUR.convert("L"), "GIF", comment=bytes(900_000))
    assert decode(comment, "RGB").size == (64, 64)
    greedy = with_chunk(encoded(COLOUR), b"eXIf", EXIF)
    assert np.array_equal(np.asarray(decode(greedy, "RGB")), np.asarray(COLOUR))


LARGE = {
    "P": ((8000, 8000), "PNG", {"compress_level": 1, "transparency": 0}),
    "F": ((8000, 8000), "TIFF", {"compression": "tiff_adobe_deflate"}),
    "RGB": ((5600, 5600), "WEBP", {"method": 0, "lossless": True, "quality": 0}),
}
WRITES = f"""import sys
from PIL import Image
for mode, (size, kind, settings) in {LARGE}.items():
    Image.new(mode, size).save(sys.argv[1] + "/" + mode, kind, **settings)
"""
READS = """import pathlib, re, sys
from psvit_ray.data.images.decode import decode
for path in pathlib.Path(sys.argv[1]).iterdir():
    size = decode(path.read_bytes(), "RGB").size
    status = pathlib.Path("/proc/self/status").read_text()
    print(path.name, *size, re.search("VmHWM: *([0-9]+)", status.replace(chr(9), " "))[1])
"""


@pytest.mark.processes
def test_the_largest_pictures_take_less_than_a_gigabyte(tmp_path: Path) -> None:
    for code in (WRITES, READS):
        command = [sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    read = {line.split()[0]: [*map(int, line.split()[1:])] for line in done.stdout.splitlines()}
    assert {mode: tuple(size) for mode, (*size, _) in read.items()} == {
        mode: size for mode, (size, _, _) in LARGE.items()
    }
    assert max(peak for *_, peak in read.values()) < 1_000_000, read  # KiB
