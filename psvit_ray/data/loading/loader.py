"""DataLoaders: from a table of images to the batches of one worker.

The images of a step are a function of (seed, epoch, step) alone: workers share out the *global*
batch. The augmentation of an image is a function of (seed, epoch, image). Shapes: B images, C
channels, S the side of an image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, default_collate

from psvit_ray.data.images.decode import BadImage
from psvit_ray.data.images.options import Decoder
from psvit_ray.data.loading.augmentation import Augmentation
from psvit_ray.data.loading.seeds import mix_seed, mix_seeds
from psvit_ray.data.loading.transforms import Preprocessing, seed_generators, train_transform
from psvit_ray.data.tables import ArrayTable, ImageTable

PATIENCE_S = 600.0
"""Seconds to wait for a loader process, where torch would wait for ever: a process that gets no
shared memory loses its batch silently."""
Draws = np.ndarray
"""Positions of images in a table and the seeds of their augmentation, (n, 2) int64."""


class Batch(NamedTuple):
    """A worker's share of a batch, or the part of it that one loader process reads. Only images are
    a tensor: small ones too would go through the pipe as a file of shared memory each, which takes
    longer than an array."""

    images: Tensor
    """Images (B, C, S, S), uint8."""
    labels: np.ndarray
    """Classes (B,), int64."""
    indices: np.ndarray
    """Positions of the images in the table, (B,) int64."""
    seeds: np.ndarray
    """Seeds of the images' augmentation, (B,) int64; 0 in evaluation."""
    bad: tuple[tuple[int, str], ...] = ()
    """Images that could not be read and are left out: position in the table, reason."""


