"""Which split is what, and how the one that is missing is cut."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from psvit_ray.data.tables import ImageTable
from tests.helpers.drawn import drawn_folder
from tests.helpers.stored import as_rows, contents, load, write_by_datasets


@pytest.fixture(scope="module")
def split_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    there = tmp_path_factory.mktemp("drawn") / "splits"
    return drawn_folder(there, classes=4, splits={"train": 8, "val": 3, "test": 2})


def paths_of(table: ImageTable | None) -> set[str]:
    assert table is not None
    return {table.place(index)[1] for index in range(len(table))}


@pytest.mark.parametrize("word", ["val", "validation", "valid", "dev", "Validation"])
@pytest.mark.parametrize("stored_as", ["folder", "files", "folders of Parquet"])
def test_the_validation_split_is_the_holdout_unless_it_is_kept_as_test(
    word: str, stored_as: str, split_folder: Path, tmp_path: Path
) -> None:
    for split, name in {"train": "train", "val": word, "test": "test"}.items():
        if stored_as == "folder":
            shutil.copytree(split_folder / split, tmp_path / name)
        else:
            file = f"{name}-00000-of-00001" if stored_as == "files" else f"{name}/0000"
            write_by_datasets(split_folder / split, tmp_path / f"{file}.parquet")
    plain = load(tmp_path)
    assert plain.notes == ()
    sizes = [len(table) for table in (plain.train, plain.holdout, plain.test or ())]
    assert sizes == [4 * 8, 4 * 3, 4 * 2]
    assert contents(plain.train) == [image["bytes"] for image in as_rows(split_folder / "train")[0]]
    assert contents(plain.holdout) == [image["bytes"] for image in as_rows(split_folder / "val")[0]]
    assert contents(plain.test) == [image["bytes"] for image in as_rows(split_folder / "test")[0]]

    kept = load(tmp_path, val_as_test=True)
    assert contents(kept.test) == contents(plain.holdout)
    assert sorted(contents(kept.train) + contents(kept.holdout)) == sorted(contents(plain.train))
    assert kept.notes == (
        "the 8 images of test are not used: val is, in their place",
        f"hold-out: {len(kept.holdout)} of 32 training images, class by class",
    )


def test_without_a_validation_split_the_holdout_is_cut_from_train(
    split_folder: Path, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        shutil.copytree(split_folder / split, tmp_path / split)
    source = load(tmp_path)
    said = f"hold-out: {len(source.holdout)} of 32 training images, class by class"
    assert source.notes == (said,)
    assert {path.split("/")[0] for path in paths_of(source.test)} == {"test"}
    parts = paths_of(source.train), paths_of(source.holdout)
    assert parts[0] | parts[1] == {
        str(path.relative_to(tmp_path)) for path in tmp_path.glob("train/*/*.png")
    }
    with pytest.raises(ValueError, match=r"val_as_test must be off, as data .* has no split val"):
        load(tmp_path, val_as_test=True)


def test_the_cut_of_a_set_that_never_grows_is_fair_disjoint_and_seeded() -> None:
    def cut(**changes: Any) -> tuple[set[str], set[str], set[str]]:
        source = load("digits", **changes)
        for table in (source.train, source.holdout):
            shares = np.bincount(table.labels, minlength=10) / len(table)
            assert shares.max() - shares.min() < 0.01
        return paths_of(source.train), paths_of(source.holdout), paths_of(source.test)

    train, held, test = cut()
    assert cut() == (train, held, test)
    assert (len(train), len(held), len(test)) == (1077, 360, 360)
    assert not train & held
    other = cut(split_seed=4)
    assert other[1] != held
    assert other[2] == test
    part, same_held, same_test = cut(data_fraction=0.5)
    assert len(part) == 539
    assert part < train
    assert (same_held, same_test) == (held, test)


def test_the_cut_of_a_folder_is_disjoint_seeded_and_leaves_the_test_images_alone(
    split_folder: Path,
) -> None:
    def cut(**changes: Any) -> tuple[set[str], set[str], set[str]]:
        source = load(split_folder, val_as_test=True, **changes)
        for table in (source.train, source.holdout):
            assert np.bincount(table.labels, minlength=4).min() >= 1
            assert np.array_equal(table.labels, np.sort(table.labels))  # in the order of storage
        return paths_of(source.train), paths_of(source.holdout), paths_of(source.test)

    train, held, test = cut()
    assert cut() == (train, held, test)
    assert len(train | held) == len(train) + len(held) == 32
    assert len(test) == 12
    other = cut(split_seed=4)
    assert other[1] != held
    assert other[2] == test
    part, same_held, same_test = cut(data_fraction=0.5)
    assert part < train
    assert cut(data_fraction=0.3)[0] < part
    assert (same_held, same_test) == (held, test)


def test_a_class_of_one_image_has_none_in_the_holdout(tmp_path: Path) -> None:
    drawn_folder(tmp_path / "x", per_class=12)
    for path in sorted((tmp_path / "x" / "dotted-ring").iterdir())[1:]:
        path.unlink()
    source = load(tmp_path / "x")
    label = source.class_names.index("dotted-ring")
    held, train = len(source.holdout), len(source.train)
    assert held + train == 109
    assert (source.train.labels == label).sum() == 1
    assert (source.holdout.labels == label).sum() == 0
    said = "not held out, as it is the only image: that of 'dotted-ring'"
    cut = f"hold-out: {held} of 109 training images, class by class"
    assert source.notes == (cut, said)
    part = load(tmp_path / "x", data_fraction=0.01)
    assert np.bincount(part.train.labels, minlength=10).min() == 1
    some = f"training on {len(part.train)} of {train} images, class by class"
    assert part.notes == (cut, said, some)


@pytest.mark.parametrize("stored_as", ["folder", "table"])
def test_test_images_are_cut_once_whatever_else_is_drawn(stored_as: str, tmp_path: Path) -> None:
    data = folder = drawn_folder(tmp_path / "photos", classes=3, per_class=30, size=16)
    if stored_as == "table":
        data = tmp_path / "photos.parquet"
        write_by_datasets(folder, data)
    first = load(data, test_fraction=0.2)
    assert 8 < len(first.test or ()) < 30
    assert first.test
    assert {*first.test.labels} == {0, 1, 2}
    assert first.notes[0] == f"test: {len(first.test)} of 90 images, class by class"
    every = [paths_of(table) for table in (first.train, first.holdout, first.test)]
    assert sum(map(len, every)) == len(set.union(*every)) == 90
    for changes in ({"split_seed": 4}, {"holdout": 0.5}, {"data_fraction": 0.3}):
        assert paths_of(load(data, test_fraction=0.2, **changes).test) == every[2]
    assert load(data, test_fraction=0).test is None


def test_added_images_leave_the_test_images_in_the_test(tmp_path: Path) -> None:
    folder = drawn_folder(tmp_path / "photos", classes=3, per_class=30, size=16)
    before = paths_of(load(folder, test_fraction=0.2).test)
    for path in [*folder.glob("*/*.png")][::3]:
        shutil.copy(path, path.with_name(f"more-{path.name}"))
    now = load(folder, test_fraction=0.2)
    assert before < paths_of(now.test)


def test_a_test_split_that_is_there_is_the_test(split_folder: Path) -> None:
    whole = load(split_folder, test_fraction=0.5)
    assert paths_of(whole.test) == paths_of(load(split_folder).test)
