"""What a folder of shards holds. Written last: where it stands, everything it names stands too."""

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

MANIFEST = "manifest.json"
PROGRESS = "progress"
"""Folder beside the shards while they are being written: the plan, and what each shard holds."""
PLAN = "plan.json"
READERS = 8
"""Files checked at the same time. Their hashing, decoding and reading run outside Python's lock."""
CHUNK_BYTES = 4 << 20


class ShardFile(Value):
    rows: int
    bytes: int
    sha256: str


class SplitManifest(Value):
    rows: int
    bytes: int
    bad_images: int
    """Images of the source that could not be used; `quarantine.csv` names them."""
    classes: dict[str, int]
    """Images of each class."""
    files: dict[str, ShardFile]


class ShardManifest(Value):
    version: Literal[1] = 1
    identity: dict[str, Any]
    """Of what, how and with which libraries the shards were made; decides every byte of them."""
    class_names: tuple[str, ...]
    splits: dict[str, SplitManifest]


_MANIFEST = TypeAdapter(ShardManifest)


def read_manifest(folder: Folder) -> ShardManifest | None:
    """None where there is none. Raises ValueError where it is not one, or shards are missing
    because they are not all written yet."""
    remedy = "restore it from a copy, or make the shards again in another folder"
    manifest = json_files.read_json(folder, MANIFEST, _MANIFEST, "the manifest of shards", remedy)
    if manifest is None and PLAN in (folder / PROGRESS).names():
        raise ValueError(
            f"shards in {folder} are not all written: go on with psvit prepare --resume"
        )
    return manifest


def faults(folder: Folder, manifest: ShardManifest) -> list[str]:
    """Everything in which the files differ from the manifest, a line each; empty if nothing."""
    files = {name: file for split in manifest.splits.values() for name, file in split.files.items()}
    with ThreadPoolExecutor(READERS) as pool:
        checked = pool.map(lambda name: _check_file(folder, name, files[name], manifest), files)
        found = dict(zip(files, checked, strict=True))
    lines = [f"{name}: {fault}" for name, (fault, _) in found.items() if fault]
    lines += [
        f"{name}: not in the manifest"
        for name in folder.names()
        if name.endswith(".parquet") and name not in files
    ]
    for split, said in manifest.splits.items():
        counts = [found[name][1] for name in said.files]
        if any(fault for fault, _ in (found[name] for name in said.files)):
            continue  # what the split holds is not known
        lines += _faults_of_split(split, said, sum(counts, Counter()), manifest.class_names)
    return lines


def _check_file(
    folder: Folder, name: str, said: ShardFile, manifest: ShardManifest
) -> tuple[str, Counter[int]]:
    """What is wrong with a file, or nothing, and how many images of each class it has."""
    nothing: Counter[int] = Counter()
    try:
        size, sha256 = 0, hashlib.sha256()
        for chunk in _chunks(folder, name):
            size += len(chunk)
            sha256.update(chunk)
        if size != said.bytes:
            return f"has {size:,} bytes, the manifest says {said.bytes:,}", nothing
        if sha256.hexdigest() != said.sha256:
            return f"sha256 is {sha256.hexdigest()}, the manifest says {said.sha256}", nothing
        labels = _read_labels(folder, name)
    except FileNotFoundError:
        return "missing", nothing
    except (OSError, pa.ArrowException) as error:
        return f"cannot be read: {' '.join(without_secrets(str(error)).split())}", nothing
    if len(labels) != said.rows:
        return f"has {len(labels):,} rows, the manifest says {said.rows:,}", nothing
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
    split: str, said: SplitManifest, counts: Counter[int], class_names: tuple[str, ...]
) -> list[str]:
    """Totals against the sum of the files, each of which is as the manifest says."""
    sums = {
        "rows": sum(file.rows for file in said.files.values()),
        "bytes": sum(file.bytes for file in said.files.values()),
    }
    lines = [
        f"{split}: its files have {is_:,} {what}, the manifest says {getattr(said, what):,}"
        for what, is_ in sums.items()
        if is_ != getattr(said, what)
    ]
    has = {name: counts[number] for number, name in enumerate(class_names)}
    return lines + [
        f"{split}: class {name!r} has {has.get(name, 0):,} images, the manifest says "
        f"{said.classes.get(name, 0):,}"
        for name in [*has, *(set(said.classes) - set(has))]
        if has.get(name, 0) != said.classes.get(name, 0)
    ]
