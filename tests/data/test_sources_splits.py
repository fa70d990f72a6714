"""Which folders and files are which split: recognised, said by the user, or refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.sources.load_data import read_data
from psvit_ray.data.splits.layout import DataLayout
from psvit_ray.data.splits.splits import splits_in
from tests.helpers.stored import folder_of, write_parquet

IMAGES = [{"bytes": bytes([number]), "path": f"{number}.png"} for number in range(6)]


def split_folders(root: Path, *splits: str, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    return folder_of(root, *(f"{split}/{name}/1.png" for split in splits for name in classes))


def where(splits: Source) -> dict[str, set[str]]:
    """The folders or files that each split's images are in."""
    return {
        split: {
            re.sub(r"/[^/]+/[^/]+[.]png$|:.*", "", table.place(i)[1]) for i in range(len(table))
        }
        for split, table in splits.tables.items()
    }


@pytest.mark.parametrize(
    ("name", "splits"),
    [
        ("train", {"train"}),
        ("Training", {"train"}),
        ("TRAIN", {"train"}),
        ("seg_train", {"train"}),
        ("TrainImages", {"train"}),
        ("train_set", {"train"}),
        ("train1", {"train"}),
        ("train-00000-of-00008-a1b2c3.parquet", {"train"}),
        ("cifar10-test.parquet", {"test"}),
        ("eval", {"test"}),
        ("my evaluation", {"test"}),
        ("val2017", {"val"}),
        ("dev", {"val"}),
        ("x.valid", {"val"}),
        ("train_val", {"train", "val"}),
        ("contest", set()),
        ("latest", set()),
        ("trainers", set()),
        ("trainset", set()),
        ("interval", set()),
        ("devil", set()),
        ("medieval", set()),
    ],
)
def test_words_of_splits_are_those_of_the_datasets_library(name: str, splits: set[str]) -> None:
    assert splits_in(name) == splits


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("seg_train", "seg_test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train_images", "test_images"),
        ("train_set", "test_set"),
        ("TrainData", "TestData"),
        ("images/train", "images/test"),
        ("archive/chest xray/train", "archive/chest xray/test"),
        ("training", "evaluation"),
        ("train1", "eval1"),
    ],
)
def test_folders_that_are_splits_are_recognised_and_named(
    train: str, test: str, tmp_path: Path
) -> None:
    splits = read_data(str(split_folders(tmp_path, train, test)))
    assert splits.class_names == ("cat", "dog")
    assert where(splits) == {"train": {train}, "test": {test}}
    assert splits.notes == (f"splits: train is {train}/, test is {test}/",)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("my_train", "my_test"),
        ("training", "testing"),
        ("cifar10-train", "cifar10-test"),
        ("train1", "test1"),
        ("data/training/0000", "data/eval/0000"),
        ("a/x-train-0", "a/x-evaluation-0"),
    ],
)
def test_files_that_are_splits_are_recognised_and_named(
    train: str, test: str, tmp_path: Path
) -> None:
    for name in (train, test):
        write_parquet(tmp_path / f"{name}.parquet", IMAGES, [0, 1] * 3)
    splits = read_data(str(tmp_path))
    train, test = f"{train}.parquet", f"{test}.parquet"
    assert where(splits) == {"train": {train}, "test": {test}}
    assert splits.notes == (f"splits: train is {train}, test is {test}",)


