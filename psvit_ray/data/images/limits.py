"""Limits on what decoding one image takes of a process: less than a gigabyte, and some seconds.

A small file may hold a large image: what a decoder will take is known from the header, and refused
before. Costs are those of Pillow 12 on one core, at 4 bytes for each pixel of RGB.
"""

from __future__ import annotations

import re
import struct

from PIL import Image
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from psvit_ray.data.images.bad_image import BadImage

MAX_BYTES = 300_000_000
"""Largest size of a file."""
MAX_SIDE = 1_000_000
"""Longest side of an image, in pixels."""
MAX_PIXELS = 64_000_000
"""Most pixels of an image that is decoded at its full size."""
MAX_PIXELS_OF = {
    "WEBP": 32_000_000,  # its decoder keeps two canvases and a copy: 19 bytes a pixel
    "AVIF": 32_000_000,  # 12, and of more than 8 bits 18
}
"""Most pixels of an image in formats whose decoders take more memory."""
MAX_PIXELS_IN_SCANS = 48_000_000
"""Most pixels of a JPEG in several scans, all of whose coefficients are kept: 12 bytes a pixel."""
MAX_PIXELS_IN_PYTHON = 4_500_000
"""Most pixels of formats that Pillow decodes in Python: some PPM, and run-length encoded BMP."""
MAX_SEGMENTS = 100_000
"""Most segments of a JPEG before its first scan."""
MAX_SCANS = 100
"""Most scans of a JPEG; each goes over the whole image, however few bytes it has."""
JPEG2000_PIXELS, JPEG2000_BYTES = 16_000_000, 24_000_000
"""Pixels and bytes of a JPEG 2000 beyond which it is read at half its size, or a quarter: decoding
takes 25 bytes a pixel, and a second for 4 MB."""
MAX_STRIPS = 100_000
"""Most strips or tiles of a TIFF."""
MAX_COMMENT = 1_000_000
"""Most bytes before the first frame of a GIF; Pillow copies a comment at every 255 bytes."""

FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
"""Markers of JPEG frames; their low bits tell the kind of compression."""
STRIPS, TILE_SIZE = (273, 279, 324, 325), (322, 323)  # tags of TIFF
SIZE_OF_TYPE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8}


def check_content(content: bytes) -> None:
    """Raises BadImage for a file that is too large, or whose header alone takes too long."""
    if len(content) > MAX_BYTES:
        raise BadImage(f"more than {MAX_BYTES:,} bytes")
    if content.startswith(b"\xff\xd8"):
        exif, in_scans = _jpeg_header(content)
        if len(exif) > 1:  # Pillow joins the pieces
            _check_directory(b"".join(exif))
        if in_scans and len(re.findall(b"\xff\xda", content)) > MAX_SCANS:
            raise BadImage(f"JPEG of more than {MAX_SCANS} scans")
    elif content.startswith((b"II", b"MM")):
        _check_directory(content)
    elif content[4:8] == b"ftyp":
        for order in (b"II*\0", b"MM\0*"):  # EXIF is read with the header
            if (at := content.find(order)) >= 0:
                _check_directory(content[at:])
    elif content.startswith(b"GIF8") and len(content) > MAX_COMMENT:
        _check_extensions(content)


def check_exif(exif: bytes) -> None:
    """Raises BadImage if the directory of EXIF data names the same bytes again and again."""
    _check_directory(exif.removeprefix(b"Exif\0\0"))


