"""Decoding of image files to Pillow images of one or three channels of 8 bits.

Pixels are those of Pillow's `convert`, which ImageNet's recipes train on; colour profiles are not
applied. Unlike with `convert`, more than 8 bits are scaled (it would turn all but the darkest 256
tones white), transparent images are put on a background, grey is computed from the colour image,
and images are turned upright by their EXIF orientation. Of an animation the first frame is taken.
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
from PIL import ExifTags, Image

from psvit_ray.data.images import limits
from psvit_ray.data.images.bad_image import BadImage
from psvit_ray.data.images.options import BACKGROUND, Decoder, format_tone_range
from psvit_ray.data.images.tone_range import (
    STRIP_PIXELS,
    Tones,
    covers,
    extremes,
    in_8_bits,
    own_range,
)

Mode = Literal["RGB", "L"]
GREY_MODES = ("1", "L", "LA")
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transpositions that turn an image upright, by EXIF orientation."""

# Pillow knows more, but files from anywhere need not reach every decoder it has: EPS is a program.
Image.init()
FORMATS: list[str] = [
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
    if name in Image.OPEN  # a Pillow can be built without some
]

PILLOW_MESSAGES = {
    "truncated": "truncated",
    "but only got": "truncated",  # so many bytes
    "no more images in gif file": "truncated",  # not even the first
    "data stream": "broken data",
    "not identified by this driver": "zero size",
}

# Where nobody listens, Python would print what Pillow logs of broken files.
logging.getLogger("PIL").addHandler(logging.NullHandler())


def decode(
    content: bytes,
    mode: Mode,
    decoder: Decoder = "pil",
    *,
    tones: Tones | None = None,
    background: str = BACKGROUND,
) -> Image.Image:
    """Decodes an image file to an image of this mode.

    Args:
        content: Bytes of the file.
        mode: Pillow's mode of the result.
        decoder: Library that decodes: `torchcodec` reads upright JPEG of three or one channel; all
            else, and what it refuses, is decoded by Pillow.
        tones: Ranges of the data set that the image belongs to; without them the image is scaled
            by its own values.
        background: Colour behind transparent images, by any name that Pillow knows.

    Decoding takes less than a gigabyte of memory: files of more than `limits.MAX_BYTES` and images
    of more than `limits.MAX_PIXELS` (fewer in some formats) are refused; a larger JPEG is decoded
    at half its size, up to twice Pillow's MAX_IMAGE_PIXELS.

    Raises BadImage for all that Pillow raises or warns of, and ValueError if the decoder is not
    installed.
    """
    check_decoder(decoder)
    with _no_warnings(), as_bad_image(content):
        return _converted(_read_image(content, decoder), mode, tones, background)


def open_picture(content: bytes) -> Image.Image:
    """The decoded image in a file, upright and with all its bits and channels. Raises BadImage."""
    with _no_warnings(), as_bad_image(content):
        return _upright(_open_checked(content))


def open_header(content: bytes) -> Image.Image:
    """The image in a file with its header read, and not decoded. Raises BadImage."""
    with _no_warnings(), as_bad_image(content):
        return _open_checked(content)


def convert(
    image: Image.Image, mode: Mode, *, tones: Tones | None = None, background: str = BACKGROUND
) -> Image.Image:
    """An image of any kind, converted to this mode and upright; `tones` and `background` as in
    `decode`. Raises BadImage."""
    with _no_warnings(), as_bad_image():
        return _converted(image, mode, tones, background)


def check_decoder(decoder: Decoder) -> None:
    """Raises ValueError if the decoder is not installed."""
    if decoder == "torchcodec":
        try:
            importlib.import_module("torchcodec.decoders")
        except (ImportError, OSError, RuntimeError) as error:
            raise ValueError(
                "decoder must be installed: pip install torchcodec, or choose pil; got "
                f"'torchcodec' ({str(error).strip().splitlines()[0]})"
            ) from None


def is_wide(image: Image.Image) -> bool:
    """Whether an image has more than 8 bits, as modes I, I;16 and F."""
    return image.mode[0] in "IF"


def is_transparent(image: Image.Image) -> bool:
    """Whether any pixel of a decoded image is transparent."""
    if not image.has_transparency_data:
        return False
    if is_wide(image):
        return bool((np.asarray(image) == image.info["transparency"]).any())
    if image.mode in ("LA", "RGBA"):
        return image.getextrema()[-1] != (255, 255)
    return any(alpha.getextrema() != (255, 255) for _, alpha in _strips_with_alpha(image))


def _open_checked(content: bytes) -> Image.Image:
    """The image in a file with its header read, if that is within the limits. Raises BadImage."""
    if not content:
        raise BadImage("empty")
    limits.check_content(content)
    _check_crc(content)
    return limits.bounded(Image.open(io.BytesIO(content), formats=FORMATS), content)