class GlobalBatchSampler(Sampler[Any]):
    """Draws one worker's share of every global batch of an epoch, in one part for each of its
    `num_parts` loader processes. Its position is the step.

    Args:
        num_images: Images of the table.
        batch_size: Images of the global batch; the last batch of an epoch may be smaller, and a
            worker's share of it empty.
        seed: Seed of the order and the augmentation.
        rank: This worker.
        world_size: Number of workers.
        num_parts: Parts of this worker's share.
        blocks: Block of storage of each image, (N,). The images of a batch are shared out so that
            a process reads few blocks; which images a batch has does not depend on it.
        window: Images that are shuffled with each other if there are blocks and more images: then
            blocks come in random order, and so many as hold `window` images are mixed.
        repeats: Views of each image in an epoch. The number of views stays that of the images
            (rounded up to a multiple of `repeats`), so that over `repeats` epochs each image comes
            equally often.
        balanced: Class of each image, (N,), if each class is to be drawn equally often: an epoch
            has as many draws as there are images, so that those of a rare class come several times
            and those of a frequent one in turn over the epochs. `repeats` must be 1.

    Raises ValueError if there are no images.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_parts: int = 1,
        blocks: np.ndarray | None = None,
        window: int = 1,
        repeats: int = 1,
        balanced: np.ndarray | None = None,
    ) -> None:
        if not num_images:
            raise ValueError("data has no training images")
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.rank, self.world_size, self.num_parts = rank, world_size, num_parts
        self._blocks, self._window, self._repeats = blocks, window, repeats
        self._classes: list[np.ndarray] | None = None
        if balanced is not None:
            self._classes = [np.flatnonzero(balanced == label) for label in np.unique(balanced)]
        self.epoch, self.first_step = 1, 0

    def set_position(self, epoch: int, first_step: int = 0) -> None:
        """Sets the epoch, counted from 1, and the step in it, counted from 0, at which the next
        iteration begins."""
        self.epoch, self.first_step = epoch, first_step

    @property
    def draws_per_epoch(self) -> int:
        """Images of an epoch, over all workers."""
        return -(-self.num_images // self._repeats) * self._repeats

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch."""
        return -(-self.draws_per_epoch // self.batch_size)

    def size_of(self, step: int) -> int:
        """Images of the global batch of step `step` of an epoch, counted from 0."""
        return min(self.batch_size, self.draws_per_epoch - step * self.batch_size)

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.first_step) * self.num_parts

    def __iter__(self) -> Iterator[Draws]:
        draws, place = self._order()
        for start in range(self.first_step * self.batch_size, len(draws), self.batch_size):
            batch = slice(start, start + self.batch_size)
            if place is None:
                share = draws[batch][self.rank :: self.world_size]
                share = share[np.argsort(share[:, 1])]  # the order of `join_parts`
            else:
                near = np.argsort(place[batch], kind="stable")
                share = np.array_split(draws[batch][near], self.world_size)[self.rank]
            yield from np.array_split(share, self.num_parts)

    def _order(self) -> tuple[Draws, np.ndarray | None]:
        """The draws of this epoch, and the position of each one's block in the order of blocks."""
        if self._classes is not None:
            return self._balanced_order(self._classes)
        cycle, part = divmod(self.epoch - 1, self._repeats)
        rng = np.random.Generator(np.random.PCG64(mix_seed(self.seed, cycle)))
        place = None
        if self._blocks is None or self.num_images <= self._window:
            order = rng.permutation(self.num_images)
            place = None if self._blocks is None else self._blocks[order]
        else:
            order, place = _order_of_blocks(self._blocks, self._window, rng)
        number = self.draws_per_epoch // self._repeats
        picked = np.arange(part * number, (part + 1) * number) % self.num_images
        picked = np.repeat(picked, self._repeats)
        images = order[picked].astype(np.int64)
        again = np.arange(len(images)) % self._repeats
        seeds = mix_seeds(mix_seed(self.seed, self.epoch), images * self._repeats + again)
        return np.stack([images, seeds], axis=1), None if place is None else place[picked]

    def _balanced_order(self, classes: list[np.ndarray]) -> tuple[Draws, np.ndarray | None]:
        """What `_order` returns, with each class drawn equally often. The draws of all epochs are
        one sequence, in which classes alternate, and the images of a class come in one random order
        after the other."""
        first = (self.epoch - 1) * self.num_images
        turns = np.arange(first, first + self.num_images) // len(classes)
        images = np.empty(self.num_images, dtype=np.int64)
        for number, members in enumerate(classes):
            own = np.arange((number - first) % len(classes), self.num_images, len(classes))
            rounds, places = divmod(turns[own], len(members))
            for round_ in np.unique(rounds):
                seed = mix_seed(self.seed, number, int(round_))
                order = np.random.Generator(np.random.PCG64(seed)).permutation(members)
                drawn = rounds == round_
                images[own[drawn]] = order[places[drawn]]
        # The draws of one image in an epoch are told apart by their turns.
        numbered = images + (turns - turns[0]) * self.num_images
        seeds = mix_seeds(mix_seed(self.seed, self.epoch), numbered)
        rng = np.random.Generator(np.random.PCG64(mix_seed(self.seed, self.epoch - 1)))
        blocks = None if self._blocks is None else self._blocks[images]
        if blocks is None or self.num_images <= self._window:
            order, place = rng.permutation(len(images)), blocks
            place = None if blocks is None else blocks[order]
        else:
            order, place = _order_of_blocks(blocks, self._window, rng)
        return np.stack([images[order], seeds[order]], axis=1), place