def bounded(image: Image.Image, content: bytes) -> Image.Image:
    """`image`, whose header was read from `content`, set to be decoded within the limits: a large
    JPEG or JPEG 2000 at half its size or less. Raises BadImage if it takes too much."""
    if max(image.size) > MAX_SIDE:
        raise BadImage(f"too large: a side of {max(image.size):,} pixels, of at most {MAX_SIDE:,}")
    limit = MAX_PIXELS_OF.get(image.format or "", MAX_PIXELS)
    pixels = image.width * image.height
    if isinstance(image, JpegImageFile):
        if pixels > MAX_PIXELS_IN_SCANS and _jpeg_header(content)[1]:
            limit = MAX_PIXELS_IN_SCANS
        elif pixels > limit:
            image.draft(None, (image.width // 2, image.height // 2))
            pixels = image.width * image.height
    elif isinstance(image, Jpeg2KImageFile):
        halvings = 0
        while max(pixels / JPEG2000_PIXELS, len(content) / JPEG2000_BYTES) > 4**halvings:
            halvings += 1
        image.reduce = halvings
        pixels //= 4**halvings
    elif isinstance(image, TiffImageFile):
        width, length = (image.tag_v2.get(tag, 0) for tag in TILE_SIZE)
        pixels = max(pixels, int(width) * int(length))  # a tile is decoded whole
    tiles = getattr(image, "tile", [])
    if tiles and tiles[0].codec_name in Image.DECODERS:
        limit = MAX_PIXELS_IN_PYTHON
    if pixels > limit:
        raise BadImage(f"too large: {pixels:,} pixels, of at most {limit:,} in such a file")
    return image


def _jpeg_header(content: bytes) -> tuple[list[bytes], bool]:
    """The pieces of EXIF data before the first scan of a JPEG, and whether it has several scans,
    for colours or for precision. Raises BadImage."""
    exif: list[bytes] = []
    at, colours, in_scans = 2, 0, False
    for _ in range(MAX_SEGMENTS):
        if at + 10 > len(content) or content[at] != 0xFF:
            return exif, False  # Pillow says what is wrong
        marker = content[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0 or 0xD0 <= marker <= 0xD8:  # have no length
            at += 2
            continue
        end = at + 2 + (content[at + 2] << 8 | content[at + 3])
        if marker == 0xE1 and content.startswith(b"Exif\0\0", at + 4):
            exif.append(content[at + 10 : end])
        elif marker in FRAMES:
            colours, in_scans = content[at + 9], marker & 3 == 2
        elif marker == 0xDA:
            return exif, in_scans or content[at + 4] < colours
        at = end
    raise BadImage(f"JPEG of more than {MAX_SEGMENTS:,} segments before its picture")


def _check_directory(content: bytes) -> None:
    """Raises BadImage for a TIFF (or EXIF) directory that names more bytes than there are, all of
    which Pillow would read, or too many strips."""
    order = "<" if content.startswith(b"II") else ">"
    big = content[2:4] in (b"+\0", b"\0+")
    count, entry, pointer = ("Q", "HHQQ", "Q") if big else ("H", "HHLL", "L")
    try:
        (start,) = struct.unpack_from(order + pointer, content, 8 if big else 4)
        (num_entries,) = struct.unpack_from(order + count, content, start)
    except struct.error:
        return  # Pillow says what is wrong
    start += struct.calcsize(order + count)
    size = struct.calcsize(order + entry)
    num_entries = min(num_entries, (len(content) - start) // size)
    named = 0
    for at in range(start, start + num_entries * size, size):
        tag, kind, number, place = struct.unpack_from(order + entry, content, at)
        num_bytes = number * SIZE_OF_TYPE.get(kind, 0)
        if num_bytes > struct.calcsize(order + pointer) and place + num_bytes > len(content):
            return  # and Pillow reads no further
        named += num_bytes
        if tag in STRIPS and number > MAX_STRIPS:
            raise BadImage(f"TIFF of more than {MAX_STRIPS:,} strips")
        if named > 2 * len(content):
            raise BadImage("TIFF directory that names the same bytes again and again")


def _check_extensions(content: bytes) -> None:
    """Raises BadImage for a GIF with long comments."""
    at = 13 + (3 << (content[10] & 7) + 1 if content[10] & 128 else 0)
    begin = at
    while content[at : at + 1] == b"!":
        at += 2
        while at < len(content) and content[at]:
            at += 1 + content[at]
        at += 1
        if at - begin > MAX_COMMENT:
            raise BadImage(f"GIF with more than {MAX_COMMENT:,} bytes before its picture")
