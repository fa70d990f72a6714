"""What is stored is what is read, whichever way it is stored; what is missing is cut fairly."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision.datasets
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from psvit_ray.data.sources import parquet_table
from psvit_ray.data.sources.image_folder import FileTable
from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.sources.load_data import read_data
from psvit_ray.data.sources.parquet_table import ParquetTable, RowGroups
from psvit_ray.data.tables import ArrayTable, ImageTable
from tests.helpers.drawn import CLASS_NAMES, drawn_folder
from tests.helpers.stored import (
    IMAGE,
    as_rows,
    assert_same,
    contents,
    load,
    write_by_datasets,
    write_parquet,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten classes of twelve images."""
    return drawn_folder(tmp_path_factory.mktemp("drawn") / "images", per_class=12)


def test_a_folder_is_read_as_torchvision_reads_it(folder: Path) -> None:
    theirs = torchvision.datasets.ImageFolder(str(folder))
    ours = read_data(str(folder))
    assert list(ours.class_names) == theirs.classes
    table = ours.train
    assert isinstance(table, FileTable)
    assert [
        (str(folder / table.place(index)[1]), label) for index, label in enumerate(table.labels)
    ] == theirs.samples
    assert table.place(0) == (str(folder), "dotted-disc/00000.png")


def test_links_are_followed_and_what_is_no_image_is_left_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    for class_folder in folder.iterdir():
        (tmp_path / "linked" / class_folder.name).symlink_to(class_folder)
    there = tmp_path / "linked" / "dotted-disc"
    there.unlink()
    there.mkdir()
    for number, path in enumerate(sorted((folder / "dotted-disc").iterdir())):
        (there / f"{number:02}.PNG").symlink_to(path)
    (there / "._00.png").write_bytes(b"what a Mac leaves")
    (there / "Thumbs.db").touch()
    (tmp_path / "linked" / "classes.txt").touch()
    linked = load(tmp_path / "linked")
    assert_same(linked, load(folder))
    assert linked.notes[0] == "2 files are no images by name, such as classes.txt"


@pytest.fixture(scope="module")
def stored(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    """The same images in every way there is to store them."""
    there = tmp_path_factory.mktemp("stored")
    images, labels = as_rows(folder)
    write_parquet(there / "one.parquet", images, labels)
    write_by_datasets(folder, there / "datasets" / "train.parquet")
    for number, start in enumerate(range(0, 120, 50)):
        part = slice(start, start + 50)
        write_parquet(there / f"parts/{number}.parquet", images[part], labels[part])
        write_parquet(
            there / f"hub/data/train-{number:05}-of-00003.parquet",
            images[part],
            labels[part],
            label=pa.int32(),
        )
        write_parquet(
            there / f"bytes/{number}.parquet",
            [image["bytes"] for image in images[part]],
            labels[part],
            image=pa.large_binary(),
            label=pa.uint8(),
        )
    data: dict[str, str | Path] = {
        "file": there / "one.parquet",
        "datasets": there / "datasets",
        "parts": there / "parts",
        "hub": there / "hub",
        "pattern": there / "parts" / "*.parquet",
        "deep pattern": there / "h?b/*/train-*",
        "URI": f"file://{there / 'parts'}",
        "bytes": there / "bytes",
    }
    return {kind: load(path) for kind, path in data.items()}


def test_all_ways_to_store_the_same_images_give_the_same_source(
    folder: Path, stored: dict[str, Source]
) -> None:
    plain = load(folder)
    assert plain.class_names == tuple(sorted(CLASS_NAMES[:10]))
    assert (len(plain.train) + len(plain.holdout), plain.test) == (120, None)
    for kind, source in stored.items():
        if kind != "datasets":  # no other holds the names
            assert source.class_names == tuple("0123456789")
            source = Source(**{**vars(source), "class_names": plain.class_names})
        assert_same(source, plain)


def test_parquet_of_datasets_that_only_names_its_files_is_read_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    paths = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*.png"))
    names = sorted({path.split("/")[0] for path in paths})
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=names)}
    )
    labels = [names.index(path.split("/")[0]) for path in paths]
    data = datasets.Dataset.from_dict({"image": paths, "label": labels}, features=features)
    data.to_parquet(str(tmp_path / "named.parquet"))
    assert pq.read_table(tmp_path / "named.parquet")["image"][0]["bytes"].as_py() is None
    assert_same(load(tmp_path / "named.parquet"), load(folder))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "beside")
    shutil.copy(tmp_path / "named.parquet", tmp_path / "beside" / "named.parquet")
    assert_same(load(tmp_path / "beside" / "named.parquet"), load(folder))


def test_a_block_is_a_row_group_and_is_read_once(folder: Path, tmp_path: Path) -> None:
    images, labels = as_rows(folder)
    for number in range(2):
        part = slice(60 * number, 60 * number + 60)
        write_parquet(tmp_path / f"{number}.parquet", images[part], labels[part])
    table = read_data(str(tmp_path)).train
    assert isinstance(table, ParquetTable)
    of_a_file = np.arange(60) // 7
    assert np.array_equal(table.blocks, np.concatenate([of_a_file, of_a_file + 9]))
    order = np.random.default_rng(0).permutation(len(table))
    assert contents(table.take(order)) == [images[index]["bytes"] for index in order]
    assert table.take(order).place(0) == (
        str(tmp_path),
        f"{order[0] // 60}.parquet:{order[0] % 60}",
    )


