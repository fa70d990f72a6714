"""Data that cannot be used is refused with one line: what must be, and what came."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from psvit_ray.data.images.decode import BadImage
from psvit_ray.data.sources.load_data import read_data
from tests.helpers.drawn import drawn_folder
from tests.helpers.stored import load, write_parquet

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


def splits_beside_classes(there: Path) -> None:
    touch(there / "train" / "cat" / "1.png", there / "train" / "dog" / "1.png")
    touch(there / "owl" / "1.png")


def empty_split(there: Path) -> None:
    touch(there / "train" / "cat" / "1.png", there / "train" / "dog" / "1.png")
    (there / "val").mkdir()


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
        (splits_beside_classes, "data must hold splits or classes, got train/ beside owl/"),
        (empty_split, "data must have images in every split, got none in val"),
        (
            images_in_a_split,
            "data must be a folder of class folders, got the image train/2.png beside them in "
            "HERE/train",
        ),
        (a_split_twice, "data must name each split once, got 'train', 'val', 'valid'"),
        (no_train, "data must have a split train, got only val, test"),
        (
            other_classes,
            "data must have the same classes in every split, got only in val: 'Dog'; nearest is "
            "'dog'",
        ),
    ],
)
def test_a_folder_that_is_not_one_of_classes_is_refused(
    make: Callable[[Path], None], said: str, tmp_path: Path
) -> None:
    make(tmp_path / "here")
    with pytest.raises(ValueError, match=re.escape(said.replace("HERE", str(tmp_path / "here")))):
        load(tmp_path / "here")


def test_a_folder_of_test_images_without_classes_is_left_out(tmp_path: Path) -> None:
    drawn_folder(tmp_path, classes=2, splits={"train": 4})
    touch(tmp_path / "test" / "1.png")
    source = load(tmp_path)
    assert source.test is None
    assert source.notes[0] == "test/ has no class folders: its images are not used"


@pytest.mark.processes
@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("digit", "data must be a known source, got 'digit'; nearest is 'digits'"),
        ("", "data must be a known source, got ''; nearest is "),
        ("imagse", "data must be a known source, got 'imagse'; nearest is 'images'"),
        ("HERE/imagse", "data must exist, got 'HERE/imagse'; nearest is 'HERE/images'"),
        ("HERE/imagse/", "data must exist, got 'HERE/imagse/'; nearest is 'HERE/images'"),
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
            {"holdout": 0.001},
            "holdout must leave at least an image for each class on either side, got 0.001 of "
            "1,437 images of 10 classes",
        ),
        ({"data_fraction": 0.001}, "data_fraction must leave at least an image for each class"),
    ],
)
def test_a_cut_that_leaves_a_class_without_images_is_refused(
    changes: dict[str, float], said: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        load("digits", **changes)


def test_data_of_single_images_has_no_hold_out(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", IMAGES[:3], [0, 1, 2])
    said = "holdout must be cut from a class of at least 2 images, got 1 image of every class"
    with pytest.raises(ValueError, match=said):
        load(tmp_path)


def test_faults_of_one_image_are_bad_images(tmp_path: Path) -> None:
    drawn_folder(tmp_path, classes=2, per_class=2)
    table = read_data(str(tmp_path)).train
    (tmp_path / table.place(1)[1]).unlink()
    (tmp_path / table.place(2)[1]).unlink()
    (tmp_path / table.place(2)[1]).mkdir()
    for index, reason in ((1, "no such file or directory"), (2, "is a directory")):
        with pytest.raises(BadImage) as caught:
            table.read(index)
        assert str(caught.value) == reason
    write_parquet(tmp_path / "x.parquet", [*IMAGES[:-1], None], LABELS)
    assert load(tmp_path / "x.parquet", holdout=0.5).num_classes == 3
    assert read_data(str(tmp_path / "x.parquet")).train.read(11) == b""
