"""Pictures in memory: good, odd and broken ones."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from psvit_ray.data.images.decode import Mode
from tests.helpers.drawn import drawn

COLOUR = drawn("striped-star", 0)
GREY = COLOUR.convert("L")
MODES: tuple[Mode, ...] = ("RGB", "L")
FRAMES = [drawn("plain-disc", number) for number in range(3)]
TRANSPARENT = COLOUR.copy()
TRANSPARENT.putalpha(GREY)
PALETTE = COLOUR.quantize(64)
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def encoded(image: Image.Image, kind: str = "PNG", **settings: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = orientation
    return tags


def png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def flipped(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 0xFF
    return bytes(changed)


ODD = {
    "grey": encoded(GREY, "JPEG"),
    "CMYK": encoded(COLOUR.convert("CMYK"), "JPEG"),
    "palette": encoded(PALETTE),
    "palette with transparency": encoded(PALETTE, transparency=bytes(range(0, 256, 4))),
    "RGBA": encoded(TRANSPARENT),
    "grey with alpha": encoded(TRANSPARENT.convert("LA")),
    "black and white": encoded(GREY.convert("1")),
    "animated GIF": encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]),
    "animated WebP": encoded(
        FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:], lossless=True
    ),
    "animated PNG": encoded(FRAMES[0], save_all=True, append_images=FRAMES[1:]),
    "TIFF": encoded(COLOUR, "TIFF"),
    "progressive": encoded(COLOUR, "JPEG", progressive=True),
}


JPEG, PNG = encoded(COLOUR, "JPEG"), encoded(COLOUR)
BAD = {
    "empty": (b"", "empty"),
    "a page": (b"<html>404 Not Found</html>" * 10, "not an image"),
    "zeros": (bytes(1000), "not an image"),
    "a program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "truncated"),
    "a JPEG short of its end": (JPEG[:-20], "truncated"),
    "part of a JPEG's header": (JPEG[:100], "truncated"),
    "the first bytes of a JPEG": (JPEG[:3], "truncated"),
    "half a PNG": (PNG[: len(PNG) // 2], "truncated"),
    "part of a PNG's header": (PNG[:20], "truncated"),
    "half a GIF": (encoded(COLOUR, "GIF")[:900], "truncated"),
    "half a TIFF": (encoded(COLOUR, "TIFF")[:500], "truncated"),
    "half a BMP": (encoded(COLOUR, "BMP")[:500], "truncated"),
    "a flipped bit in a PNG's header": (flipped(PNG, 20), "bad CRC"),
    "a flipped bit in a PNG's pixels": (flipped(PNG, len(PNG) // 2), "bad CRC"),
    "a flipped bit in a PNG's CRC": (flipped(PNG, len(PNG) - 14), "bad CRC"),
    "a PNG of garbage": (png(8, 8, b"garbage"), "broken data"),
    "a PNG without width": (png(0, 8, zlib.compress(bytes(8))), "zero size"),
    "400 megapixels": (
        png(20_000, 20_000, zlib.compress(b"")),
        "decompression bomb: more than 178,956,970 pixels",
    ),
    "half a WebP": (
        encoded(COLOUR, "WEBP")[:300],
        "cannot be decoded: could not create decoder object",
    ),
}


class Pictures:
    """Pictures that are drawn when they are asked for."""

    def __init__(self, number: int, mode: str = "RGB") -> None:
        self.labels = np.arange(number, dtype=np.int64) % 10
        self.blocks: np.ndarray | None = None
        self._mode = mode

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        pixels = np.random.default_rng(index).integers(0, 256, (5, 7, 3), dtype=np.uint8)
        return Image.fromarray(pixels).resize((70, 50), Image.Resampling.BILINEAR).convert("RGB")

    def place(self, index: int) -> tuple[str, str]:
        return "drawn", str(index)

    def take(self, indices: np.ndarray) -> Any:
        raise NotImplementedError
