"""The manifest of a folder of shards. It is written last, when all that it names is there."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from psvit_ray.arch.spec import Value
from psvit_ray.storage import json_files
from psvit_ray.storage.folder import Folder
from psvit_ray.text.secrets import without_secrets

SHARD_MANIFEST = "manifest.json"
PROGRESS = "progress"
"""Name of the folder that holds the plan and each shard's description while shards are written."""
PLAN = "plan.json"
CHECK_THREADS = 8
"""Files checked at the same time, as hashing, decoding and reading do not hold the GIL."""
CHUNK_BYTES = 4 << 20


class ShardFile(Value):
    """A shard's entry in the manifest."""

    rows: int
    """Number of images."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Hash of the file."""


class SplitManifest(Value):
    """A split's entry in the manifest."""

    rows: int
    """Number of images."""
    bytes: int
    """Size of all files."""
    bad_images: int
    """Number of images that could not be used; `quarantine.csv` lists them."""
    classes: dict[str, int]
    """Number of images of each class."""
    files: dict[str, ShardFile]
    """Shards by name."""


class ShardManifest(Value):
    """The content of `manifest.json`."""

    version: Literal[1] = 1
    """Version of this format."""
    identity: dict[str, Any]
    """Data, settings and versions of libraries, which decide every byte of the shards."""
    class_names: tuple[str, ...]
    """Names of the classes, in the order of the labels."""
    splits: dict[str, SplitManifest]
    """Splits by name."""


_SHARD_MANIFEST = TypeAdapter(ShardManifest)


def read_manifest(folder: Folder) -> ShardManifest | None:
    """The manifest of a folder; None if there is none. Raises ValueError if it cannot be read, or
    if not all shards are written yet."""
    remedy = "restore it from a copy, or make the shards again in another folder"
    manifest = json_files.read_json(
        folder, SHARD_MANIFEST, _SHARD_MANIFEST, "the manifest of shards", remedy
    )
    if manifest is None and PLAN in (folder / PROGRESS).names():
        raise ValueError(
            f"shards in {folder} are not all written: go on with psvit prepare --resume"
        )
    return manifest


def faults(folder: Folder, manifest: ShardManifest) -> list[str]:
    """Differences between the files and the manifest, one line each; empty if there are none."""
    files = {name: file for split in manifest.splits.values() for name, file in split.files.items()}
    with ThreadPoolExecutor(CHECK_THREADS) as pool:
        checked = pool.map(lambda name: _check_shard(folder, name, files[name], manifest), files)
        results = dict(zip(files, checked, strict=True))
    lines = [f"{name}: {fault}" for name, (fault, _) in results.items() if fault]
    lines += [
        f"{name}: not in the manifest"
        for name in folder.names()
        if name.endswith(".parquet") and name not in files
    ]
    for split, entry in manifest.splits.items():
        counts = [results[name][1] for name in entry.files]
        if any(fault for fault, _ in (results[name] for name in entry.files)):
            continue  # the content of the split is not known
        lines += _faults_of_split(split, entry, sum(counts, Counter()), manifest.class_names)
    return lines


def _check_shard(
    folder: Folder, name: str, entry: ShardFile, manifest: ShardManifest
) -> tuple[str, Counter[int]]:
    """The fault of a file, or empty, and its number of images of each class."""
    nothing: Counter[int] = Counter()
    try:
        size, sha256 = 0, hashlib.sha256()
        for chunk in _chunks(folder, name):
            size += len(chunk)
            sha256.update(chunk)
        if size != entry.bytes:
            return f"has {size:,} bytes, the manifest says {entry.bytes:,}", nothing
        if sha256.hexdigest() != entry.sha256:
            return f"sha256 is {sha256.hexdigest()}, the manifest says {entry.sha256}", nothing
        labels = _read_labels(folder, name)
    except FileNotFoundError:
        return "missing", nothing
    except (OSError, pa.ArrowException) as error:
        return f"cannot be read: {' '.join(without_secrets(str(error)).split())}", nothing
    if len(labels) != entry.rows:
        return f"has {len(labels):,} rows, the manifest says {entry.rows:,}", nothing
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(manifest.class_names):
        return f"has labels outside 0 to {len(manifest.class_names) - 1}", nothing
    return "", Counter(labels.tolist())


def _chunks(folder: Folder, name: str) -> Iterator[bytes]:
    filesystem, path = folder.open()
    with filesystem.open_input_stream(f"{path}/{name}") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _read_labels(folder: Folder, name: str) -> np.ndarray:
    filesystem, path = folder.open()
    with filesystem.open_input_file(f"{path}/{name}") as file:
        return pq.ParquetFile(file).read(columns=["label"]).column("label").to_numpy()


def _faults_of_split(
    split: str, entry: SplitManifest, counts: Counter[int], class_names: tuple[str, ...]
) -> list[str]:
    """Differences between a split's totals and the sums over its files, which are as in the
    manifest."""
    sums = {
        "rows": sum(file.rows for file in entry.files.values()),
        "bytes": sum(file.bytes for file in entry.files.values()),
    }
    lines = [
        f"{split}: its files have {is_:,} {what}, the manifest says {getattr(entry, what):,}"
        for what, is_ in sums.items()
        if is_ != getattr(entry, what)
    ]
    has = {name: counts[number] for number, name in enumerate(class_names)}
    return lines + [
        f"{split}: class {name!r} has {has.get(name, 0):,} images, the manifest says "
        f"{entry.classes.get(name, 0):,}"
        for name in [*has, *(set(entry.classes) - set(has))]
        if has.get(name, 0) != entry.classes.get(name, 0)
    ]