@pytest.mark.parametrize(
    "classes",
    [
        ("trainers", "boots"),
        ("contest", "latest"),
        ("bus", "car", "train"),
        ("oval", "devil"),
        ("cat/2020", "dog/2021"),
    ],
)
def test_classes_stay_classes(classes: tuple[str, ...], tmp_path: Path) -> None:
    splits = read_data(str(folder_of(tmp_path, *(f"{name}/1.png" for name in classes))))
    assert splits.class_names == tuple(sorted(name.split("/")[0] for name in classes))
    assert list(splits.tables) == ["train"]
    train = "train/ is a class, as it holds images and no class folders"
    assert splits.notes == ((train,) if "train" in classes else ())


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (
            ["train/a/1.png", "train/b/1.png", "extra/a/1.png"],
            "data must hold splits or classes, got train/ beside extra/ in HERE; "
            "say --splits train=train, or --splits train=. where none is a split",
        ),
        (
            ["seg_train/a/1.png", "seg_test/a/1.png", "seg_pred/1.png"],
            "got seg_test/ beside seg_pred/ in HERE; say --splits train=seg_train,test=seg_test",
        ),
        (["a/1.png", "b/1.png", "test/1.png"], "got test/ beside a/ in HERE; say --splits train="),
        (
            ["train1/a/1.png", "train2/a/1.png", "test1/a/1.png"],
            "data must name each split once, got 'test1', 'train1', 'train2' in HERE; "
            "say --splits train=train1,test=test1",
        ),
        (
            ["train_val/a/1.png", "test/a/1.png"],
            "data must have folders that are one split each, got train_val/ in HERE; "
            "say --splits train=NAME,test=test",
        ),
        (
            ["trainset/a/1.png", "testset/a/1.png"],
            "data must hold splits or classes, got testset/ beside trainset/ in HERE; "
            "say --splits train=trainset,test=testset",
        ),
        (["mytrain/1.png", "mytest/1.png"], "say --splits train=mytrain,test=mytest"),
        (["train/1.png", "test/1.png"], "got images only in HERE/test; if that is a class"),
        (
            ["cat/train/1.png", "cat/test/1.png", "dog/train/1.png"],
            "data must hold splits that hold classes, got classes that hold splits, cat/test/ and "
            "cat/train/, in HERE; say --splits train=. to train on all",
        ),
    ],
)
def test_folders_that_may_be_splits_are_refused_with_what_to_say(
    paths: list[str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read_data(str(folder_of(tmp_path, *paths)))
    assert said.replace("HERE", str(tmp_path)) in str(error.value)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train", "extra"], "got train.parquet beside extra.parquet in HERE; say --splits train="),
        (["train-test", "x"], "one split for each file, got train-test.parquet in HERE"),
        (["test/train-0", "test/x-0"], "one split for each file, got test/train-0.parquet"),
        (["trainset", "testset"], "say --splits train=trainset.parquet,test=testset.parquet"),
        (["train", "val", "dev"], "name each split in one way, got 'dev.parquet', 'val.parquet'"),
    ],
)
def test_files_that_may_be_splits_are_refused_with_what_to_say(
    names: list[str], said: str, tmp_path: Path
) -> None:
    for name in names:
        write_parquet(tmp_path / f"{name}.parquet", IMAGES, [0, 1] * 3)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read_data(str(tmp_path))
    assert said.replace("HERE", str(tmp_path)) in str(error.value)


@pytest.mark.parametrize(
    ("splits", "places"),
    [
        ("train=trainset,test=testset", {"train": {"trainset"}, "test": {"testset"}}),
        ("train=t*set/,val=extra", {"train": {"trainset", "testset"}, "val": {"extra"}}),
        ("train=trainset,train=extra", {"train": {"trainset", "extra"}}),
    ],
)
def test_what_the_user_says_is_which_split(
    splits: str, places: dict[str, set[str]], tmp_path: Path
) -> None:
    layout = DataLayout(splits=splits)
    split_folders(tmp_path / "folders", "trainset", "testset", "extra")
    stored = read_data(str(tmp_path / "folders"), layout)
    assert where(stored) == places
    assert stored.class_names == ("cat", "dog")
    for name in ("trainset", "testset", "extra"):
        write_parquet(tmp_path / "files" / name / "0.parquet", IMAGES, [0, 1] * 3)
    stored = read_data(str(tmp_path / "files"), layout)
    files = {split: {f"{name}/0.parquet" for name in names} for split, names in places.items()}
    assert where(stored) == files
    unused = 3 - len(set().union(*places.values()))
    assert any(f"{unused} files are in no split" in note for note in stored.notes) == bool(unused)


