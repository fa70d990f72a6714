"""The split file `splits.parquet` of a run's folder and of its exports: all images of the data, and
the split of each.

A row is an image: `place` as in quarantine.csv (a path, or file and row of Parquet), `size` in
bytes and `content` (for Parquet the bytes of the row group's columns, and the sha256 of a shard) if
they are known without reading it, `label`, `class_name`, and `split`: train, holdout, test or
unused.

The digest identifies the images and their classes, however they are split. It is the first half of
the sha256 over the class names, as JSON, and for each image, in the order of storage, place, size,
content and label, each ended by a NUL.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from psvit_ray.data.tables import StoredTable
from psvit_ray.storage.folder import Folder

SPLITS_FILE = "splits.parquet"
Role = Literal["train", "holdout", "test", "unused"]
ROLES: tuple[Role, ...] = ("train", "holdout", "test", "unused")
CLASS_NAMES, DIGEST = b"psvit.class_names", b"psvit.digest"
HASHED_AT_ONCE = 1 << 16


class DataChanged(ValueError):
    """The images of a run differ from those that it began with."""


@dataclass(frozen=True, eq=False)
class SplitFile:
    """The images of a run's data in the order of storage, and the split of each."""

    class_names: tuple[str, ...]
    images: pa.Table
    """Table with columns place (binary), size, content, label (number of the class) and split
    (position in `ROLES`)."""

    @classmethod
    def of(
        cls, class_names: tuple[str, ...], tables: Sequence[StoredTable], split: np.ndarray
    ) -> SplitFile:
        """The split file of stored tables; `split` (N,) has for each image the position of its
        split in `ROLES`."""
        labels = np.concatenate([table.labels for table in tables])
        images = pa.concat_tables(table.listing() for table in tables)
        images = images.append_column("label", pa.array(labels))
        return cls(class_names, images.append_column("split", pa.array(split, pa.int8())))

    def __len__(self) -> int:
        return int(self.images.num_rows)

    @functools.cached_property
    def digest(self) -> str:
        """Digest of the images and their classes."""
        sha256 = hashlib.sha256(json.dumps(self.class_names).encode())
        for part in self.images.to_batches(max_chunksize=HASHED_AT_ONCE):
            fields = [part["place"]]
            for name in ("size", "content", "label"):
                fields.append(part[name].cast(pa.string()).cast(pa.binary()))
            fields.append(pa.scalar(b""))  # so that each of the others is ended by a NUL
            options = {"null_handling": "replace", "null_replacement": ""}
            images = pc.binary_join_element_wise(*fields, pa.scalar(b"\0"), **options)
            sha256.update(b"".join(images.to_pylist()))
        return sha256.hexdigest()[:32]

    def indices(self, split: Role) -> np.ndarray:
        """Positions of a split's images in this file."""
        return np.flatnonzero(self.images["split"].to_numpy() == ROLES.index(split))

    def to_bytes(self) -> bytes:
        """Content of the Parquet file. The column `place` is text if all its values are UTF-8."""
        names, places = pa.array(self.class_names, pa.string()), self.images["place"]
        with contextlib.suppress(pa.ArrowInvalid):  # where a file name is not UTF-8
            places = places.cast(pa.string())
        table = pa.table(
            {
                "place": places,
                "size": self.images["size"],
                "content": self.images["content"].combine_chunks(),
                "label": self.images["label"],
                "class_name": names.take(self.images["label"].combine_chunks()),
                "split": pa.array(ROLES).take(self.images["split"].combine_chunks()),
            }
        )
        about = {CLASS_NAMES: json.dumps(self.class_names), DIGEST: self.digest}
        written = io.BytesIO()
        pq.write_table(table.replace_schema_metadata(about), written, compression="zstd")
        return written.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> SplitFile:
        """The split file with this content. Raises ValueError, which names `where`, if it is not
        one or was changed."""
        try:
            table = pq.read_table(io.BytesIO(content))
            about = table.schema.metadata or {}
            class_names = tuple(json.loads(about[CLASS_NAMES]))
            known = cls(
                class_names,
                pa.table(
                    {
                        "place": table["place"].cast(pa.binary()),
                        "size": table["size"].cast(pa.int64()),
                        "content": table["content"].cast(pa.string()),
                        "label": table["label"].cast(pa.int64()),
                        "split": pc.index_in(table["split"], pa.array(ROLES)).cast(pa.int8()),
                    }
                ),
            )
            whole = known.digest == about[DIGEST].decode()
        except (pa.ArrowException, KeyError, TypeError, ValueError, RecursionError) as error:
            reason = str(error).partition("\n")[0]
            raise ValueError(f"{where} is no file of splits: {reason}") from None
        if not whole or known.images["split"].null_count:
            raise ValueError(f"{where} was changed: its digest is not that of its images")
        return known


def read_split_file(folder: Folder) -> SplitFile | None:
    """The split file in a run's folder; None if there is none. Raises ValueError if it was changed,
    and OSError."""
    content = folder.read(SPLITS_FILE)
    return None if content is None else SplitFile.from_bytes(content, str(folder / SPLITS_FILE))


