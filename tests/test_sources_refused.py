"""Data that cannot be used is refused with one line: what must be, and what came."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from psvit_ray.data import sources
from psvit_ray.data.images import BadImage
from tests.drawn import drawn_folder
from tests.stored import IMAGE, as_rows, load, write_by_datasets, write_parquet

IMAGES = [{"bytes": bytes([number]), "path": f"{number}.png"} for number in range(12)]
LABELS = [number % 3 for number in range(12)]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def no_images(there: Path) -> None:
    touch(there / "cat" / "notes.txt")


def images_only(there: Path) -> None:
    touch(there / "1.png", there / "2.png")


def one_class(there: Path) -> None:
    touch(there / "cat" / "1.png", there / "cat" / "2.png")


def images_beside_classes(there: Path) -> None:
    touch(there / "cat" / "1.png", there / "dog" / "1.png", there / "2.png")


def empty_class(there: Path) -> None:
    touch(there / "cat" / "1.png", there / "dog" / "1.png")
    (there / "owl").mkdir()


def splits_beside_classes(there: Path) -> None:
    touch(there / "train" / "cat" / "1.png", there / "train" / "dog" / "1.png")
    touch(there / "owl" / "1.png")


def empty_split(there: Path) -> None:
    touch(there / "train" / "cat" / "1.png", there / "train" / "dog" / "1.png")
    (there / "val").mkdir()


def empty_class_of_a_split(there: Path) -> None:
    touch(there / "train" / "cat" / "1.png", there / "train" / "dog" / "1.png")
    touch(there / "val" / "cat" / "1.png", there / "val" / "dog" / "notes.txt")


def images_in_a_split(there: Path) -> None:
    touch(there / "train" / "cat" / "1.png", there / "train" / "2.png")


def a_split_twice(there: Path) -> None:
    for split in ("train", "val", "valid"):
        touch(there / split / "cat" / "1.png", there / split / "dog" / "1.png")


def no_train(there: Path) -> None:
    for split in ("val", "test"):
        touch(there / split / "cat" / "1.png", there / split / "dog" / "1.png")


def other_classes(there: Path) -> None:
    touch(there / "train" / "cat" / "1.png", there / "train" / "dog" / "1.png")
    touch(there / "val" / "cat" / "1.png", there / "val" / "Dog" / "1.png")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (no_images, "data must be a folder of class folders, got one without images: HERE"),
        (images_only, "data must be a folder of class folders, got images only in HERE"),
        (one_class, "data must have at least 2 classes, got 'cat'"),
        (
            images_beside_classes,
            "data must be a folder of class folders, got the image 2.png beside them in HERE",
        ),
        (empty_class, "data must have images of every class, got none of 'owl' in HERE"),
        (splits_beside_classes, "data must hold splits or classes, got train/ beside owl/"),
        (empty_split, "data must have images in every split, got none in val"),
        (
            empty_class_of_a_split,
            "data must have images of every class, got none of 'dog' in HERE/val",
        ),
        (
            images_in_a_split,
            "data must be a folder of class folders, got the image train/2.png beside them in "
            "HERE/train",
        ),
        (a_split_twice, "data must name each split once, got 'train', 'val', 'valid'"),
        (no_train, "data must have a split train, got only val, test"),
        (
            other_classes,
            "data must have the same classes in every split, got only in train: 'dog'; only in "
            "val: 'Dog'",
        ),
    ],
)
def test_a_folder_that_is_not_one_of_classes_is_refused(
    make: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    make(tmp_path / "here")
    with pytest.raises(ValueError, match=re.escape(said.replace("HERE", str(tmp_path / "here")))):
        load(tmp_path / "here")


@pytest.mark.parametrize(
    ("labels", "kinds", "said"),
    [
        (
            [0, 1, 2, None] * 3,
            {},
            "data must have a label for every image, got none in row 3 of x.parquet in HERE",
        ),
        (
            [0, 1, 2, 7] * 3,
            {},
            "data must have labels 0 to 3 for 4 classes without names, got 0 to 7",
        ),
        (
            [0, 1, 2, -1] * 3,
            {},
            "data must have labels 0 to 3 for 4 classes without names, got -1 to 2",
        ),
        (
            ["a", "b", "c"] * 4,
            {"label": pa.string()},
            "data must have integers as label, got string in x.parquet in HERE",
        ),
        (
            [0.5] * 12,
            {"label": pa.float32()},
            "data must have integers as label, got float in x.parquet in HERE",
        ),
        (
            LABELS,
            {"image": pa.struct([("path", pa.string())])},
            "data must have the columns image (struct of bytes and path, or bytes) and label, got "
            "image: struct<path: string>, label: int64 in x.parquet in HERE",
        ),
        ([0] * 12, {}, "data must have at least 2 classes, got '0'"),
    ],
)
def test_parquet_with_other_labels_or_columns_is_refused(
    labels: list[Any], kinds: dict[str, Any], said: str, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "x.parquet", IMAGES, labels, **kinds)
    with pytest.raises(ValueError, match=re.escape(said.replace("HERE", str(tmp_path)))):
        load(tmp_path)


def test_parquet_without_the_columns_says_which_it_has(tmp_path: Path) -> None:
    table = pa.table({"img": pa.array(IMAGES, IMAGE), "fine_label": LABELS})
    pq.write_table(table, tmp_path / "x.parquet")
    said = "got img: struct<bytes: binary, path: string>, fine_label: int64 in x.parquet in "
    with pytest.raises(ValueError, match=re.escape(said)):
        load(tmp_path / "x.parquet")


def test_labels_outside_the_names_are_refused(tmp_path: Path) -> None:
    drawn_folder(tmp_path / "images", classes=3, per_class=4)
    write_by_datasets(tmp_path / "images", tmp_path / "train.parquet")
    images, labels = as_rows(tmp_path / "images")
    write_parquet(tmp_path / "val.parquet", images, [*labels[:-1], 3])
    shutil.rmtree(tmp_path / "images")
    said = (
        "data must have labels 0 to 2, as it has 3 classes, got 3 in row 11 of val.parquet in "
        f"{tmp_path}"
    )
    with pytest.raises(ValueError, match=re.escape(said)):
        load(tmp_path)


def test_files_that_disagree_are_refused(tmp_path: Path) -> None:
    for number, classes in enumerate((3, 4)):
        drawn_folder(tmp_path / f"images{number}", classes=classes, per_class=4)
        there = tmp_path / f"images{number}"
        write_by_datasets(there, tmp_path / f"splits/{('train', 'val')[number]}.parquet")
        write_by_datasets(there, tmp_path / f"files/{number}.parquet")
        write_by_datasets(there, tmp_path / f"some/{('train', 'extra')[number]}.parquet")
    for data, said in {
        "splits": "have the same classes in every split, got only in val: 'dotted-star'",
        "files": "have the same classes in every file of train, got others in 1.parquet",
        "some": "name the split of every file or of none, got train.parquet beside extra.parquet",
    }.items():
        with pytest.raises(ValueError, match=re.escape(f"data must {said}")):
            load(tmp_path / data)


def test_a_validation_class_that_train_does_not_have_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", IMAGES, LABELS)
    write_parquet(tmp_path / "val.parquet", IMAGES[:4], [0, 1, 2, 3])
    with pytest.raises(
        ValueError, match=r"labels 0 to 2, as it has 3 classes, got 3 in row 3 of val"
    ):
        load(tmp_path)


@pytest.mark.parametrize("unlabelled", [-1, None])
def test_a_test_split_without_labels_is_left_out(unlabelled: int | None, tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", IMAGES, LABELS)
    write_parquet(tmp_path / "test.parquet", IMAGES, [unlabelled] * 12)
    source = load(tmp_path)
    assert source.test is None
    assert source.notes[0] == "the 12 images of test have no labels and are not used"


def test_a_folder_of_test_images_without_classes_is_left_out(tmp_path: Path) -> None:
    drawn_folder(tmp_path, classes=2, splits={"train": 4})
    touch(tmp_path / "test" / "1.png")
    source = load(tmp_path)
    assert source.test is None
    assert source.notes[0] == "test/ has no class folders: its images are not used"


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "whole.parquet", IMAGES, LABELS)
    content = (tmp_path / "whole.parquet").read_bytes()
    for name, part in {"cut": content[:-20], "empty": b"", "text": b"image,label\n"}.items():
        (tmp_path / f"{name}.parquet").write_bytes(part)
        said = f"data must be Parquet that can be read, got {name}.parquet in {tmp_path}: "
        with pytest.raises(ValueError, match=re.escape(said)):
            load(tmp_path / f"{name}.parquet")
    touch(tmp_path / "images.zip", tmp_path / "cat" / "1.png")
    for data, said in {
        "images.zip": "data must be a folder or Parquet, got the file ",
        "*.npz": "data must match a file, got none for ",
        "*": "data must match Parquet only, got images.zip for ",
        "": "data must be images or Parquet, got cat/1.png beside cut.parquet in ",
    }.items():
        with pytest.raises(ValueError, match=re.escape(said)):
            load(tmp_path / data)


def test_parquet_without_rows_is_an_empty_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", IMAGES, LABELS)
    write_parquet(tmp_path / "val.parquet", [], [])
    with pytest.raises(ValueError, match="data must have images in every split, got none in val"):
        load(tmp_path)
    write_parquet(tmp_path / "alone" / "x.parquet", [], [])
    with pytest.raises(ValueError, match="data must have images in every split, got none in train"):
        load(tmp_path / "alone")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("digit", "data must be a known source, got 'digit'; nearest is 'digits'"),
        ("", "data must be a known source, got ''; nearest is "),
        ("imagse", "data must be a known source, got 'imagse'; nearest is 'images'"),
        ("HERE/imagse", "data must exist, got 'HERE/imagse'; nearest is 'HERE/images'"),
        ("HERE/no/images", "data must exist, got 'HERE/no/images'"),
        ("http://host/images", "data must be readable, got 'http://host/images': Unrecognized"),
        ("torchvision:CIFAR10", "data must be torchvision:NAME:FOLDER, got 'torchvision:CIFAR10'"),
        ("torchvision:CIFAR1:HERE", "got 'torchvision:CIFAR1:HERE'; nearest is 'CIFAR10'"),
        (
            "torchvision:CIFAR10:HERE",
            "data must be a set that torchvision can open, got CIFAR10 in HERE: Dataset not found",
        ),
        ("torchvision:FakeData:HERE", "got 'torchvision:FakeData:HERE'; nearest is "),
    ],
)
def test_unknown_data_is_refused_with_the_nearest(
    data: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(said.replace("HERE", str(tmp_path)))):
        load(data.replace("HERE", str(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"holdout": 0.1},
            "holdout must leave at least an image for each class on either side, got 0.1 of 12 "
            "images of 3 classes",
        ),
        ({"fraction": 0.1}, "data_fraction must leave at least an image for each class"),
    ],
)
def test_a_cut_that_leaves_a_class_without_images_is_refused(
    changes: dict[str, float], said: str, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "x.parquet", IMAGES, LABELS)
    with pytest.raises(ValueError, match=re.escape(said)):
        load(tmp_path, **changes)


def test_faults_of_one_image_are_bad_images(tmp_path: Path) -> None:
    drawn_folder(tmp_path, classes=2, per_class=2)
    table = sources.read(str(tmp_path)).train
    (tmp_path / table.place(1)[1]).unlink()
    (tmp_path / table.place(2)[1]).unlink()
    (tmp_path / table.place(2)[1]).mkdir()
    for index, reason in ((1, "no such file or directory"), (2, "is a directory")):
        with pytest.raises(BadImage) as caught:
            table.read(index)
        assert str(caught.value) == reason
    write_parquet(tmp_path / "x.parquet", [*IMAGES[:-1], None], LABELS)
    assert load(tmp_path / "x.parquet", holdout=0.5).num_classes == 3
    assert sources.read(str(tmp_path / "x.parquet")).train.read(11) == b""
