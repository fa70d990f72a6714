"""A survey of a sample of a data set's images when it is opened: their tone ranges, and notes for
the user."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from psvit_ray.data.images import decode
from psvit_ray.data.images.bad_image import BadImage
from psvit_ray.data.images.options import ToneRange, format_tone_range
from psvit_ray.data.images.tone_range import DEPTHS, Tones, extremes, usual_range
from psvit_ray.data.sources.image_folder import FileTable
from psvit_ray.data.sources.parquet_table import row_groups
from psvit_ray.data.tables import ArrayTable, ImageTable
from psvit_ray.storage import files

SAMPLED_IMAGES = 64
SAMPLED_BLOCKS = 4
"""Row groups of Parquet from which the sample is taken."""
THREADS = 16
MAX_DECODED_PIXELS = 50_000_000
"""Most pixels that are decoded; of images of 8 bits without alpha the header is enough."""


@dataclass(frozen=True)
class Survey:
    """Properties of the images of a sample."""

    images: int = 0
    """Images that were examined."""
    transparent: int = 0
    """Images with transparent pixels."""
    integers: ToneRange | None = None
    """Lowest and highest value of images of 16 or 32 bits; None if there are none."""
    floats: ToneRange | None = None
    """Lowest and highest value of images of floating-point numbers; None if there are none."""

    def tones(self, data: str) -> Tones:
        """The tone ranges of the data set called `data`. Raises ValueError if its values are in no
        usual range."""
        given = {}
        for kind, extent in self._wide():
            usual = usual_range(*extent, floats=kind == "floats")
            if usual is None:
                raise ValueError(
                    f"tone_range must be given, as {KINDS[kind]} pictures of data {data!r} have "
                    f"values from {_number(extent[0])} to {_number(extent[1])}, which is no usual "
                    f"range; such as {format_tone_range(extent)}"
                )
            given[kind] = usual
        return Tones.model_validate(given)

    def unlike(self, tones: Tones) -> Survey:
        """The survey without the kinds of images whose own range is that of `tones`."""
        suited: dict[str, Any] = {
            kind: None
            for kind, extent in self._wide()
            if usual_range(*extent, floats=kind == "floats") == getattr(tones, kind)
        }
        return replace(self, **suited)

    def notes(self, tones: Tones, background: str, where: str = "") -> list[str]:
        """Notes, each beginning with `where`, of how images of the sample's kinds are read."""
        lines = []
        for (kind, _), pictures in zip(self._wide(), self.kinds, strict=False):
            limits = getattr(tones, kind)
            lines.append(
                f"{where}{pictures}: read as {_depth(limits)} (tone_range "
                f"{format_tone_range(limits)})"
            )
        if self.transparent:
            lines.append(f"{where}{self.kinds[-1]}: put on {background} (background)")
        return lines

    @property
    def kinds(self) -> list[str]:
        """Descriptions of the kinds of images in the sample, without those of 8 bits."""
        kinds = []
        for kind, (low, high) in self._wide():
            least = f"from {_number(low)}" if low < 0 else "up"
            kinds.append(f"{KINDS[kind]} pictures with values {least} to {_number(high)}")
        if self.transparent:
            kinds.append(f"transparent pictures, {self.transparent} of {self.images} looked at")
        return kinds

    def _wide(self) -> Iterator[tuple[str, ToneRange]]:
        for kind in KINDS:
            if extent := getattr(self, kind):
                yield kind, extent


KINDS = {"integers": "16-bit", "floats": "floating-point"}


