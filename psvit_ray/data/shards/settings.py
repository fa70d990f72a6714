"""The configuration of Parquet shards."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from psvit_ray.arch.spec import MAX_IMG_SIZE, Finite, Value


class ShardSettings(Value):
    """Settings that, with the data, decide every byte of the shards."""

    shard_mb: Annotated[Finite, Field(gt=0, le=1024)] = 64
    """Approximate size of a shard in megabytes (10^6 bytes). A process that writes a shard needs
    three times its size of memory."""
    resize_longer: Annotated[int, Field(ge=0, le=MAX_IMG_SIZE)] = 0
    """Longest side of a stored image, in pixels: larger images are resized and encoded again, PNG
    as PNG and all others as JPEG. Smaller ones, and all with 0, are stored byte for byte."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality of images that are encoded again."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the order of the images."""
