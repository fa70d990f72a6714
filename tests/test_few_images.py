"""Fewer images than workers, in a batch or in all: the steps and the scores of one worker."""

from __future__ import annotations

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data import sources
from psvit_ray.data.sources import Source
from psvit_ray.data.tables import ArrayTable, ImageTable
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.engine import check_source, run
from psvit_ray.training.place import Place
from tests.stored import write_parquet
from tests.test_training import join_group

MOST_IMAGES, MOST_IN_A_BATCH = 40, 9
SPEC = ArchSpec.model_validate(
    {
        "img_size": 4,
        "patch_size": 2,
        "in_chans": 1,
        "num_classes": 3,
        "pooling": "2d",
        "stages": [
            {"embed_dim": 8, "num_heads": 2, "hidden_dim": 8, "share_groups": [2]},
            {"embed_dim": 8, "num_heads": 2, "hidden_dim": 8, "share_groups": [1]},
        ],
    }
)
PIXELS = np.random.default_rng(0).integers(0, 256, (MOST_IMAGES, 4, 4), dtype=np.uint8)
LABELS = np.arange(MOST_IMAGES) % 3


class Case(NamedTuple):
    num_images: int
    batch_size: int
    parquet: bool = False
    """Each worker reads with two processes; a single one by itself."""


EVERY_CASE = [
    Case(images, batch_size)
    for images in range(1, MOST_IMAGES + 1)
    for batch_size in range(1, MOST_IN_A_BATCH + 1)
]
# A worker's share is a function of the size of the batch alone: all sizes, as the last of an epoch.
EVERY_LAST_BATCH = [
    Case(batch_size + last % batch_size, batch_size)
    for batch_size in (1, 2, 3, MOST_IN_A_BATCH)
    for last in range(1, batch_size + 1)
]


class Outcome(NamedTuple):
    refused: str
    """Why nothing was trained; then the rest says nothing."""
    step: int = 0
    weights: Tensor = torch.empty(0)
    loss: float = 0.0
    holdout: tuple[float, float] = (0.0, 0.0)
    """Loss and top-1 of three images: fewer than four workers."""


def png(pixels: np.ndarray) -> dict[str, Any]:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}


def train(case: Case, folder: str, place: Place, *, num_loaders: int = 0) -> Outcome:
    in_memory = ArrayTable(torch.from_numpy(PIXELS)[:, None], LABELS)
    table: ImageTable = in_memory
    if case.parquet:
        table = sources.read(f"{folder}/all.parquet").train
    source = Source(
        "few",
        ("a", "b", "c"),
        table.take(np.arange(case.num_images)),
        in_memory.take(np.arange(3)),
        None,
    )
    configuration = Configuration(
        spec=SPEC,
        train=TrainConfig(
            epochs=1,
            # Adam alone would not see a gradient of the wrong size: clipping at 0.2, in the midst
            # of the norms that there are, does.
            clip_grad=0.2,
            batch_size=case.batch_size,
            num_loaders=num_loaders,
            shift=1,
            reprob=0.5,
            hflip=0.5,
        ),
    )
    try:
        check_source(configuration, source)
    except ValueError as error:
        return Outcome(str(error))
    *_, last = run(configuration, source, place=place)
    weights = torch.cat([weight.flatten() for weight in last.checkpoint().model.values()])
    holdout = last.metrics["holdout/loss"], last.metrics["holdout/top1"]
    return Outcome("", last.step, weights, last.metrics["train/loss"], holdout)


def train_in_group(rank: int, world_size: int, folder: str, cases: Sequence[Case]) -> None:
    mp.set_start_method("fork", force=True)  # of loaders, as in a worker: here it would be spawn
    outcomes = []
    for number, some in itertools.groupby(cases, key=lambda case: case.num_images):
        # A group for each number of images: every run takes sockets, until its group is destroyed.
        Path(folder, f"{number}").mkdir(exist_ok=True)
        join_group(rank, world_size, f"{folder}/{number}")
        place = Place(prepare_model=DistributedDataParallel)
        outcomes += [train(case, folder, place, num_loaders=2 * case.parquet) for case in some]
        dist.destroy_process_group()
    if rank == 0:
        torch.save([tuple(outcome) for outcome in outcomes], f"{folder}/workers")


def compare(folder: Path, world_size: int, cases: Sequence[Case]) -> None:
    """Trains every case with several workers and with one, which must end with the same weights."""
    write_parquet(folder / "all.parquet", [png(pixels) for pixels in PIXELS], LABELS.tolist())
    cases = sorted(cases)
    alone = [train(case, str(folder), Place()) for case in cases]
    mp.spawn(train_in_group, (world_size, str(folder), cases), nprocs=world_size)
    together = [Outcome(*values) for values in torch.load(folder / "workers")]
    for case, ours, theirs in zip(cases, together, alone, strict=True):
        assert ours.refused == theirs.refused, case
        assert bool(ours.refused) == (case.batch_size > case.num_images), case
        if ours.refused:
            continue
        assert ours.step == theirs.step == -(-case.num_images // case.batch_size), case
        difference = (ours.weights - theirs.weights).abs()
        # Adam divides by the gradient's size: rounding is amplified where a gradient is near 0.
        assert difference.max() < 2e-3, case
        assert difference.median() < 1e-6, case
        assert ours.loss == pytest.approx(theirs.loss, abs=1e-5), case
        assert ours.holdout == pytest.approx(theirs.holdout, abs=1e-3), case


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_worker_without_an_image_in_a_batch_takes_the_step_of_the_others(
    tmp_path: Path, world_size: int
) -> None:
    shares = 2 * world_size
    parquet = [Case(shares + last, shares, parquet=True) for last in (1, world_size + 1)]
    compare(tmp_path, world_size, [*EVERY_LAST_BATCH, *parquet, Case(1, 2), Case(8, 9)])


@pytest.mark.chaos
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("parquet", [False, True])
def test_up_to_forty_images_in_batches_of_up_to_nine(
    tmp_path: Path, world_size: int, parquet: bool
) -> None:
    compare(tmp_path, world_size, [case._replace(parquet=parquet) for case in EVERY_CASE])
