"""The plan of Parquet shards: how images are shuffled and divided into files.

The files are a function of data, settings and library versions alone, not of time, of the processes
that write them, or of interruptions.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from dataclasses import dataclass

import numpy as np
import PIL
import pyarrow as pa

from psvit_ray.data.shards.settings import ShardSettings
from psvit_ray.data.shards.shard_file import contents
from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.splits.layout import Split
from psvit_ray.data.tables import ImageTable

BYTES_OF_ROW = 60  # beside the image: path, label, and a share of the row group's header
SIZE_SAMPLE = 256
SIZE_SAMPLE_BLOCKS = 32
WINDOW_SHARDS = 8


@dataclass(frozen=True, eq=False)
class Shard:
    """A shard to be written."""

    split: Split
    """Split of the images."""
    name: str
    """Name of the file."""
    indices: np.ndarray
    """Positions of its images in the split's table."""


def identity(source: Source, settings: ShardSettings) -> dict[str, object]:
    """All that decides the bytes of the shards but the content of images, which are identified by
    their names and labels."""
    digest = hashlib.sha256(json.dumps(source.class_names).encode())
    for name, table in source.tables.items():
        digest.update(name.encode() + table.labels.astype("<i8").tobytes())
        for index in range(len(table)):
            digest.update(os.fsencode(table.place(index)[1]) + b"\0")
    return {
        "data": source.name,
        "images": {name: len(table) for name, table in source.tables.items()},
        "names_and_labels": digest.hexdigest()[:16],
        "settings": settings.model_dump(mode="json"),
        "versions": {"numpy": np.__version__, "pillow": PIL.__version__, "pyarrow": pa.__version__},
    }


def plan(source: Source, settings: ShardSettings) -> list[Shard]:
    """All shards, with the images of each split shuffled.

    Their number follows from the mean size of a sample, as exact sizes are known only after
    decoding and resizing. Raises ValueError if no image of a sample can be used.
    """
    shards = []
    for number, (split, table) in enumerate(source.tables.items()):
        # Two streams, so that drawing a sample does not change the order.
        sampling, mixing = (
            np.random.Generator(np.random.PCG64([settings.seed, number, use])) for use in range(2)
        )
        size = len(table) * (_mean_bytes(split, table, settings, sampling) + BYTES_OF_ROW)
        num_shards = min(max(1, round(size / (settings.shard_mb * 1e6))), len(table))
        bounds = np.linspace(0, len(table), num_shards + 1).astype(int)
        order = _order(table.blocks, bounds, mixing)
        shards += [
            Shard(split, f"{split}-{i:05d}-of-{num_shards:05d}.parquet", order[start:end])
            for i, (start, end) in enumerate(itertools.pairwise(bounds))
        ]
    return shards


def _order(blocks: np.ndarray | None, bounds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of the images, whose shards begin at `bounds`. If images are read by blocks
    and there are many shards, blocks are shuffled first, then images within `WINDOW_SHARDS` shards.

    So a block is read for about that many shards, where shuffling all images would read each block
    for nearly every shard. For 9,600 images of 99 KB in class order, in blocks of 100 and shards of
    64 MB, each block is read 7.6 times, and 32 consecutive images are of 23 of the 96 classes.
    """
    if blocks is None or len(bounds) - 1 <= WINDOW_SHARDS:
        return rng.permutation(bounds[-1])
    _, block = np.unique(blocks, return_inverse=True)
    order = np.argsort(rng.permutation(block.max() + 1)[block], kind="stable")
    for start in range(0, len(bounds) - 1, WINDOW_SHARDS):
        rng.shuffle(order[bounds[start] : bounds[min(start + WINDOW_SHARDS, len(bounds) - 1)]])
    return order


def _mean_bytes(
    split: str, table: ImageTable, settings: ShardSettings, rng: np.random.Generator
) -> float:
    candidates = np.arange(len(table))
    if table.blocks is not None:
        blocks = np.unique(table.blocks)
        few = rng.choice(blocks, min(SIZE_SAMPLE_BLOCKS, len(blocks)), replace=False)
        candidates = candidates[np.isin(table.blocks, few)]
    number = min(SIZE_SAMPLE, len(candidates))
    sample = table.take(rng.choice(candidates, number, replace=False))
    sizes, bad = [], []
    for _, content in contents(sample, settings):
        if isinstance(content, bytes):
            sizes.append(len(content))
        else:
            bad.append(content)
    if not sizes:
        raise ValueError(
            f"data has no image that can be used among {number} of {split}: {' '.join(bad[0])}"
        )
    return float(np.mean(sizes))
