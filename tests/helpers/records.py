"""Records and scores written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psvit_ray.arch.spec import ArchSpec, StageSpec
from psvit_ray.search.oneshot.scores import Score
from psvit_ray.search.record import (
    Kind,
    Point,
    Record,
    Status,
)
from psvit_ray.training.config import Configuration, TrainConfig

BAD_JSON: dict[str, bytes] = {
    "empty": b"",
    "half": b'{"search_id": "x", "num',
    "a list": b"[]",
    "null": b"null",
    "a number": b"3",
    "not UTF-8": b'{"search_id": "\xff"}',
    "nested without end": b"[" * 100_000,
    "another object": b'{"a": 1}',
}
"""What stands in a file that was cut, emptied or edited."""


def spec_of(*groups: tuple[int, ...], dim: int = 32, pooling: Any = "2d") -> ArchSpec:
    stages = tuple(
        StageSpec(embed_dim=dim, num_heads=2, hidden_dim=2 * dim, share_groups=group)
        for group in groups
    )
    images = {"img_size": 8, "patch_size": 1, "in_chans": 1, "num_classes": 10}
    return ArchSpec(**images, pooling=pooling, stages=stages)


PSVIT = spec_of((2, 1), (2,))
DEIT = spec_of((1, 1, 1, 1), pooling="1d")


def record(
    number: int,
    top1: Sequence[float] = (),
    *,
    spec: ArchSpec = PSVIT,
    status: Status = "completed",
    kind: Kind = "proposal",
    **fields: Any,
) -> Record:
    """Its number is its seed, so that each has another key."""
    points = [
        Point(epoch=epoch, step=10 * epoch, metrics={"holdout/top1": value, "train/loss": 0.1})
        for epoch, value in enumerate(top1, start=1)
    ]
    return Record(
        number=number,
        kind=kind,
        params={"stage1.depth": 3, "stage1.mlp_ratio": 2.0, "pooling": "2d", "lr": 0.003},
        configuration=Configuration(spec=spec, train=TrainConfig(seed=number)),
        status=status,
        curve=tuple(points),
        **fields,
    )


def trained_record(number: int, pattern: str, dim: int, top1: float) -> Record:
    stage = {"num_heads": 1, "hidden_dim": dim}
    spec = ArchSpec.model_validate(
        {
            **{"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "pooling": "1d"},
            "stages": [
                {**stage, "embed_dim": dim, "share_groups": [int(n) for n in part.split("-")]}
                for part in pattern.split("|")
            ],
        }
    )
    return Record(
        number=number,
        kind="proposal",
        params={},
        configuration=Configuration(spec=spec, train=TrainConfig(epochs=1)),
        status="completed",
        curve=(Point(epoch=1, step=1, metrics={"holdout/top1": top1}),),
    )


SMALL = spec_of((1,), (2,), dim=16)
MIDDLE = spec_of((1, 1), (2,), dim=16)
LARGE = spec_of((1, 2), (2,))


def score(number: int, top1: float, *, spec: ArchSpec = SMALL, **fields: Any) -> Score:
    return Score(
        **{"number": number, "generation": 0, "spec": spec, "loss": 1.0, "top1": top1, **fields}
    )