def _order_of_blocks(
    blocks: np.ndarray, window: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of images by blocks in random order, mixed within windows of whole blocks; and the
    position of each one's block in that order."""
    _, block, counts = np.unique(blocks, return_inverse=True, return_counts=True)
    turn = rng.permutation(len(counts))  # the position of each block
    before = np.zeros(len(counts), dtype=np.int64)
    in_turn = np.argsort(turn)
    before[in_turn] = np.cumsum(counts[in_turn]) - counts[in_turn]
    order = np.lexsort((rng.random(len(block)), before[block] // window))
    return order, turn[block][order]


def shuffle_advice(table: ImageTable, window: int) -> str:
    """Advice for the user if the classes of a table are in order and badly shuffled, else empty."""
    in_order = len(table) > 1 and np.mean(np.diff(table.labels) == 0) > 0.5
    if table.blocks is None or len(table) <= window or not in_order:
        return ""
    return (
        f"classes stand in order in these files, and {window:,} images are mixed at a time: "
        "psvit prepare writes them mixed, --shuffle-window mixes more"
    )


class ImageDataset:
    """A table as a data set for torch's DataLoader, which reads whole batches by `__getitems__`."""

    def __init__(
        self,
        table: ImageTable,
        preprocessing: Preprocessing,
        *,
        augmentation: Augmentation | None = None,
        decoder: Decoder = "pil",
    ) -> None:
        self._table, self._preprocessing, self._decoder = table, preprocessing, decoder
        self._labels = np.asarray(table.labels, dtype=np.int64)
        self._none = torch.empty(0, preprocessing.in_chans, *[preprocessing.img_size] * 2).byte()
        self._augmented = augmentation is not None
        self._transform = (
            train_transform(augmentation, preprocessing)
            if augmentation
            else preprocessing.transform()
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitems__(self, draws: Draws | Sequence[int]) -> Batch:
        """The batch of `draws`, which are pairs of position and seed or, in evaluation, positions;
        it may be empty."""
        pairs = np.asarray(draws, dtype=np.int64)
        indices, seeds = pairs.T if pairs.ndim == 2 else (pairs, np.zeros_like(pairs))
        if isinstance(self._table, ArrayTable):
            images = self._table.images[torch.from_numpy(indices)]
            return Batch(images, self._labels[indices], indices, seeds)
        pictures, good, bad = [], [], []
        for number, (index, seed) in enumerate(zip(indices.tolist(), seeds.tolist(), strict=True)):
            try:
                pictures.append(self._load(index, seed))
                good.append(number)
            except BadImage as error:  # OSError is the storage, not the image
                bad.append((index, str(error)))
        kept = indices[good]
        # In a process of a loader, torch's own puts them into shared memory at once.
        images = default_collate(pictures) if pictures else self._none
        return Batch(images, self._labels[kept], kept, seeds[good], tuple(bad))

    def _load(self, index: int, seed: int) -> Tensor:
        picture = self._preprocessing.picture(self._table.read(index), self._decoder)
        if self._augmented:
            seed_generators(seed)
        return self._transform(picture)


def num_parts(table: ImageTable, processes: int) -> int:
    """Number of parts in which the shares of a table's batches are read: if it has blocks of
    storage, process i reads part i of every step, so that it sees the same blocks again."""
    return 1 if table.blocks is None else max(processes, 1)


def train_loader(
    images: ImageDataset, sampler: GlobalBatchSampler, *, pin_memory: bool, processes: int
) -> DataLoader[Batch]:
    """A DataLoader of the parts of each step, one after the other; `join_parts` joins them.
    `processes` are its workers, 0 loads in this process."""
    return DataLoader(
        images,  # type: ignore[arg-type]  # a map-style data set by shape, not by inheritance
        batch_sampler=sampler,
        collate_fn=_as_it_is,
        num_workers=processes,
        persistent_workers=processes > 0,
        timeout=PATIENCE_S if processes else 0,
        pin_memory=pin_memory,
    )


def join_parts(parts: DataLoader[Batch], num_parts: int, device: torch.device) -> Iterator[Batch]:
    """Batches with images on `device`, each joined from `num_parts` parts. Images are in the order
    of their seeds, whichever process read them."""
    iterator = iter(parts)
    for first in iterator:
        share = [first, *(next(iterator) for _ in range(num_parts - 1))]
        moved = [part.images.to(device, non_blocking=True) for part in share]
        small = [
            np.concatenate(arrays) for arrays in zip(*(part[1:4] for part in share), strict=True)
        ]
        order = small[-1].argsort()
        if np.array_equal(order, np.arange(len(order))):
            images = moved[0] if num_parts == 1 else torch.cat(moved)
        else:
            rows = [row for images in moved for row in images.unbind()]
            images = torch.stack([rows[i] for i in order])  # 15 times as fast as an index
        labels, indices, seeds = (array[order] for array in small)
        bad = tuple(image for part in share for image in part.bad)
        yield Batch(images, labels, indices, seeds, bad)


def eval_loader(
    table: ImageTable,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    processes: int = 0,
    decoder: Decoder = "pil",
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """A DataLoader of this worker's contiguous share of a table, in its order: over all workers
    every image comes once. `processes` are its workers, 0 loads in this process."""
    return DataLoader(
        ImageDataset(table, preprocessing, decoder=decoder),  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=contiguous_share(len(table), rank, world_size),
        collate_fn=_as_it_is,
        num_workers=processes,
        pin_memory=pin_memory,
    )


def contiguous_share(length: int, rank: int, world_size: int) -> range:
    """Positions of worker `rank`'s share of `length` images."""
    return range(rank * length // world_size, (rank + 1) * length // world_size)


def _as_it_is(batch: Any) -> Any:
    return batch  # `__getitems__` has collated the images
