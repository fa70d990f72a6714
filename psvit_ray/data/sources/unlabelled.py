"""Images to predict, without labels: files, folders, Parquet, or a list of paths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from pyarrow import fs

from psvit_ray.data.sources import parquet_files
from psvit_ray.data.sources.image_folder import FileTable, is_image
from psvit_ray.data.sources.parquet_table import is_table
from psvit_ray.data.splits.layout import AS_NAMED, DataLayout
from psvit_ray.data.tables import ImageTable
from psvit_ray.storage import files
from psvit_ray.storage.folder import Folder
from psvit_ray.text.secrets import without_secrets

STDIN = "-"


@dataclass(frozen=True)
class ImageGroup:
    """Images of one table."""

    table: ImageTable
    prefix: str = ""
    """Text before the path or row of an image that makes it a path in the user's words."""

    def name(self, index: int) -> str:
        """Name of an image in the user's words."""
        return self.prefix + self.table.place(index)[1]


def check_exists(data: Sequence[str]) -> None:
    """Raises ValueError for a path of `data` that does not exist; lists no folder."""
    for given in data:
        there = Folder.at(given)
        if given != STDIN and not files.has_wildcards(there):
            try:
                missing = files.file_type(there) == fs.FileType.NotFound
            except (OSError, pa.ArrowInvalid) as error:
                raise _unreadable(given, error) from None
            if missing:
                raise _missing(given)


def read_unlabelled(
    data: Sequence[str], lines: Iterable[str] = (), layout: DataLayout = AS_NAMED
) -> list[ImageGroup]:
    """The images of `data`: paths or URIs of images, folders (with all below them), Parquet files
    and patterns; `-` stands for the paths in `lines`. The order is kept; folders are sorted.

    Raises ValueError for what does not exist or holds no image. Paths in `lines` are not checked:
    a missing file counts as an image that cannot be read.
    """
    images: list[ImageGroup] = []
    for given in data:
        if given == STDIN:
            groups = [_files("", [line.rstrip("\r\n") for line in lines if line.strip()])]
        else:
            try:
                groups = _image_groups(given, layout)
            except (OSError, pa.ArrowInvalid) as error:
                raise _unreadable(given, error) from None
        if not sum(len(group.table) for group in groups):
            what = "standard input" if given == STDIN else repr(without_secrets(given))
            raise ValueError(f"data must hold images, got none in {what}")
        images += groups
    return images


def chunks(groups: Iterable[ImageGroup], size: int) -> Iterator[ImageGroup]:
    """Groups of at most `size` images each, in the same order."""
    for group in groups:
        for start in range(0, len(group.table), size):
            indices = np.arange(start, min(start + size, len(group.table)))
            yield ImageGroup(group.table.take(indices), group.prefix)


def _image_groups(given: str, layout: DataLayout) -> list[ImageGroup]:
    there = Folder.at(given)
    kind = files.file_type(there)
    if kind == fs.FileType.Directory:
        prefix = f"{_shown(given).rstrip('/')}/"
        listing = files.list_below(there)
        own = set(listing.files)
        names = [name for name, kept in listing.links.items() if kept in own]
        return _below(there, prefix, sorted([*own, *names]), layout)
    if kind == fs.FileType.File:
        above, name = files.parent(there)
        prefix = _shown(given)[: -len(name)]
        if is_table(name):
            return [ImageGroup(parquet_files.images(above, [name], layout), prefix)]
        return [_files(prefix, [name], above)]
    if files.has_wildcards(there):
        root, paths = files.list_matching(there)
        return _below(root, f"{_shown(root.uri)}/", paths, layout)
    raise _missing(given)


def _missing(given: str) -> ValueError:
    return ValueError(f"data must exist, got {without_secrets(given)!r}")


def _unreadable(given: str, error: Exception) -> ValueError:
    return ValueError(
        f"data must be readable, got {without_secrets(given)!r}: {files.error_text(error)}"
    )


def _below(root: Folder, prefix: str, paths: list[str], layout: DataLayout) -> list[ImageGroup]:
    """The image files, and the images in Parquet files, among `paths`."""
    groups = []
    if images := [path for path in paths if is_image(path)]:
        groups.append(_files(prefix, images, root))
    if tables := [path for path in paths if is_table(path)]:
        groups.append(ImageGroup(parquet_files.images(root, tables, layout), prefix))
    return groups


def _files(prefix: str, paths: list[str], root: Folder | None = None) -> ImageGroup:
    labels = np.full(len(paths), -1, dtype=np.int64)
    return ImageGroup(FileTable.of(root or Folder.at("."), paths, labels), prefix)


def _shown(given: str) -> str:
    """A user's path or URI without secrets and without the query of a URI."""
    return without_secrets(given.partition("?")[0] if "://" in given else given)
