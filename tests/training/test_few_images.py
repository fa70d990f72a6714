"""Fewer images than workers, or none that can be read, in a batch or in all."""

from __future__ import annotations

import io
import itertools
import math
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

from psvit_ray.arch.space import SearchSpace
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data.images.decode import BadImage
from psvit_ray.data.loading.loader import GlobalBatchSampler
from psvit_ray.data.loading.transforms import Preprocessing
from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.sources.load_data import read_data
from psvit_ray.data.tables import ArrayTable, StoredTable
from psvit_ray.export.inference import score_batches, to_predictions
from psvit_ray.training.config import Configuration, PathConfig, SupernetConfig, TrainConfig
from psvit_ray.training.engine import run_training
from psvit_ray.training.evaluation import evaluate
from psvit_ray.training.execution import Execution
from psvit_ray.training.paths import PathSampler
from tests.helpers.networks import exported, facts_of
from tests.helpers.stored import write_parquet
from tests.helpers.training import in_group, join_group

MOST_IMAGES, MOST_IN_A_BATCH = 40, 9
CLASS_NAMES = ("a", "b", "c")
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
SPACE = SearchSpace.model_validate(
    {
        "img_size": 4,
        "in_chans": 1,
        "num_classes": 3,
        "patch_size": [2],
        "pooling": ["1d", "2d"],
        "stages": [
            {"depth": [1, 2], "embed_dim": [8, 16], "head_dim": [8], "mlp_ratio": [1]},
            {"depth": [1], "embed_dim": [16], "head_dim": [8], "mlp_ratio": [1]},
        ],
    }
)
PIXELS = np.random.default_rng(0).integers(0, 256, (MOST_IMAGES, 4, 4), dtype=np.uint8)
LABELS = np.arange(MOST_IMAGES) % 3
IN_MEMORY = ArrayTable(torch.from_numpy(PIXELS)[:, None], LABELS)


class Spoilt:
    """The first images, of which some cannot be read."""

    blocks = None
    grows = False

    def __init__(self, num_images: int, unreadable: Sequence[int]) -> None:
        self.labels, self._unreadable = LABELS[:num_images], unreadable

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> Image.Image:
        if index in self._unreadable:
            raise BadImage("spoilt")
        return Image.fromarray(PIXELS[index])

    def place(self, index: int) -> tuple[str, str]:
        return "spoilt", str(index)

    def take(self, indices: np.ndarray) -> Any:
        raise NotImplementedError

    def listing(self) -> Any:
        raise NotImplementedError


class Case(NamedTuple):
    num_images: int
    batch_size: int
    parquet: bool = False
    """Each worker reads with two processes; a single one by itself."""
    unreadable: tuple[int, ...] = ()
    settings: dict[str, Any] = {}  # noqa: RUF012  # never changed
    paths: dict[str, Any] | None = None
    """Of a supernet, where one is trained."""


class Outcome(NamedTuple):
    refused: str
    """Why nothing was trained; then the rest says nothing."""
    step: int = 0
    weights: Tensor = torch.empty(0)
    """That are evaluated."""
    loss: float = 0.0
    holdout: tuple[float, float] = (0.0, 0.0)
    """Loss and top-1 of three images: fewer than four workers."""


def png(pixels: np.ndarray) -> dict[str, Any]:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}


def train(case: Case, folder: str, execution: Execution, *, num_loaders: int = 0) -> Outcome:
    table: StoredTable = IN_MEMORY
    if case.parquet:
        table = read_data(f"{folder}/all.parquet").train
    table = table.take(np.arange(case.num_images))
    if case.unreadable:
        table = Spoilt(case.num_images, case.unreadable)
    source = Source("few", CLASS_NAMES, table, IN_MEMORY.take(np.arange(3)), None)
    settings = {
        # Adam alone would not see a gradient of the wrong size: clipping at 0.2, in the midst of
        # the norms that there are, does.
        "clip_grad": 0.2,
        "shift": 1,
        "reprob": 0.5,
        "hflip": 0.5,
        "max_bad_fraction": 0.9,
        **case.settings,
    }
    if settings.get("teacher"):
        settings["teacher"] = f"{folder}/teacher"
    supernet = None
    if case.paths is not None:
        supernet = SupernetConfig(space=SPACE, paths=PathConfig(**case.paths))
    configuration = Configuration(
        spec=PathSampler(supernet, 0).largest if supernet else SPEC,
        supernet=supernet,
        train=TrainConfig(
            epochs=1, batch_size=case.batch_size, num_loaders=num_loaders, **settings
        ),
    )
    try:
        source.check_fits(configuration.trained_spec, configuration.train.batch_size)
    except ValueError as error:
        return Outcome(str(error))
    *_, last = run_training(configuration, source, execution=execution)
    saved = last.checkpoint()
    weights = torch.cat([weight.flatten() for weight in saved.evaluated.values()])
    holdout = last.metrics["holdout/loss"], last.metrics["holdout/top1"]
    return Outcome("", last.step, weights, last.metrics["train/loss"], holdout)


