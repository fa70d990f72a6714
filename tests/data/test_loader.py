"""What each worker sees: every image once, the same global batches, the same pixels."""

from __future__ import annotations

import itertools
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.data import create_transform
from timm.data.random_erasing import RandomErasing

from psvit_ray.data.loading.augmentation import Augmentation
from psvit_ray.data.loading.loader import (
    GlobalBatchSampler,
    ImageDataset,
    eval_loader,
    join_parts,
    shuffle_advice,
    train_loader,
)
from psvit_ray.data.loading.transforms import (
    Preprocessing,
    finish_augmentation,
    seed_generators,
    train_transform,
)
from psvit_ray.data.tables import ArrayTable
from psvit_ray.export.measures import Measure
from psvit_ray.training.evaluation import evaluate
from tests.helpers.pictures import IMAGENET, Pictures
from tests.helpers.training import in_group, join_group

CPU = torch.device("cpu")
PREPROCESSING = Preprocessing(img_size=32, in_chans=3, **IMAGENET)
DEIT = Augmentation(
    train_crop_mode="rrc",
    train_interpolation="bicubic",
    hflip=0.5,
    color_jitter=0.3,
    aa="rand-m9-mstd0.5-inc1",
    reprob=0.25,
)


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("blocks", [None, np.arange(97) // 7])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_workers_and_their_processes_share_out_the_same_global_batches(
    world_size: int, blocks: np.ndarray | None, repeats: int
) -> None:
    options: dict[str, Any] = {"seed": 3, "blocks": blocks, "window": 30, "repeats": repeats}
    alone = GlobalBatchSampler(97, 10, **options)
    for epoch in (1, 2, 5):
        steps: list[list[np.ndarray]] = []
        for rank, parts in itertools.product(range(world_size), (1, 3)):
            sampler = GlobalBatchSampler(
                97, 10, rank=rank, world_size=world_size, num_parts=parts, **options
            )
            sampler.set_position(epoch)
            assert len(sampler) == len(list(sampler)) == sampler.steps_per_epoch * parts
            if parts == 3:
                draws = list(sampler)
                steps.append([np.concatenate(draws[at : at + 3]) for at in range(0, 30, 3)])
        alone.set_position(epoch)
        for step, (whole, *shares) in enumerate(zip(alone, *steps, strict=True)):
            together = np.concatenate(shares)
            assert sorted(map(tuple, together)) == sorted(map(tuple, whole))
            assert len(whole) == alone.size_of(step)
            sizes = [len(share) for share in shares]
            assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("blocks", [None, np.arange(97) // 7])
def test_an_epoch_has_each_image_once_and_as_many_epochs_as_repeats_each_so_often(
    blocks: np.ndarray | None,
) -> None:
    def images(epoch: int, repeats: int) -> list[int]:
        sampler = GlobalBatchSampler(97, 10, seed=0, blocks=blocks, window=30, repeats=repeats)
        sampler.set_position(epoch)
        return np.concatenate(list(sampler))[:, 0].tolist()

    for epoch in (1, 2):
        assert sorted(images(epoch, 1)) == list(range(97))
    three = [images(epoch, 3) for epoch in (1, 2, 3)]
    assert [len(epoch) for epoch in three] == [99] * 3  # two are shown once more: 97 is no 3 x 33
    for shown in three:
        assert set(np.unique(shown, return_counts=True)[1]) == {3}
    counts = np.bincount(np.concatenate(three))
    assert sorted(counts) == [3] * 95 + [6] * 2


def test_up_to_a_window_the_order_is_the_same_however_images_are_stored() -> None:
    def batches(blocks: np.ndarray | None, parts: int) -> list[list[int]]:
        sampler = GlobalBatchSampler(30, 8, seed=1, blocks=blocks, window=30, num_parts=parts)
        images = ImageDataset(Pictures(30), PREPROCESSING)
        loader = train_loader(images, sampler, processes=0, pin_memory=False)
        return [batch.indices.tolist() for batch in join_parts(loader, parts, CPU)]

    assert batches(np.arange(30) // 4, 3) == batches(np.arange(30) // 7, 1) == batches(None, 2)


def test_order_and_seeds_are_functions_of_seed_epoch_and_image() -> None:
    def draws(seed: int, epoch: int, first_step: int = 0) -> list[tuple[int, int]]:
        sampler = GlobalBatchSampler(50, 7, seed=seed)
        sampler.set_position(epoch, first_step)
        return [tuple(draw) for part in sampler for draw in part.tolist()]

    assert draws(1, 2) == draws(1, 2)
    assert draws(1, 2, first_step=3) == draws(1, 2)[21:]
    epochs = [draws(seed, epoch) for seed in range(3) for epoch in (1, 2, 3)]
    assert len({tuple(image for image, _ in epoch) for epoch in epochs}) == 9
    assert len({seed for epoch in epochs for _, seed in epoch}) == 9 * 50


def test_classes_in_order_on_disk_are_mixed_and_each_process_reads_few_blocks() -> None:
    # 200 classes of 100 images in order, in row groups of 50; batches of 256 over 4 processes.
    classes, blocks = np.arange(20_000) // 100, np.arange(20_000) // 50
    options: dict[str, Any] = {"seed": 0, "blocks": blocks, "window": 5_000}
    sampler = GlobalBatchSampler(20_000, 256, num_parts=4, **options)
    parts = [part[:, 0] for part in sampler]
    batches = [np.concatenate(parts[start : start + 4]) for start in range(0, len(parts), 4)]
    seen = [len(np.unique(classes[batch])) for batch in batches[:-1]]
    # 100 blocks of up to 100 classes are mixed: of 200 classes fully shuffled 145 would be seen.
    assert np.mean(seen) > 70
    # Over an epoch labels rise or fall with the step no more than by chance (5 sigma).
    means = [classes[batch].mean() for batch in batches[:-1]]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 5 / len(means) ** 0.5
    for process in range(4):
        read = blocks[np.concatenate(parts[process::4])]
        assert len(np.unique(read)) < 0.6 * 400  # each block by about two of the four processes
    order = [blocks[part] for part in parts]
    windows = [np.concatenate(order[start : start + 76]) for start in range(0, 304, 76)]
    assert all(len(np.unique(window)) < 230 for window in windows)  # blocks come and do not return


def test_classes_in_order_are_advised_on_where_a_window_does_not_hold_them() -> None:
    table = Pictures(100)
    table.blocks = np.arange(100) // 10
    assert shuffle_advice(table, 50) == ""
    table.labels = np.arange(100) // 10
    assert shuffle_advice(table, 100) == ""
    assert "psvit prepare writes them mixed" in shuffle_advice(table, 50)
    table.blocks = None
    assert shuffle_advice(table, 50) == ""


def test_a_training_image_is_timm_s_for_the_same_seed() -> None:
    table = Pictures(8)
    reference = create_transform(
        32,
        is_training=True,
        use_prefetcher=True,
        color_jitter=0.3,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        hflip=0.5,
        **IMAGENET,
    )
    draws = np.array([[index, 100 + index] for index in range(8)])
    batch = ImageDataset(table, PREPROCESSING, augmentation=DEIT).__getitems__(draws)
    for index, image in enumerate(batch.images):
        seed_generators(100 + index)
        assert torch.equal(image, torch.as_tensor(reference(table.read(index))))
    assert batch.seeds.tolist() == draws[:, 1].tolist()

    evaluation = create_transform(32, use_prefetcher=True, interpolation="bicubic", crop_pct=0.875)
    batch = ImageDataset(table, PREPROCESSING).__getitems__([3, 1])
    for index, image in zip([3, 1], batch.images, strict=True):
        assert torch.equal(image, torch.as_tensor(evaluation(table.read(index))))


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_erasing_is_timm_s_for_the_same_seed_whoever_is_in_the_batch(mode: Any) -> None:
    augmentation = Augmentation(reprob=0.5, remode=mode, recount=3)
    images, seeds = torch.randn(40, 3, 32, 32), torch.arange(40) + 7
    ours = finish_augmentation(augmentation, images.clone(), seeds)
    erase = RandomErasing(0.5, mode=mode, max_count=3, device="cpu")
    erase.min_count, erase.max_count = 1, 3
    for image, seed, mine in zip(images.clone(), seeds.tolist(), ours, strict=True):
        random.seed(seed)
        torch.manual_seed(seed)
        assert torch.equal(mine, erase(image))
    changed = (ours != images).flatten(1).any(1).sum()
    assert 10 < changed < 30
    some = finish_augmentation(augmentation, images[5:9].clone(), seeds[5:9])
    assert torch.equal(some, ours[5:9])


@pytest.mark.parametrize("policy", ["3a", "augmix-m3-w3", "original-mstd0.5", ""])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("crop", ["center", "rrc", "rkrc", "rkrr"])
def test_every_policy_and_crop_gives_images_of_the_size(
    policy: str, channels: Any, crop: Any
) -> None:
    mean, std = IMAGENET["mean"][:channels], IMAGENET["std"][:channels]
    preprocessing = Preprocessing(img_size=24, in_chans=channels, mean=mean, std=std)
    augmentation = Augmentation(aa=policy, train_crop_mode=crop, color_jitter=0.3, hflip=0.5)
    draws = np.array([[index, index] for index in range(20)])
    images = ImageDataset(Pictures(20), preprocessing, augmentation=augmentation)
    assert images.__getitems__(draws).images.shape == (20, channels, 24, 24)


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match=r"aa must be a policy of timm's, such as .*, got 'autoo'"):
        train_transform(Augmentation(aa="autoo"), PREPROCESSING)


@pytest.mark.processes
def test_pixels_do_not_depend_on_the_processes_that_read_them() -> None:
    def batches(processes: int) -> list[torch.Tensor]:
        parts = max(processes, 1)
        sampler = GlobalBatchSampler(30, 8, seed=1, num_parts=parts)
        images = ImageDataset(Pictures(30), PREPROCESSING, augmentation=DEIT)
        loader = train_loader(images, sampler, processes=processes, pin_memory=False)
        return [batch.images for batch in join_parts(loader, parts, CPU)]

    alone, three = batches(0), batches(3)
    assert [len(batch) for batch in alone] == [8, 8, 8, 6]
    for ours, theirs in zip(three, alone, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 7), (2, 8), (3, 100), (7, 1)])
def test_evaluation_sees_each_image_once_whatever_the_workers(
    world_size: int, batch_size: int
) -> None:
    indices = [
        index
        for rank in range(world_size)
        for batch in eval_loader(
            Pictures(97), PREPROCESSING, batch_size, rank=rank, world_size=world_size
        )
        for index in batch.indices.tolist()
    ]
    assert indices == list(range(97))


class Linear64(torch.nn.Module):
    """In float64, so that the order of sums is all that could differ."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        weight = torch.linspace(-1, 1, 3 * 32 * 32 * num_classes, dtype=torch.float64)
        self.weight = weight.view(num_classes, -1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.double().flatten(1) @ self.weight.T.sin() / 100


def drawn_array(num_classes: int = 10) -> ArrayTable:
    images = torch.randint(256, (97, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    return ArrayTable(images.byte(), np.arange(97) % num_classes)


NUMBERS_OF_IMAGES = [97, 1, 2, 3, 4, 5]


def scores(batch_size: int) -> list[tuple[dict[str, Measure], np.ndarray]]:
    """Of tables of so many images, in ten classes and in two."""
    found = [
        evaluate(
            Linear64(num_classes),
            drawn_array(num_classes).take(np.arange(number)),
            PREPROCESSING,
            num_classes=num_classes,
            batch_size=batch_size,
        )
        for num_classes in (10, 2)
        for number in NUMBERS_OF_IMAGES
    ]
    return [(score.measures, score.correct) for score in found]


def evaluate_in_group(rank: int, world_size: int, folder: str, batch_size: int) -> None:
    join_group(rank, world_size, folder)
    Path(folder, f"scores-{rank}").write_bytes(pickle.dumps(scores(batch_size)))
    dist.destroy_process_group()  # else its threads may outlive what they use, and abort


@pytest.mark.processes
@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 10), (3, 97), (4, 1)])
def test_a_score_is_the_same_whatever_the_workers_and_the_batch(
    tmp_path: Path, world_size: int, batch_size: int
) -> None:
    alone = scores(batch_size=32)
    logits = Linear64()(PREPROCESSING.normalize(drawn_array().images))
    for number, (measures, _) in zip(NUMBERS_OF_IMAGES, alone, strict=False):
        labels = torch.as_tensor(drawn_array().labels[:number])
        expected = F.cross_entropy(logits[:number], labels).item()
        assert measures["loss"].value == pytest.approx(expected, abs=1e-9)
    assert "auroc" in alone[len(NUMBERS_OF_IMAGES)][0]
    in_group(evaluate_in_group, world_size, str(tmp_path), batch_size)
    for rank in range(world_size):
        of_rank = pickle.loads(Path(tmp_path, f"scores-{rank}").read_bytes())
        for (measures, correct), (expected_measures, expected_correct) in zip(
            of_rank, alone, strict=True
        ):
            assert measures["loss"] == pytest.approx(expected_measures["loss"], abs=1e-7)
            exact = measures.keys() - {"loss"}
            assert {name: measures[name] for name in exact} == {
                name: expected_measures[name] for name in exact
            }
            assert np.array_equal(correct, expected_correct)


def test_a_shift_moves_whole_images_and_repeats_their_edge() -> None:
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8)
    padded = F.pad(images, (2, 2, 2, 2), mode="replicate")
    windows = {
        (i, padded[i, :, y : y + 8, x : x + 8].numpy().tobytes())
        for i in range(2)
        for y in range(5)
        for x in range(5)
    }
    seen = set()
    for seed in range(200):
        seeds = torch.tensor([7919 * seed, 104_729 * seed + 1])
        shifted = finish_augmentation(Augmentation(shift=2), images, seeds)
        seen |= {(i, shifted[i].contiguous().numpy().tobytes()) for i in range(2)}
    assert seen == windows
