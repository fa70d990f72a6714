"""Words by which splits are recognised, and how a missing split is cut from the training images."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np
import pyarrow.compute as pc

from psvit_ray.data.splits.layout import Split
from psvit_ray.data.tables import StoredTable

WORDS: dict[Split, tuple[str, ...]] = {
    "train": ("training", "train"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("testing", "test", "evaluation", "eval"),
}
"""Words for splits in the names of folders and files: the SPLIT_KEYWORDS of the `datasets` library,
in which `eval` is a test split. Of two words that begin alike the longer comes first."""
SPLIT_OF = {word: split for split, words in WORDS.items() for word in words}

TEST_SEED = 20210808
"""Seed of test images that are cut, which are the same for every configuration."""


def splits_in(name: str) -> set[Split]:
    """Splits whose words are in the name of a folder or file: seg_train, TestImages, val2017.

    A word ends at any character but a letter, and at a capital after a small letter: contest,
    latest and trainers name no splits.
    """
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    return {SPLIT_OF[word.lower()] for word in words if word.lower() in SPLIT_OF}


def look_alikes(names: Iterable[str]) -> dict[Split, str]:
    """Names, by split, that differ only in a word for a split within a longer word, such as
    trainset and testset; empty if there are none."""
    alike: dict[str, dict[Split, str]] = {}
    for name in names:
        bare = re.sub(r"\d", "", name.lower())
        if match := re.search("|".join(SPLIT_OF), bare):
            frame = f"{bare[: match.start()]}*{bare[match.end() :]}"
            alike.setdefault(frame, {}).setdefault(SPLIT_OF[match[0]], name)
    return next((by_split for by_split in alike.values() if len(by_split) > 1), {})


def splits_advice(by_split: Mapping[Split, str]) -> str:
    """Advice how to give an ambiguous layout, with the names that look like a split."""
    parts = [f"{split}={by_split.get(split, 'NAME')}" for split in WORDS if split in by_split]
    if "train" not in by_split:
        parts.insert(0, "train=NAME")
    return f"say --splits {','.join(parts)}, or --splits train=. where none is a split"


def described_places(by_split: Mapping[Split, Collection[str]]) -> list[str]:
    """A note of the folders or files of each split, unless all have plain names."""
    plain = re.compile(r"(train|val|validation|valid|dev|test)(-\d+-of-\d+[^/]*)?(\.\w+)?(/.*)?")
    if all(plain.fullmatch(place.lower()) for places in by_split.values() for place in places):
        return []
    parts = []
    for split, places in by_split.items():
        first, *others = places
        parts.append(f"{split} is {first}" + (f" and {len(others):,} more" if others else ""))
    return [f"splits: {', '.join(parts)}"]


def cut(table: StoredTable, size: float, seed: int, field: str) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a fixed table into two stratified parts, as positions in the order of storage; `size` is
    the number or the fraction of images in the second.

    A class with a single image is in the first. Raises ValueError, naming `field`, if a part would
    have fewer images than there are classes.
    """
    # Here, as reading alone needs no scikit-learn, which takes 100 MiB.
    from sklearn.model_selection import train_test_split

    everything = np.arange(len(table))
    single = np.bincount(table.labels)[table.labels] == 1
    several = everything[~single]
    classes = len(np.unique(table.labels[several]))
    try:
        first, second = train_test_split(
            several, test_size=size, random_state=seed, stratify=table.labels[several]
        )
    except ValueError:
        raise ValueError(
            f"{field} must leave at least an image for each class on either side, got {size:g} of "
            f"{len(several):,} images of {classes:,} classes"
        ) from None
    return np.sort(np.concatenate([first, everything[single]])), np.sort(second)


def drawn(table: StoredTable, class_names: Sequence[str], size: float, seed: int) -> np.ndarray:
    """Draws a part of a table that may grow, as (N,) bool: each image with probability `size`, by a
    hash of its place, class and seed. So no image changes sides when others are added or removed,
    and a larger part holds a smaller one.

    The image of lowest hash of each class is always drawn.
    """
    hashes = _hashes(table, class_names, seed, "data_fraction")
    lowest, _ = _ends_of_classes(hashes, table.labels)
    chosen = hashes < size
    chosen[lowest] = True
    return chosen


def held_out(
    table: StoredTable,
    class_names: Sequence[str],
    size: float,
    seed: int,
    purpose: str = "holdout",
) -> np.ndarray:
    """Draws the hold-out, or the test images, of a table that may grow, as (N,) bool: as `drawn`,
    with other hashes for each `purpose`. The image of highest hash of each class is never held out,
    so that one is left to train on, and neither is the only image of a class.

    In a class of so few images that all would be held out, that image may change sides when others
    are added. No rule avoids it, as a class of one image is trained on and a class of two is split.

    Raises ValueError if no class has two images.
    """
    hashes = _hashes(table, class_names, seed, purpose)
    lowest, highest = _ends_of_classes(hashes, table.labels)
    chosen = hashes < size
    chosen[lowest] = True
    chosen[highest] = False
    if not chosen.any():
        raise ValueError(
            f"{purpose} must be cut from a class of at least 2 images, got 1 image of every class"
        )
    return chosen


def _hashes(table: StoredTable, class_names: Sequence[str], seed: int, purpose: str) -> np.ndarray:
    """Hash of each image from 0 to 1, (N,) float64: a function of seed, purpose, class and
    place."""
    prefixes = [
        hashlib.blake2b(json.dumps([seed, purpose, name]).encode(), digest_size=16).digest()
        for name in class_names
    ]
    # The hub's files are all renamed when one is added: train-00000-of-00008.parquet.
    places = pc.replace_substring_regex(
        table.listing()["place"], rb"-of-\d+(\.parquet:\d+)$", rb"\1"
    )
    digests = [
        hashlib.blake2b(prefixes[label] + place, digest_size=8).digest()
        for label, place in zip(table.labels.tolist(), places.to_pylist(), strict=True)
    ]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.float64) / 2**64


def _ends_of_classes(hashes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the images of lowest and of highest hash of each class."""
    order = np.lexsort((hashes, labels))  # class by class, from the lowest hash up
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    return order[starts], order[np.append(starts[1:], len(order)) - 1]