def test_few_row_groups_are_kept_and_two_whatever_their_size(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = as_rows(folder)
    write_parquet(tmp_path / "x.parquet", images, labels, row_group_size=10)
    group = sum(len(image["bytes"]) for image in images[:10])
    for most, kept in ((int(group * 4.5), 4), (1, 2)):
        cache = RowGroups(most)
        monkeypatch.setattr(parquet_table, "row_groups", cache)
        table = read_data(str(tmp_path / "x.parquet")).train
        for index in np.random.default_rng(0).permutation(len(table)):
            table.read(index)
            assert cache.bytes <= max(most, 2.2 * group)
        assert len(cache._kept) == kept


def test_a_thousand_reads_take_no_more_memory_than_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = np.random.default_rng(0).bytes(200_000)
    image = [{"bytes": content, "path": ""}] * 20
    schema = pa.schema([("image", IMAGE), ("label", pa.int64())])
    path = tmp_path / "x.parquet"
    with pq.ParquetWriter(path, schema, compression="NONE", use_dictionary=False) as file:
        for _ in range(50):
            file.write_table(pa.Table.from_pydict({"image": image, "label": [0, 1] * 10}, schema))
    monkeypatch.setattr(parquet_table, "row_groups", RowGroups(20_000_000))
    table = read_data(str(path)).train
    before = psutil.Process().memory_info().rss
    for index in np.random.default_rng(0).permutation(1000):
        table.read(index)
    assert psutil.Process().memory_info().rss - before < 60e6  # of 200 MB that were read


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["folder", "parquet", "torchvision", "digits"])
def test_a_table_pickles_small_and_is_read_by_other_processes(
    kind: str, folder: Path, tmp_path: Path
) -> None:
    data, size = str(folder), 120
    if kind == "parquet":
        write_parquet(tmp_path / "x.parquet", *as_rows(folder))
        data = str(tmp_path)
    elif kind == "torchvision":
        data = f"torchvision:MNIST:{write_mnist(tmp_path)}"
        size = 60
    elif kind == "digits":
        data, size = "digits", 1437
    table = read_data(data).train
    assert len(table) == size
    table.read(0)  # with its files open
    pickled = pickle.dumps(table)
    assert len(pickled) < (200_000 if kind == "digits" else 20_000)
    loader: DataLoader[bytes] = DataLoader(
        Contents(pickle.loads(pickled)),  # type: ignore[arg-type]
        num_workers=2,
        batch_size=None,
    )
    assert list(loader) == [as_bytes(table.read(index)) for index in range(size)]


class Contents:
    def __init__(self, table: ImageTable) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> bytes:
        return as_bytes(self.table.read(index))


def as_bytes(content: bytes | Image.Image) -> bytes:
    return content if isinstance(content, bytes) else content.tobytes()


def test_digits_are_scikit_learns_as_bytes() -> None:
    pixels, labels = load_digits(return_X_y=True)
    source = load("digits")
    seen = []
    for table in (source.train, source.holdout, source.test):
        assert isinstance(table, ArrayTable)
        for index in range(len(table)):
            name, row = table.place(index)
            seen.append(int(row))
            assert name == "digits"
            assert table.labels[index] == labels[int(row)]
            picture = table.read(index)
            assert np.array_equal(
                np.asarray(picture), (pixels[int(row)] * 255 / 16).round().reshape(8, 8)
            )
            assert np.array_equal(np.asarray(picture), table.images[index, 0])
    assert sorted(seen) == list(range(1797))
    assert (source.img_size, source.in_chans, source.num_classes) == (8, 1, 10)
    tones = torch.tensor(pixels / 16)
    assert source.mean == (round(tones.mean().item(), 3),)
    assert source.std == (round(tones.std().item(), 3),)


def write_mnist(root: Path) -> Path:
    """In MNIST's own format, 60 images to train on and 20 to test by."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("t10k", 20)):
        pixels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = np.array([0x803, count, 28, 28], dtype=">i4").tobytes()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = np.array([0x801, count], dtype=">i4").tobytes()
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    return root


def test_torchvisions_arrays_are_pictures(tmp_path: Path) -> None:
    source = load(f"torchvision:MNIST:{write_mnist(tmp_path)}")
    theirs = {train: torchvision.datasets.MNIST(str(tmp_path), train) for train in (True, False)}
    assert source.class_names == tuple(theirs[True].classes)
    assert source.class_names[0] == "0 - zero"
    assert source.test is not None
    for table in (source.train, source.holdout, source.test):
        for index in range(len(table)):
            split, row = table.place(index)[1].split(":")
            picture, label = theirs[split == "train"][int(row)]
            assert table.read(index) == picture
            assert table.labels[index] == label
    assert len(source.train) + len(source.holdout) == 60
    assert len(source.test) == 20


def test_torchvisions_files_are_read_as_files(tmp_path: Path) -> None:
    splits = {"train": 4, "valid": 2, "test": 1}
    there = drawn_folder(tmp_path / "country211", classes=3, splits=splits)
    source = load(f"torchvision:Country211:{tmp_path}")
    for table, split in ((source.train, "train"), (source.holdout, "valid"), (source.test, "test")):
        assert contents(table) == [image["bytes"] for image in as_rows(there / split)[0]]
    (there / "train" / min(CLASS_NAMES[:3]) / "00000.png").write_bytes(b"")
    assert load(f"torchvision:Country211:{tmp_path}").train.read(0) == b""