def check_same(known: SplitFile | None, digest: str, now: SplitFile) -> None:
    """Raises DataChanged, which tells the changes, if the images `now` differ from those with
    `digest`, or are split otherwise than in `known`."""
    if now.digest != digest:
        lines = changes(known, now) if known else [f"the digest is {now.digest}, it was {digest}"]
        raise DataChanged(
            f"data is not what the run began with: {'; '.join(lines)}. Put the images back as they "
            "were, or begin anew under another --name"
        )
    if known and (moved := int(np.sum(split_numbers(known) != split_numbers(now)))):
        raise DataChanged(
            f"the same images are split otherwise than when the run began: {count_images(moved)} "
            "in "
            "another split, by another version of a library or of this package. Begin anew under "
            "another --name"
        )


def split_numbers(file: SplitFile) -> np.ndarray:
    """Position in `ROLES` of each image's split, (N,)."""
    return file.images["split"].to_numpy()


def positions(places: pa.ChunkedArray, among: pa.ChunkedArray) -> np.ndarray:
    """Position of each place in `among`, or -1, (N,) int64."""
    indices = pc.index_in(places, among.combine_chunks())
    return indices.fill_null(-1).to_numpy().astype(np.int64)


def unchanged(known: SplitFile, now: SplitFile) -> tuple[np.ndarray, np.ndarray]:
    """Position in `now` of each image of `known`, or -1; and whether it is the same there in size,
    content and class, as far as they are known."""
    where = positions(known.images["place"], now.images["place"])
    same = where >= 0
    before = known.images.filter(pa.array(same))
    after = now.images.take(pa.array(where[same]))
    equal = np.ones(len(after), dtype=bool)
    for name in ("size", "content"):
        equal &= _text(before[name]) == _text(after[name])
    equal &= _labels(known, before) == _labels(now, after)
    same[same] = equal
    return where, same


def changes(known: SplitFile, now: SplitFile) -> list[str]:
    """Numbers of images that were added, removed, renamed and changed since `known`, one line for
    each with an example; or a line about classes or order if nothing else differs.

    A missing image counts as renamed if a new one has its size, content and class.
    """
    where, same = unchanged(known, now)
    gone = np.flatnonzero(where < 0)
    new = np.setdiff1d(np.arange(len(now)), where)
    renamed = []
    nameless = defaultdict(list)
    for index, key in zip(gone[::-1], _identities(known, gone[::-1]), strict=True):
        nameless[key].append(index)
    added = []
    for index, key in zip(new, _identities(now, new), strict=True):
        if key[0] + key[1] and nameless[key]:
            renamed.append((nameless[key].pop(), index))
        else:
            added.append(index)
    removed = sorted(index for several in nameless.values() for index in several)
    changed = np.flatnonzero((where >= 0) & ~same)
    lines = []
    if added:
        lines.append(f"{count_images(len(added))} added, such as {_place(now, added[0])}")
    if removed:
        lines.append(f"{count_images(len(removed))} removed, such as {_place(known, removed[0])}")
    if renamed:
        old, index = renamed[0]
        lines.append(
            f"{count_images(len(renamed))} renamed, such as {_place(known, old)} to "
            f"{_place(now, index)}"
        )
    if len(changed):
        first = changed[0]
        what = _difference(known, int(first), now, int(where[first]))
        lines.append(f"{count_images(len(changed))} changed, such as {_place(known, first)}{what}")
    if known.class_names != now.class_names and not lines:
        lines.append(f"its classes are {_quoted_names(now)}, they were {_quoted_names(known)}")
    return lines or ["its images come in another order"]


def left_out(known: SplitFile, now: SplitFile) -> list[str]:
    """A note of images that were added or changed since the data was split as in `known`."""
    if now.digest == known.digest:
        return []
    return [f"since the data was split, and left out: {'; '.join(changes(known, now))}"]


def count_images(images: int) -> str:
    """A number of images, in words."""
    return "1 image" if images == 1 else f"{images:,} images"


def _text(column: pa.ChunkedArray) -> np.ndarray:
    """A column as text to compare; unknown values are empty."""
    return column.cast(pa.string()).fill_null("").to_numpy()


def _labels(file: SplitFile, images: pa.Table) -> np.ndarray:
    """Class name of each image; numbers change if a class is added."""
    return np.array(file.class_names, dtype=object)[images["label"].to_numpy()]


def _identities(
    file: SplitFile, indices: Sequence[int] | np.ndarray
) -> Iterator[tuple[str, str, str]]:
    """Size, content and class of each image, which identify it whatever its name."""
    images = file.images.take(pa.array(indices, pa.int64()))
    return zip(_text(images["size"]), _text(images["content"]), _labels(file, images), strict=True)


def _place(file: SplitFile, index: int) -> str:
    return repr(file.images["place"][int(index)].as_py().decode(errors="backslashreplace"))


def _difference(known: SplitFile, old: int, now: SplitFile, index: int) -> str:
    sizes = [known.images["size"][old].as_py(), now.images["size"][index].as_py()]
    if None not in sizes and sizes[0] != sizes[1]:
        return f", of {sizes[0]:,} bytes, now {sizes[1]:,}"
    names = [
        file.class_names[file.images["label"][row].as_py()]
        for file, row in ((known, old), (now, index))
    ]
    return f", of class {names[0]!r}, now {names[1]!r}" if names[0] != names[1] else ""


def _quoted_names(file: SplitFile) -> str:
    shown = ", ".join(map(repr, file.class_names[:5]))
    more = len(file.class_names) - 5
    return shown + (f" and {more:,} more" if more > 0 else "")