def survey(*tables: ImageTable) -> Survey:
    """Surveys a sample of the tables together, which is spread over them and always the same.
    Images that cannot be read are skipped. Raises ValueError if the storage fails."""
    number, transparent, pixels = 0, 0, 0
    wide: dict[str, list[ToneRange]] = {kind: [] for kind in KINDS}
    for content in sampled_contents(tables):
        with contextlib.suppress(BadImage):
            image = decode.open_header(content) if isinstance(content, bytes) else content
            number += 1
            if not decode.is_wide(image) and not image.has_transparency_data:
                continue
            pixels += image.width * image.height
            if number > 1 and pixels > MAX_DECODED_PIXELS:
                continue
            image = decode.open_picture(content) if isinstance(content, bytes) else content
            transparent += decode.is_transparent(image)
            if decode.is_wide(image) and (values := extremes(np.asarray(image))):
                wide["floats" if image.mode == "F" else "integers"].append(values)
    ends = {
        kind: (min(low for low, _ in several), max(high for _, high in several))
        for kind, several in wide.items()
        if several
    }
    return Survey(number, transparent, **ends)


def surveyed(
    data: str,
    train: ImageTable,
    others: Mapping[str, ImageTable | None],
    tone_range: ToneRange | None,
    background: str,
) -> tuple[Tones, list[str]]:
    """The tone ranges of a data set, which its training images decide unless `tone_range` is given,
    and notes for the user. `others` are its other splits. Raises ValueError if `tone_range` must be
    given, or if the storage fails."""
    first = survey(train)
    if tone_range is None:
        tones = first.tones(data)
    else:
        tones = Tones(integers=tone_range, floats=tone_range)
    notes = first.notes(tones, background)
    for split, table in others.items():
        if table is not None:
            other = survey(table).unlike(tones)
            notes += replace(other, transparent=0).notes(tones, background, f"{split}: ")
    return tones, notes


def sampled_contents(tables: Sequence[ImageTable]) -> Iterator[bytes | Image.Image]:
    """Yields the images of a sample that can be read, from as many of the tables as it has images.
    The sample is the same each time. Raises ValueError if the storage fails."""
    stored = [table for table in tables if len(table) and not isinstance(table, ArrayTable)]
    if stored:
        chosen = _spread(np.arange(len(stored)), SAMPLED_IMAGES)
        for place in chosen:
            yield from _contents(
                stored[place], _sample(stored[place], SAMPLED_IMAGES // len(chosen))
            )


def _sample(table: ImageTable, images: int) -> np.ndarray:
    """Positions of `images` images that are spread over a table, in few of its blocks."""
    if table.blocks is None:
        return _spread(np.arange(len(table)), images)
    chosen = _spread(np.unique(table.blocks), min(SAMPLED_BLOCKS, images))
    rows = [np.flatnonzero(table.blocks == block) for block in chosen]
    return np.concatenate([_spread(block, max(images // SAMPLED_BLOCKS, 1)) for block in rows])


def _spread(numbers: np.ndarray, count: int) -> np.ndarray:
    return numbers[np.unique(np.linspace(0, len(numbers) - 1, count).round().astype(int))]


def _contents(table: ImageTable, indices: np.ndarray) -> Iterator[bytes | Image.Image]:
    """Yields the images that can be read. Files are read in threads, which object stores need;
    other tables are not thread-safe."""

    def read(index: int) -> bytes | Image.Image | None:
        try:
            return table.read(index)
        except BadImage:
            return None
        except (OSError, pa.ArrowException) as error:
            place, _ = table.place(index)
            raise ValueError(
                f"data must be readable, got {place!r}: {files.error_text(error)}"
            ) from None

    with ThreadPoolExecutor(THREADS if isinstance(table, FileTable) else 1) as pool:
        for start in range(0, len(indices), THREADS):
            for content in pool.map(read, indices[start : start + THREADS].tolist()):
                if content is not None:
                    yield content
    row_groups.clear()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.4g}"


def _depth(limits: ToneRange) -> str:
    """A range as bits, if it is that of a usual depth, else as LOW:HIGH."""
    low, high = limits
    bits = int(high + 1).bit_length() - 1
    return (
        f"{bits} bits"
        if bits in DEPTHS and (low, high) == (0, 2**bits - 1)
        else format_tone_range(limits)
    )
