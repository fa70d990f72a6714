"""Writing of a Parquet shard: the stored form of each image, and the file.

The schema is that of the `datasets` library, `image: struct<bytes, path>, label: int64`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from psvit_ray.data.images.decode import (
    GREY_MODES,
    BadImage,
    convert,
    is_transparent,
    is_wide,
    open_header,
    open_picture,
)
from psvit_ray.data.quarantine import BadImageRow
from psvit_ray.data.shards.settings import ShardSettings
from psvit_ray.data.sources.parquet_table import row_groups
from psvit_ray.data.sources.shard_manifest import PROGRESS, ShardFile
from psvit_ray.storage.files import printable_path
from psvit_ray.storage.folder import Folder

if TYPE_CHECKING:  # a process that writes shards needs no torch, which takes half a gigabyte
    from psvit_ray.data.tables import ImageTable

# A row group is what a reader reads at once. Measured on local disk, microseconds an image when
# whole groups are read in random order, and when one image is picked from a group (decoding takes
# some 4,000 of a 110 KB JPEG):
#     rows                          1     8    16    32    64   128   256
#     110 KB: whole / picked  261/240 63/365 57/526 53/841 76/1883 117/4887 205/8969
#       4 KB: whole / picked  193/154 25/193 14/194  9/207   7/202    4/331    3/412
# and a group costs the file 270 bytes. Beyond some 4 MiB a group no longer fits the processor's
# caches and both become worse.
GROUP_ROWS = 32
GROUP_BYTES = 4 << 20


class WrittenShard(ShardFile):
    """The content of a shard that was written."""

    classes: tuple[int, ...]
    """Number of images of each class."""
    bad: tuple[BadImageRow, ...]
    """Images left out: source, path or row, reason."""


def write_shard(
    folder: Folder,
    name: str,
    table: ImageTable,
    class_names: tuple[str, ...],
    settings: ShardSettings,
) -> WrittenShard:
    """Writes a table as the shard `name`, and then its description to the folder of progress.

    Raises OSError if the storage fails.
    """
    stored: list[bytes | None] = [None] * len(table)
    bad = {}
    for index, content in contents(table, settings):
        if isinstance(content, bytes):
            stored[index] = content
        else:
            bad[index] = content
    kept = np.setdiff1d(np.arange(len(table)), list(bad))
    parquet = _parquet(stored, table, class_names)
    folder.write(name, parquet)
    written = WrittenShard(
        rows=len(kept),
        bytes=parquet.size,
        sha256=hashlib.sha256(parquet).hexdigest(),
        classes=tuple(np.bincount(table.labels[kept], minlength=len(class_names)).tolist()),
        bad=tuple(bad[index] for index in sorted(bad)),
    )
    note = json.dumps(written.model_dump())  # pydantic's own takes no name that is not UTF-8
    (folder / PROGRESS).write(note_name(name), note.encode())
    return written


def finished_shards(folder: Folder, names: Iterable[str]) -> dict[str, WrittenShard]:
    """Descriptions of the shards among `names` that are complete in `folder`."""
    sizes = folder.sizes()
    finished = {}
    for name in names:
        # A shard whose description cannot be read is written again. (pydantic's own JSON parser
        # reads no name that is not UTF-8.)
        with contextlib.suppress(ValueError, RecursionError, IsADirectoryError):
            note = json.loads((folder / PROGRESS).read(note_name(name)) or b"")
            if (written := WrittenShard.model_validate(note)).bytes == sizes.get(name):
                finished[name] = written
    return finished


def note_name(name: str) -> str:
    """Name of the file with a shard's description."""
    return f"{name}.json"


def contents(
    table: ImageTable, settings: ShardSettings
) -> Iterator[tuple[int, bytes | BadImageRow]]:
    """Yields the position and the stored form of each image, or its row of the quarantine, block
    after block, of which one is held in memory."""
    blocks = np.zeros(len(table), dtype=np.int64) if table.blocks is None else table.blocks
    order = np.argsort(blocks, kind="stable").tolist()
    for before, index in zip([*order[:1], *order], order, strict=False):
        if blocks[before] != blocks[index]:
            row_groups.clear()
        try:
            yield index, _stored(table.read(index), settings)
        except BadImage as error:
            yield index, (*table.place(index), str(error))
    row_groups.clear()


def _stored(content: bytes | Image.Image, settings: ShardSettings) -> bytes:
    """The bytes of an image that a shard stores. Raises BadImage."""
    if isinstance(content, bytes):
        picture = open_picture(content)
        if not is_wide(picture):
            convert(picture, "RGB")  # raises where it cannot be
        if not settings.resize_longer or max(picture.size) <= settings.resize_longer:
            return content
        is_png = open_header(content).format == "PNG"
    else:
        picture, is_png = content, True
    picture, kind = _storable(picture)
    if settings.resize_longer:
        side = settings.resize_longer
        gap = None if picture.mode == "I;16" else 2.0  # whose first step Pillow does not know
        picture.thumbnail((side, side), Image.Resampling.LANCZOS, gap)
    written = io.BytesIO()
    picture.save(written, kind or ("PNG" if is_png else "JPEG"), quality=settings.quality)
    return written.getvalue()


def _storable(picture: Image.Image) -> tuple[Image.Image, str]:
    """A decoded image in a mode that can be resized and encoded again, with all its bits and its
    transparency, and the format that this requires, or empty."""
    if is_wide(picture):
        if picture.mode in ("I", "F"):
            return picture, "TIFF"
        return Image.fromarray(np.asarray(picture).astype(np.uint16)), "PNG"
    if is_transparent(picture):
        return picture.convert("RGBA"), "PNG"
    return convert(picture, "L" if picture.mode in GREY_MODES else "RGB"), ""


def _parquet(
    stored: list[bytes | None], table: ImageTable, class_names: tuple[str, ...]
) -> pa.Buffer:
    """The Parquet file of the images in `stored`, which are removed from it meanwhile."""
    sink, schema = pa.BufferOutputStream(), _schema(class_names)
    # Nothing is compressed: JPEG becomes no smaller, and reading takes 40 % longer with snappy.
    # Dictionaries and statistics of images would repeat whole images.
    with pq.ParquetWriter(
        sink, schema, compression="NONE", use_dictionary=False, write_statistics=["label"]
    ) as writer:
        for group in _groups(stored):
            images = [
                {"bytes": stored[i], "path": printable_path(table.place(i)[1])} for i in group
            ]
            columns = [pa.array(images, schema.field("image").type), pa.array(table.labels[group])]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            for index in group:
                stored[index] = None
    return sink.getvalue()


def _groups(stored: list[bytes | None]) -> Iterator[list[int]]:
    """Positions of the images in `stored`, by row groups."""
    group: list[int] = []
    size = 0
    for index, content in enumerate(stored):
        if content is None:
            continue
        if group and (len(group) == GROUP_ROWS or size + len(content) > GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(index)
        size += len(content)
    if group:
        yield group


def _schema(class_names: tuple[str, ...]) -> pa.Schema:
    """The schema, with the metadata by which `datasets` recognises images and classes."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {
        "image": {"_type": "Image"},
        "label": {"names": list(class_names), "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([("image", image), ("label", pa.int64())], metadata=metadata)