def _read_image(content: bytes, decoder: Decoder) -> Image.Image:
    image = _open_checked(content)
    if decoder == "torchcodec" and _suits_torchcodec(image):
        return _by_torchcodec(content, image)
    return image


def _suits_torchcodec(header: Image.Image) -> bool:
    # Some versions of it turn pictures upright and some do not.
    return (
        header.format == "JPEG"
        and header.mode in ("RGB", "L")
        and not header.decoderconfig  # type: ignore[attr-defined]  # of a JPEG read at half its size
        and _orientation(header) == 1
    )


def _by_torchcodec(content: bytes, header: Image.Image) -> Image.Image:
    from torchcodec.decoders import decode_jpeg

    try:
        pixels = decode_jpeg([content], mode="RGB" if header.mode == "RGB" else "GRAY")[0]  # CHW
    except RuntimeError:
        return header  # which Pillow reads, or says why not
    return Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy())


def _upright(image: Image.Image) -> Image.Image:
    """The decoded image, turned upright by its EXIF orientation. Raises BadImage."""
    if 0 in image.size:
        raise BadImage("zero size")
    image.load()
    turn = TURNS.get(_orientation(image))
    if turn is None:
        return image
    turned = image.transpose(turn)
    for name in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"):
        turned.info.pop(name, None)
    return turned


def _converted(image: Image.Image, mode: Mode, tones: Tones | None, background: str) -> Image.Image:
    image = _upright(image)
    if image.mode == "La":
        image = image.convert("LA")  # the only mode that Pillow converts La to
    if is_wide(image):
        image = _in_8_bits(image, tones, background)
    elif is_transparent(image):
        image = _on_background(image, background)
    elif mode == "L" and image.mode not in GREY_MODES:
        image = image.convert("RGB")  # grey of RGB: Pillow has none of LAB, and another of others
    return image if image.mode == mode else image.convert(mode)


def _orientation(image: Image.Image) -> int:
    try:
        if exif := image.info.get("exif"):
            limits.check_exif(exif)
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF makes Pillow raise almost anything; the pixels are good
        return 1


def _in_8_bits(image: Image.Image, tones: Tones | None, background: str) -> Image.Image:
    values = np.asarray(image)
    limits = own_range(values) if tones is None else tones.range_of(values)
    low, high = extremes(values) or limits
    if not covers(limits, low, high, floats=values.dtype.kind == "f"):
        raise BadImage(
            f"has values from {low:,.6g} to {high:,.6g}, outside "
            f"tone_range={format_tone_range(limits)}"
        )
    grey = Image.fromarray(in_8_bits(values, limits))
    if not is_transparent(image):
        return grey
    whole = Image.new("RGB", image.size, background)
    seen = Image.fromarray(values != image.info["transparency"])
    whole.paste(grey.convert("RGB"), mask=seen)
    return whole


def _on_background(image: Image.Image, background: str) -> Image.Image:
    whole = Image.new("RGB", image.size, background)
    top = 0
    for strip, alpha in _strips_with_alpha(image):
        whole.paste(strip.convert("RGB"), (0, top), alpha)
        top += strip.height
    return whole


def _strips_with_alpha(image: Image.Image) -> Iterator[tuple[Image.Image, Image.Image]]:
    """Yields strips of an image as RGBA, and their alpha: the whole would take much memory."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgba = strip.convert("RGBA")
        yield rgba, rgba.getchannel("A")


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Context without Pillow's warnings, such as that of a large image, which it decodes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


@contextlib.contextmanager
def as_bad_image(content: bytes = b"") -> Iterator[None]:
    """Context that raises every error as BadImage: for broken files Pillow raises OSError,
    SyntaxError, struct.error and more. `content` is the file, from which a reason is found."""
    try:
        yield
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(_bad_image_reason(error, content)) from None


def _check_crc(content: bytes) -> None:
    """Checks the CRC of each chunk of a PNG, which Pillow does not. Raises BadImage."""
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


def _bad_image_reason(error: Exception, content: bytes) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"decompression bomb: more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels"
    if isinstance(error, Image.UnidentifiedImageError):
        return _refusal(content)
    return _in_short(error)


def _refusal(content: bytes) -> str:
    """The reason of the format that accepts the first bytes, which Pillow does not pass on."""
    for factory, accept in map(Image.OPEN.__getitem__, FORMATS):
        if accept and accept(content[:16]) is True:
            try:
                factory(io.BytesIO(content), "")
            except Exception as error:
                return "truncated" if len(content) <= 16 else _in_short(error)
    return "not an image"


def _in_short(error: Exception) -> str:
    message = " ".join(str(error).split())
    ends = (IndexError, EOFError, struct.error)
    if isinstance(error, ends) or isinstance(error.__cause__, ends):
        return "truncated"
    for part, reason in PILLOW_MESSAGES.items():
        if part in message.lower():
            return reason
    return f"cannot be decoded: {message or type(error).__name__}"[:100]