def test_what_is_said_may_lie_in_a_folder_of_its_own(tmp_path: Path) -> None:
    split_folders(tmp_path, "seg_train/seg_train", "seg_test/seg_test", "seg_pred/seg_pred")
    stored = read_data(str(tmp_path), DataLayout(splits="train=seg_train,test=seg_test"))
    assert where(stored) == {"train": {"seg_train/seg_train"}, "test": {"seg_test/seg_test"}}
    assert "2 of 6 images are in no split" in stored.notes


def test_with_a_point_all_is_one_split(tmp_path: Path) -> None:
    folder_of(tmp_path / "folders", "exam/1.png", "test/1.png", "quiz/1.png")
    everything = DataLayout(splits="train=.")
    stored = read_data(str(tmp_path / "folders"), everything)
    assert stored.class_names == ("exam", "quiz", "test")
    assert len(stored.train) == 3
    for name in ("train", "test"):
        write_parquet(tmp_path / f"files/{name}.parquet", IMAGES, [0, 1] * 3)
    assert len(read_data(str(tmp_path / "files"), everything).train) == 12


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        ("train=trian", "splits must name folders of the data, got 'trian' in HERE; nearest is"),
        ("train=train,test=tr*", "splits must name each folder once, got 'train' and 'train'"),
        ("train=.,test=test", "splits must name each folder once, got '.' and 'test'"),
        ("seg_train", "splits must be SPLIT=FOLDER,SPLIT=FOLDER with 'train', 'val', 'test'"),
        ("holdout=x", "got 'holdout=x'"),
        ("train=", "got 'train='"),
    ],
)
def test_splits_that_cannot_be_are_refused(splits: str, said: str, tmp_path: Path) -> None:
    split_folders(tmp_path, "train", "test")
    with pytest.raises(ValueError) as error:  # noqa: PT011
        read_data(str(tmp_path), DataLayout(splits=splits))
    assert said.replace("HERE", str(tmp_path)) in str(error.value)
    with pytest.raises(ValueError, match="splits must be empty with data 'digits'"):
        read_data("digits", DataLayout(splits="train=x"))


def test_a_class_that_a_split_lacks_is_said_and_one_that_train_lacks_is_refused(
    tmp_path: Path,
) -> None:
    folder_of(tmp_path, "train/ant/1.png", "train/bee/1.png", "train/cow/", "test/bee/1.png")
    splits = read_data(str(tmp_path))
    assert splits.class_names == ("ant", "bee", "cow")
    assert splits.test is not None
    assert splits.test.labels.tolist() == [1]
    assert splits.notes == (
        "train has no image of class 'cow'",
        "test has no image of class 'ant', 'cow'",
    )
    folder_of(tmp_path, "test/bees/1.png")
    with pytest.raises(ValueError, match="got only in test: 'bees'; nearest is 'bee'"):
        read_data(str(tmp_path))


def test_names_that_are_equal_in_unicode_are_one_class(tmp_path: Path) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    folder_of(
        tmp_path,
        *(f"train/{name}/{name}.png" for name in (composed, decomposed, "tea")),
        f"test/{decomposed}/1.png",
    )
    splits = read_data(str(tmp_path))
    assert splits.class_names == (composed, "tea")
    assert splits.train.labels.tolist() == [0, 0, 1]
    assert splits.test is not None
    assert splits.test.labels.tolist() == [0]


def test_classes_that_differ_in_case_or_spaces_only_are_said(tmp_path: Path) -> None:
    splits = read_data(str(folder_of(tmp_path, "Cat/1.png", "cat/2.png", "dog /1.png")))
    assert splits.class_names == ("Cat", "cat", "dog ")
    assert splits.notes == ("classes differ in case or spaces only: 'Cat', 'cat'",)