def train_in_group(rank: int, world_size: int, folder: str, cases: Sequence[Case]) -> None:
    mp.set_start_method("fork", force=True)  # of loaders, as in a worker: here it would be spawn
    outcomes = []
    for number, some in itertools.groupby(cases, key=lambda case: case.num_images):
        # A group for each number of images: every run takes sockets, until its group is destroyed.
        Path(folder, f"{number}").mkdir(exist_ok=True)
        join_group(rank, world_size, f"{folder}/{number}")
        execution = Execution(prepare_model=DistributedDataParallel)
        outcomes += [train(case, folder, execution, num_loaders=2 * case.parquet) for case in some]
        dist.destroy_process_group()
    torch.save([tuple(outcome) for outcome in outcomes], f"{folder}/worker-{rank}")


def trained_in_group(folder: Path, world_size: int, cases: Sequence[Case]) -> list[Outcome]:
    """Of each case, the same on all workers. Cases come by their number of images."""
    write_parquet(folder / "all.parquet", [png(pixels) for pixels in PIXELS], LABELS.tolist())
    exported(folder / "teacher", facts_of(SPEC, CLASS_NAMES, mean=(0.5,), std=(0.2,)))
    in_group(train_in_group, world_size, str(folder), cases)
    first, *others = (
        [Outcome(*values) for values in torch.load(folder / f"worker-{rank}")]
        for rank in range(world_size)
    )
    for ours, *theirs in zip(first, *others, strict=True):
        for each in theirs:
            assert torch.equal(each.weights, ours.weights)
            assert each._replace(weights=ours.weights) == ours
    return first


