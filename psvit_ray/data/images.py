"""From the bytes of a file to a picture of one or three channels of 8 bits.

Pixels are those of Pillow's `convert`, which ImageNet's recipes train on: transparency is dropped,
not blended, and colour profiles are not applied. Unlike `convert`, 16 bits are scaled (it would
turn all but the darkest 256 tones white), and pictures are turned upright as their EXIF says.
Of an animation it is the first frame.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

Mode = Literal["RGB", "L"]
Decoder = Literal["pil", "torchcodec"]

# Pillow knows more, but files from anywhere need not reach every decoder it has: EPS is a program.
Image.init()
FORMATS: list[str] = [
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
    if name in Image.OPEN  # a Pillow can be built without some
]

PILLOW_SAYS = {
    "truncated": "truncated",
    "but only got": "truncated",  # so many bytes
    "no more images in gif file": "truncated",  # not even the first
    "data stream": "broken data",
    "not identified by this driver": "zero size",
}

# Where nobody listens, Python would print what Pillow logs of broken files.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class BadImage(ValueError):
    """An image that cannot be used; the message is the reason."""


def decode(content: bytes, mode: Mode, decoder: Decoder = "pil") -> Image.Image:
    """The picture in a file, as this mode.

    Raises BadImage, whatever a broken file makes Pillow raise or warn of; ValueError where the
    decoder is not installed. `torchcodec` reads upright JPEG of three or one channel; the rest,
    and what it refuses, is Pillow's.
    """
    check_decoder(decoder)
    if not content:
        raise BadImage("empty")
    with _no_warnings(), as_bad_image(content):
        _check_crc(content)
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        if decoder == "torchcodec" and _suits_torchcodec(image):
            image = _by_torchcodec(content, image)
        return _converted(image, mode)


def converted(image: Image.Image, mode: Mode) -> Image.Image:
    """A picture of any kind as this mode, upright. Raises BadImage."""
    with _no_warnings(), as_bad_image():
        return _converted(image, mode)


def check_decoder(decoder: Decoder) -> None:
    """Raises ValueError where it is not installed."""
    if decoder == "torchcodec":
        try:
            importlib.import_module("torchcodec.decoders")
        except (ImportError, OSError, RuntimeError) as error:
            raise ValueError(
                "decoder must be installed: pip install torchcodec, or choose pil; got "
                f"'torchcodec' ({str(error).strip().splitlines()[0]})"
            ) from None


def _suits_torchcodec(header: Image.Image) -> bool:
    # Some versions of it turn pictures upright and some do not.
    return header.format == "JPEG" and header.mode in ("RGB", "L") and _orientation(header) == 1


def _by_torchcodec(content: bytes, header: Image.Image) -> Image.Image:
    from torchcodec.decoders import decode_jpeg

    try:
        pixels = decode_jpeg([content], mode="RGB" if header.mode == "RGB" else "GRAY")[0]  # CHW
    except RuntimeError:
        return header  # which Pillow reads, or says why not
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())


def _converted(image: Image.Image, mode: Mode) -> Image.Image:
    if 0 in image.size:
        raise BadImage("zero size")
    image.load()
    if _orientation(image) != 1:  # `exif_transpose` copies even what is upright
        image = ImageOps.exif_transpose(image)
    if image.mode[0] in "IF":
        image = Image.fromarray(_in_8_bits(np.asarray(image)))
    return image if image.mode == mode else image.convert(mode)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF makes Pillow raise almost anything; the pixels are good
        return 1


def _in_8_bits(tones: np.ndarray) -> np.ndarray:
    """Grey of 16 bits, also as int32, by its high byte, as Pillow reads 16-bit colour. Grey as
    float is in 0 to 1 if all of it is, otherwise in 0 to 255."""
    if tones.dtype.kind != "f":
        return (tones.clip(0, 0xFFFF) >> 8).astype(np.uint8)
    tones = np.nan_to_num(tones)
    if tones.min() >= 0 and tones.max() <= 1:
        tones = tones * 255
    return tones.clip(0, 255).round().astype(np.uint8)


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Pillow's own, such as of half a decompression bomb, which it decodes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


@contextlib.contextmanager
def as_bad_image(content: bytes = b"") -> Iterator[None]:
    """Whatever is raised becomes BadImage: on a broken file, Pillow knows OSError, SyntaxError,
    struct.error and more."""
    try:
        yield
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(_reason(error, content)) from None


def _check_crc(content: bytes) -> None:
    """Of a PNG, whose pixels Pillow takes without checking. Raises BadImage."""
    if not content.startswith(b"\x89PNG"):
        return
    at, view = 8, memoryview(content)
    while at + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        end = at + 8 + length
        crc = view[end : end + 4]
        if len(crc) == 4 and zlib.crc32(view[at + 4 : end]) != int.from_bytes(crc):
            raise BadImage("bad CRC")
        if kind == b"IEND":
            return
        at = end + 4


def _reason(error: Exception, content: bytes) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"decompression bomb: more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    if isinstance(error, Image.UnidentifiedImageError):
        return _refusal(content)
    return _in_short(error)


def _refusal(content: bytes) -> str:
    """What the one format that knows the first bytes says of the rest, which Pillow keeps to
    itself."""
    for factory, accept in map(Image.OPEN.__getitem__, FORMATS):
        if accept and accept(content[:16]) is True:
            try:
                factory(io.BytesIO(content), "")
            except Exception as error:
                return "truncated" if len(content) <= 16 else _in_short(error)
    return "not an image"


def _in_short(error: Exception) -> str:
    said = " ".join(str(error).split())
    ends = (IndexError, EOFError, struct.error)
    if isinstance(error, ends) or isinstance(error.__cause__, ends):
        return "truncated"
    for pillow, ours in PILLOW_SAYS.items():
        if pillow in said.lower():
            return ours
    return f"cannot be decoded: {said or type(error).__name__}"[:100]
