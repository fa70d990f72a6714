"""What decides shards beside their images, as configuration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from psvit_ray.arch.spec import MAX_IMG_SIZE, Finite, Value


class ShardSettings(Value):
    """What decides the shards beside the data."""

    shard_mb: Annotated[Finite, Field(gt=0, le=1024)] = 64
    """Megabytes (10^6) of a shard, about. A process that writes one holds it three times."""
    resize_longer: Annotated[int, Field(ge=0, le=MAX_IMG_SIZE)] = 0
    """Images whose longer side has more pixels are made this small and encoded again, PNG as PNG
    and all others as JPEG. The others, and all with 0, are kept byte for byte."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """Of JPEG encoded again."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of the order of the images."""
