"""Training on stored pictures: the same however they are stored; broken ones among them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from psvit_ray.data.loading.loader import GlobalBatchSampler, ImageDataset, join_parts, train_loader
from psvit_ray.training.engine import Report, run_training
from psvit_ray.training.evaluation import evaluate
from psvit_ray.training.source import load_source
from psvit_ray.training.state import run_info
from psvit_ray.training.steps import TooManyBadImages
from tests.helpers.drawn import drawn_folder
from tests.helpers.pictures import BAD, ODD
from tests.helpers.stored import as_rows, write_by_datasets, write_parquet
from tests.helpers.training import assert_same_state, configured_for


@pytest.mark.processes
def test_a_folder_parquet_and_that_of_datasets_give_the_same_batches_and_weights(
    tmp_path: Path,
) -> None:
    splits = {"train": 12, "val": 3}  # what is cut depends on names
    folder = drawn_folder(tmp_path / "folder", classes=4, splits=splits, size=40)
    names = sorted(path.name for path in (folder / "train").iterdir())
    for split in splits:
        there = folder / split
        write_by_datasets(there, tmp_path / "datasets" / f"{split}.parquet")
        write_parquet(tmp_path / "parquet" / f"{split}.parquet", *as_rows(there), row_group_size=7)
    runs = {}
    for kind in ("folder", "parquet", "datasets"):
        configuration = configured_for(tmp_path / kind, 4)
        source = load_source(configuration)
        facts = run_info(configuration, source)
        images = ImageDataset(source.train, facts.preprocessing, augmentation=configuration.train)
        sampler = GlobalBatchSampler(
            len(source.train), 24, seed=0, blocks=source.train.blocks, window=4_096, num_parts=2
        )
        loader = train_loader(images, sampler, processes=2, pin_memory=False)
        batches = list(join_parts(loader, 2, torch.device("cpu")))
        *_, last = run_training(configuration, source)
        runs[kind] = source, batches, last.checkpoint()
    _, expected, end = runs.pop("folder")
    for source, batches, ours in runs.values():
        assert source.class_names in (tuple(names), tuple("0123"))  # plain Parquet has no names
        for batch, other in zip(batches, expected, strict=True):
            assert torch.equal(batch.images, other.images)
            for mine, theirs in zip(batch[1:4], other[1:4], strict=True):
                assert np.array_equal(mine, theirs)
        assert_same_state(ours, end)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 images to train on; 10 of them cannot be read and 8 are odd."""
    folder = drawn_folder(
        tmp_path_factory.mktemp("spoilt"), classes=10, size=32, splits={"train": 100, "val": 10}
    )
    paths = sorted((folder / "train").rglob("*.png"))
    chosen = np.random.default_rng(0).permutation(len(paths))
    kinds = [*list(BAD.items())[::2][:10]]
    for place, (_, (content, _)) in zip(chosen[:10], kinds, strict=True):
        paths[place].write_bytes(content)
    for place, content in zip(chosen[10:18], ODD.values(), strict=False):
        paths[place].write_bytes(content)
    return folder


@pytest.mark.processes
def test_broken_images_are_named_and_left_out(spoilt: Path) -> None:
    configuration = configured_for(spoilt, 10, batch_size=64)
    source = load_source(configuration)
    process = psutil.Process()
    before = process.memory_info().rss
    reports: list[Report] = list(run_training(configuration, source))
    assert process.memory_info().rss - before < 300 << 20
    named = [(path, reason) for report in reports for _, path, reason in report.bad_images]
    assert len(named) == len(set(named)) == 10
    reasons = sorted(reason for _, reason in named)
    assert reasons == sorted(reason for _, reason in list(BAD.values())[::2][:10])
    for path, _ in named:
        assert (spoilt / path).is_file()
    assert [report.epoch for report in reports] == [1, 2]


@pytest.mark.processes
def test_more_broken_images_than_allowed_end_the_run_and_are_named(spoilt: Path) -> None:
    configuration = configured_for(spoilt, 10, max_bad_fraction=0.005)
    said = r"more than 0.005 of the training images cannot be read: (\d+) of \d+ up to step \d+; .+"
    reports: list[Report] = []
    with pytest.raises(TooManyBadImages) as error:
        reports.extend(run_training(configuration, load_source(configuration)))
    assert not any(report.checkpoint_due for report in reports)
    named = [bad for report in reports for bad in report.bad_images]
    found = re.fullmatch(said, str(error.value))
    assert found
    assert len(named) == int(found[1]) > 5


def test_a_broken_image_counts_as_wrong_in_evaluation(spoilt: Path, tmp_path: Path) -> None:
    shutil.copytree(spoilt, tmp_path / "data")
    configuration = configured_for(tmp_path / "data", 10)
    source = load_source(configuration)
    preprocessing = run_info(configuration, source).preprocessing
    label = int(source.holdout.labels[3])

    class Knows(torch.nn.Module):
        """Says the class of image 3, whatever it sees."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.full((len(images),), label), 10).float()

    right = np.flatnonzero(source.holdout.labels == label)
    before = evaluate(Knows(), source.holdout, preprocessing, num_classes=10, batch_size=16)
    assert np.flatnonzero(before.correct).tolist() == right.tolist()
    (tmp_path / "data" / source.holdout.place(3)[1]).write_bytes(b"")
    after = evaluate(Knows(), source.holdout, preprocessing, num_classes=10, batch_size=16)
    assert after.bad == ((3, "empty"),)
    assert np.flatnonzero(after.correct).tolist() == [i for i in right.tolist() if i != 3]
    assert after.top1 == pytest.approx(before.top1 - 1)  # of 100 images