def compare(folder: Path, world_size: int, cases: Sequence[Case]) -> None:
    """Trains every case with several workers and with one, which must end with the same weights."""
    cases = sorted(cases, key=lambda case: case.num_images)
    together = trained_in_group(folder, world_size, cases)
    for case, ours in zip(cases, together, strict=True):
        alone = train(case, str(folder), Execution())
        assert ours.refused == alone.refused, case
        assert bool(ours.refused) == (case.batch_size > case.num_images), case
        if ours.refused:
            continue
        images = case.num_images
        if repeats := case.settings.get("aug_repeats"):
            images = -(-images // repeats) * repeats
        assert ours.step == alone.step == -(-images // case.batch_size), case
        difference = (ours.weights - alone.weights).abs()
        # Adam divides by the gradient's size: rounding is amplified where a gradient is near 0.
        assert difference.max() < 2e-3, case
        assert difference.median() < 1e-6, case
        assert ours.loss == pytest.approx(alone.loss, abs=1e-5), case
        assert ours.holdout == pytest.approx(alone.holdout, abs=1e-3), case


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
WAYS_TO_TRAIN: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    ({"bce_loss": True, "smoothing": 0, "micro_batch_size": 1, "layer_decay": 0.7}, None),
    ({"model_ema_decay": 0.9, "grad_checkpointing": True, "opt": "lamb"}, None),
    ({"aug_repeats": 4, "clip_grad": 0}, None),
    ({"teacher": "it", "distillation": "soft"}, None),
    ({"teacher": "it", "distillation": "hard", "bce_loss": True, "smoothing": 0}, None),
    ({"model_ema_decay": 0.9}, {"paths": "sandwich"}),
    ({"micro_batch_size": 1}, {"paths": "sandwich", "inplace_distillation": True}),
    ({"grad_checkpointing": True}, {"paths": "single"}),
]


@pytest.mark.processes
@pytest.mark.parametrize("world_size", [2, 4])
def test_a_worker_without_an_image_in_a_batch_takes_the_step_of_the_others(
    tmp_path: Path, world_size: int
) -> None:
    shares = 2 * world_size
    parquet = [Case(shares + last, shares, parquet=True) for last in (1, world_size + 1)]
    # Of eight images in batches of four, what one worker gets of the first batch, or the last
    # batch of all of them.
    sampler = GlobalBatchSampler(8, 4, seed=0, rank=1, world_size=world_size)
    of_worker, _ = (tuple(draws[:, 0].tolist()) for draws in sampler)
    _, of_all = (tuple(draws[:, 0].tolist()) for draws in GlobalBatchSampler(8, 4, seed=0))
    spoilt = [Case(8, 4, unreadable=unreadable) for unreadable in (of_worker, of_all)]
    more_than_there_are = [Case(1, 2), Case(8, 9)]
    cases = [*EVERY_LAST_BATCH, *parquet, *spoilt, *more_than_there_are]
    if world_size == 2:  # of six images in batches of five, one is left for the last
        cases += [Case(6, 5, settings=settings, paths=paths) for settings, paths in WAYS_TO_TRAIN]
    compare(tmp_path, world_size, cases)


@pytest.mark.processes
@pytest.mark.chaos
@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("parquet", [False, True])
def test_up_to_forty_images_in_batches_of_up_to_nine(
    tmp_path: Path, world_size: int, parquet: bool
) -> None:
    compare(tmp_path, world_size, [case._replace(parquet=parquet) for case in EVERY_CASE])


@pytest.mark.processes
def test_what_is_drawn_for_a_share_does_no_harm_where_it_is_empty(tmp_path: Path) -> None:
    """Pairs to mix, and what is dropped, are drawn by each worker for itself."""
    drawn = {"drop": 0.1, "attn_drop": 0.1, "drop_path": 0.5, "mixup": 0.5, "cutmix": 0.5}
    settings: list[dict[str, Any]] = [
        drawn,
        {**drawn, "mixup": 0, "bce_loss": True, "smoothing": 0},
        {**drawn, "cutmix": 0, "teacher": "it"},
        {**drawn, "grad_compression": "bf16"},
    ]
    cases = [Case(6, 5, settings=each) for each in settings]
    cases += [case._replace(paths={}) for case in cases]
    for outcome in trained_in_group(tmp_path, 2, cases):
        assert (outcome.refused, outcome.step) == ("", 2)
        assert outcome.weights.isfinite().all()
        assert 0.1 < outcome.loss < 10


@pytest.mark.parametrize("unreadable", [(0, 1), (4,), (0, 1, 2, 3, 4)])
def test_a_network_is_not_asked_about_no_images(unreadable: tuple[int, ...]) -> None:
    """Attention on a GPU refuses them. Two images at a time are."""

    class Brightness(torch.nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert len(images)
            return images.mean(dim=(1, 2, 3))[:, None] * torch.tensor([1.0, 0.0, -1.0])

    model, table = Brightness(), Spoilt(5, unreadable)
    preprocessing = Preprocessing(img_size=4, in_chans=1, mean=(0.5,), std=(1,), crop_pct=1)
    score = evaluate(model, table, preprocessing, num_classes=3, batch_size=2)
    found = list(score_batches(model, table, preprocessing, batch_size=2))
    assert [len(batch.indices) + len(batch.bad) for batch in found] == [2, 2, 1]
    assert {batch.logits.shape[1] for batch in found} == {3}
    bad = tuple((index, "spoilt") for index in unreadable)
    assert tuple(itertools.chain(*(batch.bad for batch in found))) == score.bad == bad
    likeliest = [0 if mean > 0.5 else 2 for mean in PIXELS[:5].mean(axis=(1, 2)) / 255]
    told = list(to_predictions(found, 1))
    assert [one.classes for one in told] == [
        [] if index in unreadable else [likeliest[index]] for index in range(5)
    ]
    right = [likeliest[i] == LABELS[i] and i not in unreadable for i in range(5)]
    assert score.correct.tolist() == right
    assert score.top1 == pytest.approx(20 * sum(right))
    assert math.isnan(score.loss) == (len(unreadable) == 5)
