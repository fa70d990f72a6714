"""From a data set to the batches of one worker. What a step sees is a function of
(seed, epoch, step) alone: workers slice the *global* batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from psvit_ray.data.sources import Batch, ImageDataset


class GlobalBatchSampler(Sampler[list[int]]):
    """One worker's share of every global batch of an epoch; its position is the step.

    The last batch of an epoch may be smaller, and a share of it even empty.
    """

    def __init__(
        self, num_images: int, batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self.epoch))
        order = torch.randperm(self.num_images, generator=generator)
        for batch in order.split(self.batch_size):
            yield batch[self.rank :: self.world_size].tolist()


def train_loader(
    dataset: ImageDataset, sampler: GlobalBatchSampler, *, num_loaders: int, pin_memory: bool
) -> DataLoader[Batch]:
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # a map-style data set by shape, not by inheritance
        batch_sampler=sampler,
        collate_fn=_as_it_is,
        num_workers=num_loaders,
        persistent_workers=num_loaders > 0,
        pin_memory=pin_memory,
    )


def eval_loader(
    dataset: ImageDataset, batch_size: int, *, rank: int, world_size: int
) -> DataLoader[Batch]:
    """Images rank, rank + world_size, ...: every image once over all workers, none twice."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=range(rank, len(dataset), world_size),
        collate_fn=_as_it_is,
    )


def _as_it_is(batch: Any) -> Any:
    return batch  # `__getitems__` has already put the images together


def mix_seed(*parts: int) -> int:
    """One seed of several numbers, such as (seed, step, rank), without a pattern in common."""
    value = 0
    for part in parts:  # splitmix64, Steele et al. 2014
        value = (value + part + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        value ^= value >> 31
    return value


def random_shift(images: Tensor, most: int) -> Tensor:
    """Each image moved by up to `most` pixels along both axes, its edge repeated. (B, C, S, S)."""
    batch, _, height, width = images.shape
    moves = torch.randint(-most, most + 1, (2, batch, 1), device=images.device)
    rows = (torch.arange(height, device=images.device) + moves[0]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + moves[1]).clamp(0, width - 1)
    picked = torch.arange(batch, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[picked, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )
