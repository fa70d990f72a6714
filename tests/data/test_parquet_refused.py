"""Parquet that cannot be used is refused with one line: what must be, and what came."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tests.helpers.drawn import drawn_folder
from tests.helpers.stored import as_rows, load, write_by_datasets, write_parquet

IMAGES = [{"bytes": bytes([number]), "path": f"{number}.png"} for number in range(12)]
LABELS = [number % 3 for number in range(12)]


@pytest.mark.parametrize(
    ("labels", "kinds", "said"),
    [
        (
            [0, 1, 2, None] * 3,
            {},
            "data must have a label for every image, got none in row 3 of x.parquet in HERE",
        ),
        (
            [0, 1, 2, -1] * 3,
            {},
            "data must have labels from 0 on, got -1 in row 3 of x.parquet in HERE",
        ),
        (
            [0.5] * 12,
            {"label": pa.float32()},
            "data must have integers, strings or bool as label, got float in x.parquet in HERE",
        ),
        (
            LABELS,
            {"image": pa.struct([("path", pa.string())])},
            "data must have a column of images (struct of bytes and path, or bytes), got "
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
        ValueError, match="the same classes in every split, got only in val: '3'; nearest is '2'"
    ):
        load(tmp_path)


@pytest.mark.parametrize("unlabelled", [-1, None])
def test_a_test_split_without_labels_is_left_out(unlabelled: int | None, tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", IMAGES, LABELS)
    write_parquet(tmp_path / "test.parquet", IMAGES, [unlabelled] * 12)
    source = load(tmp_path)
    assert source.test is None
    assert source.notes[0] == "the 12 images of test have no labels and are not used"


def test_what_is_no_parquet_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "whole.parquet", IMAGES, LABELS)
    content = (tmp_path / "whole.parquet").read_bytes()
    for name, part in {"cut": content[:-20], "empty": b"", "text": b"image,label\n"}.items():
        (tmp_path / f"{name}.parquet").write_bytes(part)
        said = f"data must be Parquet that can be read, got {name}.parquet in {tmp_path}: "
        with pytest.raises(ValueError, match=re.escape(said)):
            load(tmp_path / f"{name}.parquet")
    (tmp_path / "images.zip").touch()
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").touch()
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


def with_manifest(there: Path) -> Path:
    """Shards and what `prepare_data` says of them."""
    files = {}
    for split, rows in {"train": 12, "val": 6}.items():
        path = there / f"{split}-00000-of-00001.parquet"
        write_parquet(path, IMAGES[:rows], LABELS[:rows])
        said = {"rows": rows, "bytes": path.stat().st_size, "sha256": "0"}
        totals = {"rows": rows, "bytes": said["bytes"], "bad_images": 0, "classes": {}}
        files[split] = {**totals, "files": {path.name: said}}
    manifest = {"identity": {}, "class_names": ["cat", "dog", "owl"], "splits": files}
    (there / "manifest.json").write_text(json.dumps(manifest))
    return there


def test_a_manifest_names_the_classes(tmp_path: Path) -> None:
    source = load(with_manifest(tmp_path))
    assert source.class_names == ("cat", "dog", "owl")
    assert (len(source.train), len(source.holdout)) == (12, 6)


@pytest.mark.parametrize("change", ["a file more", "a file less", "other rows", "no manifest"])
def test_files_that_are_not_those_of_the_manifest_are_refused(change: str, tmp_path: Path) -> None:
    with_manifest(tmp_path)
    name = "val-00000-of-00001.parquet"
    said = f"data must match manifest.json in {tmp_path}, got other files or rows: '{name}'; "
    if change == "a file less":
        (tmp_path / name).unlink()
    elif change == "other rows":
        write_parquet(tmp_path / name, IMAGES[:7], LABELS[:7])
    elif change == "a file more":
        write_parquet(tmp_path / "more.parquet", IMAGES, LABELS)
        said = said.replace(name, "more.parquet")
    else:
        (tmp_path / "manifest.json").write_text("{}")
        said = f"{tmp_path}/manifest.json is not the manifest of shards: identity: Field required"
    with pytest.raises(ValueError, match=re.escape(said)):
        load(tmp_path)
