"""Which images are trained on, ranked by, and touched once.

Every kind of data gives the splits that it stores as `Splits`; what is missing is cut from the
training images, the same way for every kind.
"""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, TypeVar, cast

import numpy as np

from psvit_ray.data.tables import ImageTable

Split = Literal["train", "val", "test"]
WORDS: dict[Split, tuple[str, ...]] = {
    "train": ("training", "train"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("testing", "test", "evaluation", "eval"),
}
"""The words by which folders and files name their split: the SPLIT_KEYWORDS of the `datasets`
library, to which `eval` is a test split. Of two that begin alike the longer comes first."""
SPLIT_OF = {word: split for split, words in WORDS.items() for word in words}

Table = TypeVar("Table", bound=ImageTable)


def splits_in(name: str) -> set[Split]:
    """The splits whose words stand in the name of a folder or file: seg_train, TestImages, val2017.

    A word ends at whatever is no letter, and at a capital after a small letter: contest, latest and
    trainers are no splits.
    """
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name))
    return {SPLIT_OF[word.lower()] for word in words if word.lower() in SPLIT_OF}


def look_alikes(names: Iterable[str]) -> dict[Split, str]:
    """Names, by split, that are the same but for the word for a split within a longer word, such
    as trainset and testset; empty where there are none."""
    alike: dict[str, dict[Split, str]] = {}
    for name in names:
        bare = re.sub(r"\d", "", name.lower())
        if match := re.search("|".join(SPLIT_OF), bare):
            frame = f"{bare[: match.start()]}*{bare[match.end() :]}"
            alike.setdefault(frame, {}).setdefault(SPLIT_OF[match[0]], name)
    return next((by_split for by_split in alike.values() if len(by_split) > 1), {})


def advice(by_split: Mapping[Split, str]) -> str:
    """How a user says what was not clear, with the names that look like a split."""
    parts = [f"{split}={by_split.get(split, 'NAME')}" for split in WORDS if split in by_split]
    if "train" not in by_split:
        parts.insert(0, "train=NAME")
    return f"say --splits {','.join(parts)}, or --splits train=. where none is a split"


@dataclass(frozen=True)
class Splits:
    """Data as it is stored, nothing cut. Fields as in `Source`."""

    name: str
    class_names: tuple[str, ...]
    train: ImageTable
    val: ImageTable | None = None
    test: ImageTable | None = None
    img_size: int | None = None
    in_chans: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        class_names: Mapping[Split, tuple[str, ...]],
        tables: Mapping[Split, ImageTable],
        notes: Collection[str],
    ) -> Splits:
        """Of tables by split, whose labels are numbers of the classes that each names. The classes
        are those of train; another split may lack some, or have them in another order. A split
        alone is the whole of the data, whatever it is called.

        Raises ValueError where a split is missing or empty, or has a class that train lacks.
        """
        notes = [*notes]
        for split, table in tables.items():
            if not len(table):
                raise ValueError(f"data must have images in every split, got none in {split}")
        if len(tables) == 1:
            (only,) = tables
            notes += [f"the only split, {only}, is all of it"] if only != "train" else []
            class_names, tables = {"train": class_names[only]}, {"train": tables[only]}
        elif "train" not in tables:
            raise ValueError(f"data must have a split train, got only {', '.join(tables)}")
        classes = tuple(dict.fromkeys(class_names["train"]))
        same: dict[Split, ImageTable] = {}
        for split, table in tables.items():
            numbers = numbers_in(
                classes, class_names[split], rule="the same classes in every split", where=split
            )
            labels = numbers[table.labels]
            if not np.array_equal(labels, table.labels):
                table = replace(cast(Any, table), labels=labels)
            same[split] = table
            lacking = np.bincount(labels, minlength=len(classes)) == 0
            if lacking.any() and len(classes) > 1:
                names = [name for name, no in zip(classes, lacking, strict=True) if no]
                notes.append(f"{split} has no image of class {listed(names)}")
        notes += _near_names(classes)
        val, test = same.get("val"), same.get("test")
        return cls(name, classes, same["train"], val, test, notes=tuple(notes))


def class_name(text: str) -> str:
    """The name of a class as it is compared, shown and written down: in Unicode's composed form, as
    a Mac decomposes names of folders, and with bytes that are not UTF-8 escaped."""
    return unicodedata.normalize("NFC", os.fsencode(text).decode("utf-8", "backslashreplace"))


def numbers_in(
    known: tuple[str, ...], names: tuple[str, ...], *, rule: str, where: str
) -> np.ndarray:
    """(K,) int64: the number among those that are known of each class. Raises ValueError, which
    says the rule and names the nearest, for a class that only `where` has."""
    number = {class_name(name): number for number, name in enumerate(known)}
    unknown = [name for name in names if class_name(name) not in number]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.0)
        hint = f"; nearest is {near[0]!r}" if near else ""
        raise ValueError(f"data must have {rule}, got only in {where}: {listed(unknown)}{hint}")
    return np.array([number[class_name(name)] for name in names], dtype=np.int64)


def described_places(by_split: Mapping[Split, Collection[str]]) -> list[str]:
    """What to say of the folders or files that are splits, unless all are plainly called so."""
    plain = re.compile(r"(train|val|validation|valid|dev|test)(-\d+-of-\d+[^/]*)?(\.\w+)?(/.*)?")
    if all(plain.fullmatch(place.lower()) for places in by_split.values() for place in places):
        return []
    parts = []
    for split, places in by_split.items():
        first, *others = places
        parts.append(f"{split} is {first}" + (f" and {len(others):,} more" if others else ""))
    return [f"splits: {', '.join(parts)}"]


def _near_names(names: tuple[str, ...]) -> list[str]:
    """What to say of classes that differ in case or spaces only."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault("".join(name.casefold().split()), []).append(name)
    several = [name for group in alike.values() if len(group) > 1 for name in group]
    return [f"classes differ in case or spaces only: {listed(several)}"] if several else []


def listed(names: Collection[str], most: int = 5) -> str:
    shown = ", ".join(map(repr, islice(names, most)))
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def cut(table: Table, size: float, seed: int, field: str) -> tuple[Table, Table]:
    """Two parts with the classes in equal shares, in the order of the table, which is that of
    storage; the second has `size`, a count or a fraction.

    A class with a single image stays whole in the first. Raises ValueError, naming `field`, where
    a part would have fewer images than there are classes.
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
    first = np.concatenate([first, everything[single]])
    return table.take(np.sort(first)), table.take(np.sort(second))
