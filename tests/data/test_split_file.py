"""Which images a run began with is kept; a resume on others is refused, and says what changed."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data.images.tone_range import Tones
from psvit_ray.data.sources.image_folder import FileTable
from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.sources.load_data import DriverData, load_data
from psvit_ray.data.sources.shard_manifest import (
    SHARD_MANIFEST,
    ShardFile,
    ShardManifest,
    SplitManifest,
)
from psvit_ray.data.splits import split_file
from psvit_ray.data.splits.layout import DataSettings
from psvit_ray.data.splits.split_file import DataChanged, SplitFile
from psvit_ray.data.splits.splits import drawn, held_out
from psvit_ray.data.tables import ArrayTable, ImageTable
from psvit_ray.export import model_folder
from psvit_ray.runtime.cluster.config import WorkerResources
from psvit_ray.runtime.session.config import SessionConfig
from psvit_ray.runtime.session.session import open_session
from psvit_ray.runtime.train.config import WorkerRange
from psvit_ray.runtime.train.trainer import CHECKPOINTS, train
from psvit_ray.runtime.tune import trial
from psvit_ray.search.description import read_description
from psvit_ray.search.record import RecordStore
from psvit_ray.storage.folder import Folder
from psvit_ray.training.checkpoint import last_checkpoint
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.engine import run_training as run_here
from psvit_ray.training.source import load_source
from tests.helpers.command_line import Run, everything_under, job, parse
from tests.helpers.drawn import drawn_folder
from tests.helpers.stored import load, write_parquet
from tests.helpers.training import SPEC

Make = Callable[[Path], object]
CLASSES = ("cat", "dog")
BEGIN = "data is not what the run began with: "
END = ". Put the images back as they were, or begin anew under another --name"


def write(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))


def files(root: Path, per_class: int = 6) -> Path:
    """Files that are images by name, no two of one size: 10, 11, ... bytes."""
    for label, name in enumerate(CLASSES):
        for number in range(per_class):
            write(root / name / f"{number}.png", 10 + 2 * number + label)
    return root


def shard(path: Path, sizes: list[int]) -> None:
    """Parquet with images of these sizes, three a row group."""
    images = [{"bytes": np.random.default_rng(size).bytes(size), "path": None} for size in sizes]
    write_parquet(path, images, [row % 2 for row in range(len(sizes))], row_group_size=3)


def shards(root: Path) -> Path:
    for number in range(2):
        shard(root / f"train-{number:05}-of-00002.parquet", [10, 11, 12, 13, 14, 15])
    return root


def manifest(root: Path) -> Path:
    """Shards with a manifest."""
    said = {
        path.name: ShardFile(
            rows=pq.read_metadata(path).num_rows,
            bytes=path.stat().st_size,
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        )
        for path in sorted(root.glob("*.parquet"))
    }
    train = SplitManifest(
        rows=sum(file.rows for file in said.values()), bytes=0, bad_images=0, classes={}, files=said
    )
    manifest = ShardManifest(identity={}, class_names=CLASSES, splits={"train": train})
    (root / SHARD_MANIFEST).write_text(manifest.model_dump_json())
    return root


def changed_from(known: Source, data: Path) -> str:
    """What a resume says, without what it always does."""
    assert known.images
    kept = SplitFile.from_bytes(known.images.to_bytes(), "splits.parquet")
    with pytest.raises(DataChanged) as caught:
        load(data).check_unchanged(known.digest, kept)
    said = str(caught.value)
    assert said.startswith(BEGIN)
    assert said.endswith(END)
    return said.removeprefix(BEGIN).removesuffix(END)


# What changed


def several(root: Path) -> None:
    write(root / "cat" / "6.png", 90)
    write(root / "dog" / "7.png", 91)
    (root / "cat" / "0.png").unlink()
    (root / "cat" / "1.png").rename(root / "cat" / "one.png")
    write(root / "dog" / "5.png", 1234)


def one_name_for_another(root: Path) -> None:
    (root / "cat" / "0.png").unlink()
    (root / "cat" / "1.png").rename(root / "cat" / "0.png")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda root: write(root / "cat" / "6.png", 90), "1 image added, such as 'cat/6.png'"),
        (lambda root: (root / "dog" / "3.png").unlink(), "1 image removed, such as 'dog/3.png'"),
        (
            lambda root: (root / "dog" / "3.png").rename(root / "dog" / "x.png"),
            "1 image renamed, such as 'dog/3.png' to 'dog/x.png'",
        ),
        (
            lambda root: write(root / "dog" / "3.png", 1018),
            "1 image changed, such as 'dog/3.png', of 17 bytes, now 1,018",
        ),
        (
            lambda root: (root / "dog" / "3.png").rename(root / "cat" / "x.png"),
            "1 image added, such as 'cat/x.png'; 1 image removed, such as 'dog/3.png'",
        ),
        (lambda root: write(root / "bird" / "0.png", 10), "1 image added, such as 'bird/0.png'"),
        (
            lambda root: (root / "dog").rename(root / "wolf"),
            "6 images added, such as 'wolf/0.png'; 6 images removed, such as 'dog/0.png'",
        ),
        (
            lambda root: (root / "dog").rename(root / "Dog"),
            "6 images added, such as 'Dog/0.png'; 6 images removed, such as 'dog/0.png'",
        ),
        (
            several,
            "2 images added, such as 'cat/6.png'; 1 image removed, such as 'cat/0.png'; 1 image "
            "renamed, such as 'cat/1.png' to 'cat/one.png'; 1 image changed, such as 'dog/5.png', "
            "of 21 bytes, now 1,234",
        ),
        (
            one_name_for_another,
            "1 image removed, such as 'cat/1.png'; 1 image changed, such as 'cat/0.png', of 10 "
            "bytes, now 12",
        ),
    ],
)
def test_what_changed_in_a_folder_is_said(tmp_path: Path, change: Make, said: str) -> None:
    known = load(files(tmp_path))
    change(tmp_path)
    assert changed_from(known, tmp_path) == said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda root: shard(root / "train-00001-of-00002.parquet", [10, 11, 12, 13, 14, 99]),
            "3 images changed, such as 'train-00001-of-00002.parquet:3'",
        ),
        (
            lambda root: shard(root / "train-00001-of-00002.parquet", [10, 11, 12, 13, 14]),
            "1 image removed, such as 'train-00001-of-00002.parquet:5'; 2 images changed, such as "
            "'train-00001-of-00002.parquet:3'",
        ),
        (
            lambda root: shard(root / "train-00002-of-00002.parquet", [50, 51]),
            "2 images added, such as 'train-00002-of-00002.parquet:0'",
        ),
        (
            lambda root: (root / "train-00001-of-00002.parquet").unlink(),
            "6 images removed, such as 'train-00001-of-00002.parquet:0'",
        ),
        (
            lambda root: (root / "train-00001-of-00002.parquet").rename(root / "train-9.parquet"),
            "6 images renamed, such as 'train-00001-of-00002.parquet:0' to 'train-9.parquet:0'",
        ),
    ],
)
def test_what_changed_in_parquet_is_said_by_row_groups(
    tmp_path: Path, change: Make, said: str
) -> None:
    known = load(shards(tmp_path))
    change(tmp_path)
    assert changed_from(known, tmp_path) == said


def relabelled(root: Path) -> None:
    path = root / "train-00001-of-00002.parquet"
    table = pq.read_table(path)
    labels = pa.array([1 - label for label in table["label"].to_pylist()])
    write_parquet(path, table["image"].to_pylist(), labels, row_group_size=3)


def test_other_labels_are_a_change(tmp_path: Path) -> None:
    known = load(shards(tmp_path))
    relabelled(tmp_path)
    first = "'train-00001-of-00002.parquet:0', of class '0', now '1'"
    assert changed_from(known, tmp_path) == f"6 images changed, such as {first}"


def test_shards_with_a_manifest_are_known_by_its_hashes(tmp_path: Path) -> None:
    """Other bytes of the same number are seen without being read; nothing else has changed."""
    known = load(manifest(shards(tmp_path)))
    again = load(tmp_path)
    assert again.digest == known.digest
    other = tmp_path / "train-00000-of-00002.parquet"
    content = bytearray(other.read_bytes())
    content[40] ^= 1  # in the first images
    other.write_bytes(content)
    assert load(tmp_path).digest == known.digest
    manifest(tmp_path)
    said = "6 images changed, such as 'train-00000-of-00002.parquet:0'"
    assert changed_from(known, tmp_path) == said


def test_what_the_same_data_is_the_digest_is(tmp_path: Path) -> None:
    """It depends neither on where the data lies, nor on the cut, nor on times."""
    known = load(files(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "cat" / "notes.txt").write_text("no image")
    os.utime(tmp_path / "b" / "cat" / "0.png", (1, 1))
    other = load(tmp_path / "b", split_seed=9, holdout=0.5, data_fraction=0.5)
    assert other.digest == known.digest
    sha256 = hashlib.sha256(b'["cat", "dog"]')
    for label, name in enumerate(CLASSES):
        for number in range(6):
            sha256.update(f"{name}/{number}.png\0{10 + 2 * number + label}\0\0{label}\0".encode())
    assert known.digest == sha256.hexdigest()[:32]


def test_digits_have_a_digest_of_pixels_and_labels() -> None:
    source = load("digits")
    assert source.digest == load("digits", holdout=0.5).digest
    assert source.images
    contents = set()
    for table in (source.train, source.holdout, source.test):
        assert isinstance(table, ArrayTable)
        pixels = table.images.numpy()
        contents |= {hashlib.blake2b(image, digest_size=8).hexdigest() for image in pixels}
    assert set(source.images.images["content"].to_pylist()) == contents


# The file


def test_the_file_names_each_image_once_with_its_class_and_split(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        files(tmp_path / split)
    source = load(tmp_path, val_as_test=True, data_fraction=0.5)
    assert source.images
    (tmp_path / "splits.parquet").write_bytes(source.images.to_bytes())
    rows = pq.read_table(tmp_path / "splits.parquet").to_pylist()
    by_split: dict[str, set[str]] = {split: set() for split in split_file.ROLES}
    for row in rows:
        assert row["class_name"] == CLASSES[row["label"]] == row["place"].split("/")[1]
        assert row["size"] == (tmp_path / row["place"]).stat().st_size
        by_split[row["split"]].add(row["place"])
    assert len({row["place"] for row in rows}) == len(rows) == 36
    for split, table in (
        ("train", source.train),
        ("holdout", source.holdout),
        ("test", source.test),
    ):
        assert by_split[split] == places(table)
    assert {place for place in by_split["unused"] if place.startswith("test/")} == {
        f"test/{name}/{number}.png" for name in CLASSES for number in range(6)
    }
    read = split_file.read_split_file(Folder(str(tmp_path)))
    assert read
    assert (read.digest, read.class_names) == (source.digest, CLASSES)
    assert read.images.equals(source.images.images)


def test_names_that_are_not_utf8_are_kept(tmp_path: Path) -> None:
    names = pa.array([b"cat/\xff.png", b"dog/1.png"], pa.binary())
    table = FileTable(Folder("/x"), names, np.array([0, 1]), np.array([5, 6]))
    kept = SplitFile.of(CLASSES, [table], np.array([0, 1]))
    read = SplitFile.from_bytes(kept.to_bytes(), "x")
    assert read.digest == kept.digest
    other = SplitFile.of(CLASSES, [table.take(np.array([1]))], np.array([1]))
    assert split_file.changes(kept, other) == [r"1 image removed, such as 'cat/\\xff.png'"]


def nested() -> bytes:
    """A table with names of classes that nest without end."""
    table = pa.table({"place": ["a"]}).replace_schema_metadata({"psvit.class_names": "[" * 5_000})
    written = io.BytesIO()
    pq.write_table(table, written)
    return written.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "x/splits.parquet is no file of splits: "),
        (b"PAR1 half", "x/splits.parquet is no file of splits: "),
        (nested(), "x/splits.parquet is no file of splits: maximum recursion depth exceeded"),
        (None, "x/splits.parquet was changed: its digest is not that of its images"),
    ],
)
def test_a_file_that_was_changed_is_refused(
    tmp_path: Path, content: bytes | None, said: str
) -> None:
    kept = load(files(tmp_path / "data")).images
    assert kept
    if content is None:
        (tmp_path / "whole").write_bytes(kept.to_bytes())
        table = pq.read_table(tmp_path / "whole")
        pq.write_table(table.slice(1), tmp_path / "less")
        content = (tmp_path / "less").read_bytes()
    with pytest.raises(ValueError, match=f"^{said}"):
        SplitFile.from_bytes(content, "x/splits.parquet")


# The cut


def places(table: ImageTable | None) -> set[str]:
    assert table is not None
    return {table.place(index)[1] for index in range(len(table))}


def named(names: list[str]) -> FileTable:
    """A table of files of these names, `class/name`."""
    labels = np.array([CLASSES.index(name.split("/")[0]) for name in names])
    return FileTable.of(Folder("/x"), names, labels)


def parts(names: list[str], size: float, seed: int) -> tuple[set[str], set[str]]:
    table = named(names)
    held = held_out(table, CLASSES, size, seed)
    return places(table.take(np.flatnonzero(~held))), places(table.take(np.flatnonzero(held)))


def test_an_image_is_held_out_by_its_own_name() -> None:
    names = [f"{name}/{number}.png" for name in CLASSES for number in range(50)]
    expected = set()
    for place in names:
        prefix = json.dumps([7, "holdout", place.split("/")[0]]).encode()
        key = hashlib.blake2b(prefix, digest_size=16).digest()
        digest = hashlib.blake2b(key + place.encode(), digest_size=8).digest()
        if int.from_bytes(digest, "big") < 0.3 * 2**64:
            expected.add(place)
    assert parts(names, 0.3, 7)[1] == expected
    assert 15 < len(expected) < 45


def test_adding_images_never_moves_a_trained_one_into_the_hold_out() -> None:
    """But for the one that is trained on in a class that would be held out as a whole."""
    rng = np.random.default_rng(0)
    moves = 0
    for seed in range(300):
        size = rng.uniform(0.05, 0.5)
        counts = rng.integers(2, 20, 2)
        names = [f"{c}/{i}" for c, n in zip(CLASSES, counts, strict=True) for i in range(n)]
        more = [f"{c}/{i}+" for c in CLASSES for i in range(rng.integers(1, 30))]
        train, held = parts(names, size, seed)
        _, held_later = parts(sorted(names + more), size, seed)
        for name in CLASSES:
            of_class = {image for image in train if image.startswith(name)}
            assert of_class
            assert any(image.startswith(name) for image in held)
            if moved := of_class & held_later:
                assert len(of_class) == len(moved) == 1
                moves += 1
        train_less, held_less = parts([*held, *list(train)[1:]], size, seed)
        assert (held_less & train) == set() or len(train_less) < 3
    assert moves < 12  # of 600 classes


def test_a_larger_part_holds_the_smaller_and_every_class() -> None:
    table = named([f"{name}/{number}" for name in CLASSES for number in range(40)])
    before = np.zeros(len(table), dtype=bool)
    for size in (0.001, 0.1, 0.3, 0.7, 0.99):
        now = drawn(table, CLASSES, size, 3)
        assert (now | ~before).all()
        assert np.bincount(table.labels[now], minlength=2).min() >= 1
        before = now
    assert before.sum() > 70


def test_adding_a_shard_leaves_the_cut_of_the_others(tmp_path: Path) -> None:
    """The hub's files say how many there are: each is renamed. (Of a class of which none would be
    held out, one is, until another comes.)"""

    def held(data: Path) -> set[tuple[str, str]]:
        images = places(load(data).holdout)
        return {(place.split("-of-")[0], place.split(":")[1]) for place in images}

    before = held(shards(tmp_path))
    for number in range(2):
        old = tmp_path / f"train-{number:05}-of-00002.parquet"
        old.rename(tmp_path / f"train-{number:05}-of-00003.parquet")
    shard(tmp_path / "train-00002-of-00003.parquet", [20, 21, 22, 23, 24, 25])
    after = {image for image in held(tmp_path) if image[0] != "train-00002"}
    assert after <= before
    assert len(before - after) <= len(CLASSES)
    assert after


# A run


def test_a_checkpoint_goes_on_only_with_its_data() -> None:
    config = TrainConfig(epochs=2, warmup_epochs=0, batch_size=500)
    configuration = Configuration(spec=SPEC, train=config)
    source = load_source(configuration)
    start = next(run_here(configuration, source)).checkpoint()
    assert start.run.data_digest == source.digest

    def go_on(**facts: str) -> int:
        begun = replace(start, run=start.run.model_copy(update=facts))
        return len(list(run_here(configuration, source, start=begun)))

    assert go_on() == 1
    assert go_on(data_digest="") == 1  # of a version that noted none: digits are cut as ever
    with pytest.raises(DataChanged, match=f"the digest is {source.digest}, it was abc"):
        go_on(data_digest="abc")


def test_a_run_that_noted_no_images_goes_on_where_the_cut_is_as_it_was(tmp_path: Path) -> None:
    for split in ("train", "val"):
        files(tmp_path / "split" / split)
    load(tmp_path / "split").check_unchanged("")
    for changes in ({"data_fraction": 0.5}, {"val_as_test": True}):
        with pytest.raises(DataChanged, match=r"^data cannot be checked: the run began with"):
            load(tmp_path / "split", **changes).check_unchanged("")
    with pytest.raises(DataChanged, match=r"^data cannot be checked: the run began with"):
        load(files(tmp_path / "whole")).check_unchanged("")


def test_the_same_images_cut_otherwise_are_refused(tmp_path: Path) -> None:
    source = load(files(tmp_path))
    other = load(tmp_path, split_seed=8)
    moved = len(places(source.holdout) ^ places(other.holdout))
    assert moved
    with pytest.raises(DataChanged, match=f"{moved} images in another split"):
        other.check_unchanged(source.digest, source.images)


def test_a_worker_takes_no_other_images_than_the_run_began_with(tmp_path: Path) -> None:
    data, folder = files(tmp_path / "data"), Folder(str(tmp_path / "run"))
    train = TrainConfig(data=str(data), batch_size=2)
    spec = SPEC.model_validate(SPEC.model_dump() | {"num_classes": 2})
    configuration = Configuration(spec=spec, train=train)
    begun = load_source(configuration)
    assert begun.images
    folder.write(split_file.SPLITS_FILE, begun.images.to_bytes())
    given = DriverData.of(begun, folder)
    assert places(given.open(train).train) == places(begun.train)
    write(data / "cat" / "new.png", 3)
    with pytest.raises(DataChanged) as caught:
        given.open(train)
    assert str(caught.value) == f"{BEGIN}1 image added, such as 'cat/new.png'{END}"


def test_a_worker_takes_the_tone_ranges_of_the_driver(tmp_path: Path) -> None:
    data = files(tmp_path / "data")
    train = TrainConfig(data=str(data))
    of_driver = replace(load(data, split_seed=0, holdout=0.2), tones=Tones(integers=(3, 77)))
    assert DriverData.of(of_driver, Folder(str(tmp_path))).open(train).tones == of_driver.tones


def test_a_process_opens_the_data_of_a_search_once(tmp_path: Path) -> None:
    """What every trial of it may change, but what cuts the data, leaves it open."""
    data, folder = files(tmp_path / "data"), Folder(str(tmp_path))
    train = TrainConfig(data=str(data))
    begun = load(data, split_seed=0, holdout=0.2)
    assert begun.images
    folder.write(split_file.SPLITS_FILE, begun.images.to_bytes())
    given = DriverData.of(begun, folder)
    first = trial.opened(given, train.data_settings)
    write(data / "cat" / "new.png", 3)
    later = TrainConfig(data=str(data), lr=1e-4, seed=3, img_size=16)
    assert trial.opened(given, later.data_settings) is first
    with pytest.raises(DataChanged, match="1 image added"):
        trial.opened(given, TrainConfig(data=str(data), split_seed=5).data_settings)


def test_a_comparison_leaves_out_what_came_after_the_search(tmp_path: Path) -> None:
    data, search = files(tmp_path / "data", per_class=20), Folder(str(tmp_path / "search"))
    train = TrainConfig(data=str(data), batch_size=2)
    spec = SPEC.model_validate(SPEC.model_dump() | {"num_classes": 2})
    configuration = Configuration(spec=spec, train=train)
    begun = load_source(configuration)
    assert begun.images
    search.write(split_file.SPLITS_FILE, begun.images.to_bytes())
    source_for = job("compare_psvit").source_for
    same, notes = source_for(configuration, search)
    assert (same.by_file, notes) == (False, [])

    for number in range(20, 60):
        write(data / "dog" / f"{number}.png", 100 + number)
    source, notes = source_for(configuration, search)
    number = len(begun.holdout)
    assert notes == [
        f"hold-out: {number} of {number} images that the search held out",
        "since the data was split, and left out: 40 images added, such as 'dog/20.png'",
    ]
    assert (places(source.train), places(source.holdout)) == (
        places(begun.train),
        places(begun.holdout),
    )
    # Its workers do as it does.
    folder = Folder(str(tmp_path / "comparison"))
    folder.write(split_file.SPLITS_FILE, source.images.to_bytes())
    given = DriverData.of(source, folder)
    assert places(given.open(train).train) == places(begun.train)
    write(data / "cat" / "late.png", 1)
    with pytest.raises(DataChanged, match=r"1 image added, such as 'cat/late\.png'"):
        given.open(train)


# The job


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Path:
    """A folder with `data` and what a training of one epoch on it left in `out/a`."""
    there = tmp_path_factory.mktemp("trained")
    drawn_folder(there / "data", classes=2, per_class=20, size=32)
    spec = SPEC.model_validate(
        SPEC.model_dump() | {"img_size": 32, "patch_size": 8, "in_chans": 3, "num_classes": 2}
    )
    (there / "spec.json").write_text(spec.model_dump_json())
    assert job("train_psvit").work(parse(line(there))) == 0
    return there


def line(there: Path, more: str = "") -> str:
    return (
        f"train_psvit --arch {there}/spec.json --data {there}/data --epochs 1 --warmup-epochs 0 "
        f"--batch-size 8 --storage {there}/out --name a {more}"
    )


def test_the_digest_is_wherever_a_run_is_written_down(trained: Path, tmp_path: Path) -> None:
    source = load_data(DataSettings(data=str(trained / "data")))
    folder = Folder(str(trained / "out" / "a"))
    kept = split_file.read_split_file(folder)
    assert kept
    assert kept.digest == source.digest
    description = read_description(folder)
    assert description
    assert description.data_digest == source.digest
    (record,) = RecordStore(folder).all()
    assert (record.status, record.data_digest) == ("completed", source.digest)
    assert last_checkpoint(folder / CHECKPOINTS).run.data_digest == source.digest

    assert job("export").work(parse(f"export --run {folder} --out {tmp_path}/model")) == 0
    exported = model_folder.load_model_folder(tmp_path / "model")
    assert exported.config.training.data_digest == source.digest
    copy = model_folder.read_splits(tmp_path / "model", exported)
    assert copy
    assert copy.images.equals(kept.images)

    client = MlflowClient(f"sqlite:///{trained}/out/mlflow.db")
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(ids)
    assert sorted(each.data.tags["psvit.role"] for each in runs) == ["configuration", "training"]
    for each in runs:
        assert each.data.tags["psvit.data_digest"] == source.digest
        assert each.inputs
        (given,) = each.inputs.dataset_inputs
        assert given.dataset.digest == source.digest
        assert {tag.key: tag.value for tag in given.tags} == {"mlflow.data.context": "training"}


def renamed(path: Path) -> None:
    path.rename(path.with_name("renamed.png"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda path: write(path.with_name("new.png"), 5), "1 image added, such as 'NEW'"),
        (Path.unlink, "1 image removed, such as 'OLD'"),
        (renamed, "1 image renamed, such as 'OLD' to 'RENAMED'"),
        (lambda path: write(path, 5), "1 image changed, such as 'OLD', of BYTES bytes, now 5"),
    ],
)
def test_a_resume_on_other_images_is_refused_before_anything_is_written(
    trained: Path, run: Run, tmp_path: Path, change: Make, said: str
) -> None:
    shutil.copytree(trained / "out", tmp_path / "out")
    path = sorted((trained / "data").glob("*/*.png"))[3]
    content, before = path.read_bytes(), everything_under(trained / "out")
    change(path)
    try:
        refused = run(line(trained, "--resume"))
    finally:
        for other in path.parent.glob("[nr]e*.png"):
            other.unlink()
        path.write_bytes(content)
    old = f"{path.parent.name}/{path.name}"
    said = said.replace("NEW", f"{path.parent.name}/new.png").replace("OLD", old)
    said = said.replace("RENAMED", f"{path.parent.name}/renamed.png")
    said = said.replace("BYTES", f"{len(content):,}")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == f"error: {BEGIN}{said}{END}\n"
    assert everything_under(trained / "out") == before


def test_a_run_whose_images_change_under_it_fails_with_what_changed(
    trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained / "data", tmp_path / "data")
    config = TrainConfig(data=str(tmp_path / "data"), epochs=1, warmup_epochs=0, batch_size=8)
    spec = ArchSpec.model_validate_json((trained / "spec.json").read_text())
    configuration = Configuration(spec=spec, train=config)
    with open_session(
        SessionConfig(storage=str(tmp_path / "out"), name="a"),
        default_name="unused",
        identity={},
        source=load_source(configuration),
        num_workers=1,
        resources=WorkerResources(),
    ) as session:
        first = sorted((tmp_path / "data").glob("*/*.png"))[0]
        first.unlink()
        done = train(
            session, configuration, workers=WorkerRange(1, 1), resources_per_worker={"CPU": 1}
        )
    place = f"{first.parent.name}/{first.name}"
    assert done.record.status == "failed"
    assert done.record.reason == (f"DataChanged: {BEGIN}1 image removed, such as '{place}'{END}")
