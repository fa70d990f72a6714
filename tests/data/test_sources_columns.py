"""Which columns are read, what becomes of labels of all kinds, and tables of the `datasets` library
as it writes them."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from psvit_ray.data.images.decode import BadImage
from psvit_ray.data.sources import parquet_table, unlabelled
from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.sources.load_data import read_data
from psvit_ray.data.splits.layout import DataLayout
from tests.helpers.stored import IMAGE, contents, write_parquet

IMAGES = [{"bytes": bytes([number]), "path": f"{number}.png"} for number in range(6)]


def table_of(path: Path, **columns: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def classes_of(splits: Source) -> list[str]:
    """The class of each training image."""
    return [splits.class_names[label] for label in splits.train.labels]


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(["owl", "cat", "owl", "dog", "cat", "owl"]),
        pa.array(["owl", "cat", "owl", "dog", "cat", "owl"], pa.large_string()),
        pa.array(["owl", "cat", "owl", "dog", "cat", "owl"]).dictionary_encode(),
    ],
)
def test_labels_that_are_words_are_classes_sorted(labels: pa.Array, tmp_path: Path) -> None:
    splits = read_data(
        table_of(tmp_path / "x.parquet", image=pa.array(IMAGES, IMAGE), label=labels)
    )
    assert splits.class_names == ("cat", "dog", "owl")
    assert splits.train.labels.tolist() == [2, 0, 2, 1, 0, 2]
    assert contents(splits.train) == [image["bytes"] for image in IMAGES]


def test_words_of_several_files_and_splits_are_one_list(tmp_path: Path) -> None:
    image = pa.array(IMAGES[:2], IMAGE)
    table_of(tmp_path / "train-0.parquet", image=image, label=pa.array(["owl", "cafe\u0301"]))
    table_of(tmp_path / "train-1.parquet", image=image, label=pa.array(["bee", "owl"]))
    table_of(tmp_path / "test.parquet", image=image, label=pa.array(["owl", "caf\u00e9"]))
    splits = read_data(str(tmp_path))
    assert splits.class_names == ("bee", "caf\u00e9", "owl")
    assert splits.train.labels.tolist() == [2, 1, 0, 2]
    assert splits.test is not None
    assert splits.test.labels.tolist() == [2, 1]
    assert "test has no image of class 'bee'" in splits.notes
    table_of(tmp_path / "train-2.parquet", image=image, label=pa.array([0, 1]))
    with pytest.raises(ValueError, match="labels of one kind in every file, got numbers and words"):
        read_data(str(tmp_path))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (pa.array([True, False] * 3), ("false", "true")),
        (pa.array([10, 2, 1] * 2), ("1", "2", "10")),
        (pa.array([0, 7] * 3, pa.uint8()), ("0", "7")),
    ],
)
def test_labels_without_names_are_their_own(
    labels: pa.Array, names: tuple[str, ...], tmp_path: Path
) -> None:
    data = table_of(tmp_path / "x.parquet", image=pa.array(IMAGES, IMAGE), label=labels)
    splits = read_data(data)
    assert splits.class_names == names
    assert classes_of(splits) == [str(label).lower() for label in labels.to_pylist()]


def cifar100(path: Path, rows: int = 6) -> datasets.Dataset:
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine_label": datasets.ClassLabel(names=["bee", "cow", "elm"]),
            "coarse_label": datasets.ClassLabel(names=["animal", "tree"]),
        }
    )
    values = {
        "img": [{"bytes": png(number), "path": None} for number in range(rows)],
        "fine_label": [number % 3 for number in range(rows)],
        "coarse_label": [number % 3 // 2 for number in range(rows)],
    }
    return datasets.Dataset.from_dict(values, features=features)


def png(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(content, "PNG")
    return content.getvalue()


def test_several_columns_that_could_be_meant_are_refused_and_all_named(tmp_path: Path) -> None:
    data = str(tmp_path / "train.parquet")
    cifar100(tmp_path).to_parquet(data)
    said = "got 'fine_label', 'coarse_label' in train.parquet in .*; say --label-column fine_label"
    with pytest.raises(ValueError, match=f"one column of labels, {said}"):
        read_data(data)
    fine = read_data(data, DataLayout(label_column="fine_label"))
    assert classes_of(fine) == ["bee", "cow", "elm"] * 2
    assert contents(fine.train) == [png(number) for number in range(6)]
    assert "images are column 'img'" in fine.notes
    assert "labels are column 'fine_label', not 'coarse_label'" in fine.notes
    coarse = read_data(data, DataLayout(label_column="coarse_label", image_column="img"))
    assert classes_of(coarse) == ["animal", "animal", "tree"] * 2
    image = pa.array(IMAGES, IMAGE)
    data = table_of(tmp_path / "two.parquet", left=image, right=image, label=[0, 1] * 3)
    with pytest.raises(ValueError, match=r"got 'left', 'right' in .*; say --image-column left"):
        read_data(data)
    (part,) = unlabelled.read_unlabelled([data], layout=DataLayout(image_column="right"))
    assert contents(part.table) == [image["bytes"] for image in IMAGES]


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ({"img": "image", "target": [0, 1] * 3, "weight": [0.5] * 6}, ("0", "1")),
        ({"picture": "bytes", "species": ["a", "b"] * 3}, ("a", "b")),
        ({"image": "bytes", "label": [0, 1] * 3, "hash": "bytes", "id": [1] * 6}, ("0", "1")),
    ],
)
def test_the_only_columns_of_their_types_are_taken(
    columns: dict[str, Any], names: tuple[str, ...], tmp_path: Path
) -> None:
    kinds = {
        "image": pa.array(IMAGES, IMAGE),
        "bytes": pa.array([image["bytes"] for image in IMAGES], pa.large_binary()),
    }
    arrays = {k: kinds[v] if isinstance(v, str) else v for k, v in columns.items()}
    splits = read_data(table_of(tmp_path / "x.parquet", **arrays))
    assert splits.class_names == names
    assert contents(splits.train) == [image["bytes"] for image in IMAGES]


@pytest.mark.parametrize(
    ("labels", "layout", "said"),
    [
        ([3.0] * 6, {}, "must have integers, strings or bool as label, got double in x.parquet"),
        ([0, 1] * 3, {"label_column": "lable"}, "label_column must be a column of the data, got "),
        ([0, 1] * 3, {"label_column": "image"}, "must be a column of labels, got 'image' of type"),
        ([0, 1] * 3, {"image_column": "label"}, "must be a column of images, got 'label' of type"),
        ([None] * 6, {}, "must have labels, got none in x.parquet in .*; psvit predict takes"),
        (["a", None] * 3, {}, "must have a label for every image, got none in row 1 of x.parquet"),
    ],
)
def test_labels_that_cannot_be_are_one_line(
    labels: list[Any], layout: dict[str, str], said: str, tmp_path: Path
) -> None:
    data = table_of(tmp_path / "x.parquet", image=pa.array(IMAGES, IMAGE), label=labels)
    with pytest.raises(ValueError, match=said):
        read_data(data, DataLayout(**layout))


def test_a_test_file_without_a_column_of_labels_is_left_out(tmp_path: Path) -> None:
    image = pa.array(IMAGES, IMAGE)
    table_of(tmp_path / "train.parquet", image=image, label=[0, 1] * 3)
    table_of(tmp_path / "test.parquet", image=image, id=range(6))
    splits = read_data(str(tmp_path))
    assert splits.test is None
    assert splits.notes == ("the 6 images of test have no labels and are not used",)
    with pytest.raises(ValueError, match="data must have labels, got none in alone"):
        read_data(table_of(tmp_path / "alone.parquet", image=image))


def test_files_that_are_links_are_read_where_they_are_said_and_once(tmp_path: Path) -> None:
    for number in range(2):
        write_parquet(tmp_path / "pool" / f"{number}.parquet", IMAGES, [0, 1] * 3)
        there = tmp_path / ("train", "test")[number] / "0.parquet"
        there.parent.mkdir()
        os.symlink(f"../pool/{number}.parquet", there)
    splits = read_data(str(tmp_path), DataLayout(splits="train=train,test=test"))
    assert splits.train.place(0)[1] == "train/0.parquet:0"
    assert splits.test is not None
    assert splits.test.place(0)[1] == "test/0.parquet:0"
    assert len(read_data(str(tmp_path), DataLayout(splits="train=.")).train) == 12


def test_notes_that_nest_without_end_are_those_of_something_else(tmp_path: Path) -> None:
    table = pa.table({"image": pa.array(IMAGES, IMAGE), "label": pa.array([0, 1] * 3)})
    noted = table.replace_schema_metadata({"huggingface": "[" * 5_000})
    pq.write_table(noted, tmp_path / "x.parquet")
    (tmp_path / "state.json").write_text("[" * 5_000)
    splits = read_data(str(tmp_path))
    assert splits.class_names == ("0", "1")
    assert contents(splits.train) == [image["bytes"] for image in IMAGES]


@pytest.fixture
def few_rows_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "DEFAULT_MAX_BATCH_SIZE", 4)


@pytest.mark.usefixtures("few_rows_a_batch")
def test_what_save_to_disk_writes_is_read(tmp_path: Path) -> None:
    data = cifar100(tmp_path, rows=10)
    parts = datasets.DatasetDict(
        {"train": data, "validation": data.select(range(3)), "test": data.select([4, 8])}
    )
    fine = DataLayout(label_column="fine_label")
    parts.save_to_disk(str(tmp_path / "parts"), num_shards={"train": 2, "validation": 1, "test": 1})
    splits = read_data(str(tmp_path / "parts"), fine)
    assert splits.class_names == ("bee", "cow", "elm")
    assert contents(splits.train) == [png(number) for number in range(10)]
    assert splits.train.labels.tolist() == [number % 3 for number in range(10)]
    assert contents(splits.holdout) == [png(number) for number in range(3)]
    assert contents(splits.test) == [png(4), png(8)]
    data.save_to_disk(str(tmp_path / "whole"))
    # What `map` leaves in the folder that it was called on.
    cache = tmp_path / "whole" / "cache-1.arrow"
    cache.write_bytes(next((tmp_path / "whole").glob("data-*.arrow")).read_bytes())
    whole = read_data(str(tmp_path / "whole"), fine)
    assert contents(whole.train) == [png(number) for number in range(10)]
    assert whole.train.blocks is not None
    assert whole.train.blocks.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    order = np.random.default_rng(0).permutation(10)
    assert contents(whole.train.take(order)) == [png(number) for number in order]
    (part,) = unlabelled.read_unlabelled([str(tmp_path / "whole" / "data-00000-of-00001.arrow")])
    assert contents(part.table) == [png(number) for number in range(10)]
    next((tmp_path / "whole").glob("data-*.arrow")).unlink()
    with pytest.raises(ValueError, match=r"got none for 'data-00000-of-00001\.arrow'"):
        read_data(str(tmp_path / "whole"), fine)


def test_a_broken_arrow_file_is_named_and_its_batches_are_bad_images(tmp_path: Path) -> None:
    cifar100(tmp_path).save_to_disk(str(tmp_path / "x"))
    (file,) = (tmp_path / "x").glob("*.arrow")
    table = read_data(str(tmp_path / "x"), DataLayout(label_column="fine_label")).train
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"Arrow stream that can be read, got {file.name} in "):
        read_data(str(tmp_path / "x"), DataLayout(label_column="fine_label"))
    parquet_table.row_groups.clear()
    with pytest.raises(BadImage, match="broken row group"):
        table.read(5)


def test_whatever_is_broken_in_a_file_is_said_of_it(tmp_path: Path) -> None:
    """Four bytes at a time: of some, pyarrow would end the process."""
    cifar100(tmp_path).select_columns(["img", "fine_label"]).save_to_disk(str(tmp_path / "x"))
    (file,) = (tmp_path / "x").glob("*.arrow")
    whole = file.read_bytes()
    table = read_data(str(tmp_path / "x")).train
    outcomes: set[type] = set()
    messages = []
    for at in range(0, len(whole), 4):
        file.write_bytes(whole[:at] + b"\xff\xff\xff\xff" + whole[at + 4 :])
        parquet_table.row_groups.clear()
        try:
            outcomes.add(type(table.read(3)))
        except BadImage as error:
            outcomes.add(type(error))
        try:
            outcomes.add(type(read_data(str(tmp_path / "x"))))
        except ValueError as error:
            messages.append(str(error))
    assert outcomes == {bytes, BadImage, Source}
    assert all(file.name in message or "train" in message for message in messages)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../secret.png", "path leads out of the data: '../secret.png'"),
        ("in/../../secret.png", "path leads out of the data"),
        ("/etc/hostname", "path leads out of the data: '/etc/hostname'"),
        ("file:///etc/hostname", "path leads out of the data"),
        ("out.png", "path is a link out of the data: 'out.png'"),
        ("up/secret.png", "path is a link out of the data"),
        ("a\0b", "path leads out of the data"),
        ("gone.png", "no such file or directory"),
        ("pipe.png", "not a regular file"),
        ("in/deep.png", ""),
        ("link.png", ""),
    ],
)
def test_a_path_in_parquet_leads_to_nothing_outside(
    path: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "data"
    (here / "in").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (here / "in" / "deep.png").write_bytes(b"deep")
    os.symlink("in/deep.png", here / "link.png")
    os.symlink("../secret.png", here / "out.png")
    os.symlink("..", here / "up")
    os.mkfifo(here / "pipe.png")
    monkeypatch.chdir(tmp_path)  # which is looked in, too
    write_parquet(here / "x.parquet", [{"bytes": None, "path": path}] * 2, [0, 1])
    table = read_data(str(here / "x.parquet")).train
    if not reason:
        assert table.read(0) == b"deep"
        return
    with pytest.raises(BadImage, match=re.escape(reason)):
        table.read(0)


@pytest.mark.parametrize("codec", ["snappy", "gzip", "zstd", "none"])
def test_a_broken_page_is_bad_images_and_the_other_groups_are_read(
    codec: str, tmp_path: Path
) -> None:
    rows = [{"bytes": bytes([i, i + 1, i + 2]) * 900, "path": "x"} for i in range(40)]
    table = pa.table({"image": pa.array(rows, IMAGE), "label": [0, 1] * 20})
    file = tmp_path / "x.parquet"
    pq.write_table(
        table,
        file,
        row_group_size=10,
        compression=codec,
        use_dictionary=False,
        write_page_checksum=True,
    )
    chunk = pq.ParquetFile(file).metadata.row_group(1).column(0)
    whole = file.read_bytes()
    images = read_data(str(file)).train
    # A bit of the page's data: its checksum no longer fits, whatever the codec makes of it.
    at = chunk.data_page_offset + chunk.total_compressed_size - 9
    file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    parquet_table.row_groups.clear()
    parquet_table._parquet_file.cache_clear()
    for index in range(40):
        if 10 <= index < 20:
            with pytest.raises(BadImage, match="broken row group"):
                images.read(index)
        else:
            assert images.read(index) == rows[index]["bytes"]


@pytest.mark.parametrize("change", ["vanished", "cut", "emptied"])
def test_a_parquet_file_that_changes_after_it_was_listed_is_bad_images(
    change: str, tmp_path: Path
) -> None:
    for number in range(2):
        write_parquet(tmp_path / f"{number}.parquet", IMAGES, [0, 1] * 3)
    images = read_data(str(tmp_path)).train
    file = tmp_path / "1.parquet"
    if change == "vanished":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:50] if change == "cut" else b"")
    parquet_table.row_groups.clear()
    parquet_table._parquet_file.cache_clear()
    assert images.read(0) == b"\0"
    with pytest.raises(BadImage, match="broken row group"):
        images.read(6)
