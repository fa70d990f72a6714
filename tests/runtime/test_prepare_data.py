"""Shards are a function of data and settings, hold every good image once, and can be checked."""

from __future__ import annotations

import csv
import io
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset, load_dataset
from datasets.features import ClassLabel
from PIL import Image, ImageOps

from psvit_ray.data.shards import plan, shard_file
from psvit_ray.data.shards.settings import ShardSettings
from psvit_ray.data.shards.shard_file import write_shard
from psvit_ray.data.sources import parquet_table
from psvit_ray.data.sources.load_data import read_data
from psvit_ray.data.sources.parquet_table import row_groups
from psvit_ray.data.sources.shard_manifest import ShardManifest, faults, read_manifest
from psvit_ray.data.tables import ArrayTable
from psvit_ray.runtime.batch import prepare as runtime
from psvit_ray.runtime.batch.prepare import check_out, prepare
from psvit_ray.runtime.session.config import Resume
from psvit_ray.storage.folder import Folder
from tests.helpers.command_line import job
from tests.helpers.drawn import CLASS_NAMES, drawn, drawn_folder
from tests.helpers.object_store import ACCESS_KEY, SECRET_KEY, object_store
from tests.helpers.stored import as_rows, contents, write_parquet

ROOT = Path(__file__).parents[2]
PATIENCE_S = 240
ORIENTATION = 0x0112
NAMES = tuple(sorted(CLASS_NAMES[:6]))
SMALL = ShardSettings(shard_mb=0.1, seed=3)  # some ten drawn images

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """180 PNG of 6 classes, two splits, classes in order."""
    path = tmp_path_factory.mktemp("images") / "data"
    return drawn_folder(path, classes=6, splits={"train": 20, "val": 10})


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    prepared(data, out)
    return out


def prepared(
    data: Path | str,
    out: Path | Folder,
    settings: ShardSettings = SMALL,
    *,
    most_bad: float = 0.05,
    workers: int = 0,
    resume: Resume = "never",
) -> None:
    """What the job does, in the tests' Ray."""
    splits = read_data(str(data))
    folder = out if isinstance(out, Folder) else Folder(str(out))
    identity = plan.identity(splits, settings)
    if check_out(folder, identity, resume) is None:
        prepare(splits, folder, identity, settings, workers=workers, max_bad_fraction=most_bad)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def rows(out: Path, split: str = "train") -> list[dict[str, Any]]:
    """As they follow each other in the shards."""
    return [
        row for path in sorted(out.glob(f"{split}-*")) for row in pq.read_table(path).to_pylist()
    ]


def manifest(out: Path) -> ShardManifest:
    found = read_manifest(Folder(str(out)))
    assert found
    return found


def test_every_image_is_there_once_with_its_bytes_and_its_class(
    data: Path, undisturbed: Path
) -> None:
    for split, per_class in (("train", 20), ("val", 10)):
        found = rows(undisturbed, split)
        assert len(found) == 6 * per_class
        by_path = {row["image"]["path"]: row for row in found}
        assert by_path.keys() == {
            str(path.relative_to(data)) for path in (data / split).rglob("*.png")
        }
        for path, row in by_path.items():
            assert row["image"]["bytes"] == (data / path).read_bytes()
            assert NAMES[row["label"]] == Path(path).parent.name


def test_the_manifest_says_what_is_there(undisturbed: Path) -> None:
    said = manifest(undisturbed)
    assert said.class_names == NAMES
    names = {name for split in said.splits.values() for name in split.files}
    assert names | {"manifest.json"} == set(files(undisturbed))
    train = said.splits["train"]
    assert train.classes == dict.fromkeys(NAMES, 20)
    assert (train.rows, train.bad_images) == (120, 0)
    number = len(train.files)
    assert list(train.files) == [f"train-{i:05}-of-{number:05}.parquet" for i in range(number)]
    sizes = [file.bytes for file in train.files.values()]
    assert number > 5
    assert 0.8e5 < np.mean(sizes) < 1.2e5  # --shard-mb 0.1
    assert sum(sizes) == train.bytes


def test_the_datasets_library_reads_it_with_its_names(undisturbed: Path, tmp_path: Path) -> None:
    one = sorted(undisturbed.glob("train-*"))[0]
    read = Dataset.from_parquet(str(one), cache_dir=str(tmp_path))
    assert read.features["label"] == ClassLabel(names=list(NAMES))
    ours = pq.read_table(one).to_pylist()
    assert len(read) == len(ours)
    for theirs, row in zip(read, ours, strict=True):
        assert theirs["label"] == row["label"]
        picture = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert theirs["image"].tobytes() == picture.tobytes()
    whole = load_dataset(str(undisturbed), cache_dir=str(tmp_path))
    assert {split: len(found) for split, found in whole.items()} == {"train": 120, "validation": 60}


def test_what_is_read_back_is_the_source(data: Path, undisturbed: Path) -> None:
    before, after = read_data(str(data)), read_data(str(undisturbed))
    assert after.class_names == before.class_names
    assert list(after.tables) == list(before.tables) == ["train", "val"]
    for old, new in zip(before.tables.values(), after.tables.values(), strict=True):
        pairs = [
            Counter((table.read(i), int(table.labels[i])) for i in range(len(table)))
            for table in (old, new)
        ]
        assert pairs[0] == pairs[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_the_files_are_the_same_whoever_wrote_them(
    data: Path, undisturbed: Path, tmp_path: Path, workers: int
) -> None:
    prepared(data, tmp_path / "out", workers=workers)
    assert files(tmp_path / "out") == files(undisturbed)


def test_asked_to_stop_it_says_how_far_it_is_and_a_resume_ends_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = ShardSettings(shard_mb=0.02)
    prepared(data, tmp_path / "undisturbed", many)
    check_bad, checked = runtime._check_bad, itertools.count()

    def ask(*args: Any) -> None:
        if next(checked) == 3:  # the first is before any shard
            signal.raise_signal(signal.SIGTERM)
        check_bad(*args)

    monkeypatch.setattr(runtime, "_check_bad", ask)
    said = (
        f"SIGTERM: [3-9] of {len(list(tmp_path.glob('undisturbed/*.parquet')))} shards are written"
    )
    with pytest.raises(runtime.PrepareInterrupted, match=said):
        prepared(data, tmp_path / "out", many, workers=1)
    prepared(data, tmp_path / "out", many, resume="must")
    assert files(tmp_path / "out") == files(tmp_path / "undisturbed")


def test_killed_and_resumed_it_is_the_undisturbed_run(data: Path, tmp_path: Path) -> None:
    many = ShardSettings(shard_mb=0.02)  # two images in each, so that there is time to kill it
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    prepared(data, undisturbed, many)
    line = ["jobs/prepare_data.py", "--data", str(data), "--out", str(out), "--shard-mb", "0.02"]
    driver = subprocess.Popen(
        [sys.executable, *line, "--workers", "1"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    patience = time.monotonic() + PATIENCE_S
    while len(notes := list(out.glob("progress/*.parquet.json"))) < 2:
        assert driver.poll() is None, driver.communicate()[0]
        assert time.monotonic() < patience
        time.sleep(0.005)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert not (out / "manifest.json").exists()
    with pytest.raises(ValueError, match="are not all written: go on with"):
        read_data(str(out))

    done = {note.name.removesuffix(".json") for note in notes}
    _, *others = sorted(
        path.name for path in undisturbed.glob("*.parquet") if path.name not in done
    )
    cut = files(undisturbed)[others[0]][:1000]
    (out / others[0]).write_bytes(cut)  # as a killed writer of another system leaves it
    (out / done.pop()).write_bytes(cut)  # as a host that lost power leaves it
    (out / f".{others[0]}.0123abcd").write_bytes(cut)  # as ours does
    made = {name: (out / name).stat().st_ino for name in done}
    prepared(data, out, many, resume="must")
    assert files(out) == files(undisturbed)
    assert {name: (out / name).stat().st_ino for name in done} == made


def test_a_finished_run_is_left_alone_by_a_resume(data: Path, undisturbed: Path) -> None:
    def stat() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in undisturbed.iterdir()}

    before = stat()
    prepared(data, undisturbed, resume="must")
    assert stat() == before


def test_another_seed_gives_another_order(data: Path) -> None:
    splits = read_data(str(data))
    orders = [
        [shard.indices.tolist() for shard in plan.plan(splits, SMALL.model_copy(update=seed))]
        for seed in ({}, {}, {"seed": 4})
    ]
    assert orders[0] == orders[1] != orders[2]


def test_classes_in_order_on_disk_are_mixed(undisturbed: Path) -> None:
    labels = [row["label"] for row in rows(undisturbed)]
    for start in range(0, 120, 30):  # each has 5 of each class on average
        assert set(labels[start : start + 30]) == set(range(6))
    neighbours = np.mean(np.equal(labels[1:], labels[:-1]))
    assert neighbours == pytest.approx(1 / 6, abs=0.1)


BLOCKS = np.repeat(np.arange(50), 100)


def order_of(blocks: np.ndarray | None, num_shards: int) -> list[np.ndarray]:
    bounds = np.linspace(0, len(BLOCKS), num_shards + 1).astype(int)
    rng = np.random.Generator(np.random.PCG64(0))
    return np.split(plan._order(blocks, bounds, rng), bounds[1:-1])


def test_few_shards_are_mixed_as_a_whole_however_the_source_is_read() -> None:
    assert np.array_equal(order_of(BLOCKS, 8), order_of(None, 8))


def test_no_block_is_read_for_more_shards_than_a_window_has_and_its_neighbours() -> None:
    parts = order_of(BLOCKS, 40)
    assert sorted(np.concatenate(parts)) == list(range(len(BLOCKS)))
    readers = Counter(block for part in parts for block in np.unique(BLOCKS[part]))
    assert max(readers.values()) <= 2 * plan.WINDOW_SHARDS  # 40 if mixed as a whole
    assert np.mean([*readers.values()]) < 10
    for part in parts:
        assert len(np.unique(BLOCKS[part])) >= 8  # of the 10 or 11 of its window


def test_row_groups_hold_32_images_or_4_mib(tmp_path: Path) -> None:
    noise = torch.randint(0, 256, (3, 3, 850, 850), dtype=torch.uint8)  # 2.2 MB as PNG
    for name, images, groups in (
        ("small", torch.zeros(70, 1, 8, 8, dtype=torch.uint8), [32, 32, 6]),
        ("large", noise, [1, 1, 1]),
    ):
        table = ArrayTable(images, np.zeros(len(images), dtype=np.int64))
        write_shard(Folder(str(tmp_path)), name, table, ("a", "b"), ShardSettings())
        found = pq.ParquetFile(tmp_path / name).metadata
        assert [found.row_group(i).num_rows for i in range(found.num_row_groups)] == groups


def test_pictures_without_a_file_are_stored_without_loss(tmp_path: Path) -> None:
    for channels in (1, 3):
        images = torch.randint(0, 256, (4, channels, 9, 9), dtype=torch.uint8)
        table = ArrayTable(images, np.arange(4) % 2)
        write_shard(Folder(str(tmp_path)), "a.parquet", table, ("a", "b"), ShardSettings())
        stored = pq.read_table(tmp_path / "a.parquet").column("image").to_pylist()
        for image, row in zip(images, stored, strict=True):
            pixels = np.asarray(Image.open(io.BytesIO(row["bytes"])))
            assert np.array_equal(pixels, image.permute(1, 2, 0).numpy().squeeze())


def test_a_source_in_blocks_is_read_block_by_block_of_which_one_is_held(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_parquet(tmp_path / "a.parquet", *as_rows(data / "train"), row_group_size=30)
    table = read_data(str(tmp_path / "a.parquet")).train
    assert table.blocks is not None
    mixed = table.take(np.random.default_rng(0).permutation(len(table)))
    of_file = parquet_table._read_column
    read: list[Any] = []

    def counted(*args: Any) -> Any:
        assert not read or row_groups.bytes == 0
        read.append(args)
        return of_file(*args)

    monkeypatch.setattr(parquet_table, "_read_column", counted)
    found = dict(shard_file.contents(mixed, ShardSettings()))
    assert len(read) == len(set(table.blocks)) == 4
    assert row_groups.bytes == 0
    monkeypatch.undo()
    assert [found[index] for index in range(len(mixed))] == contents(mixed)


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """One class with pictures of many kinds, one with a single one."""
    folder = tmp_path / "odd" / "a"
    folder.mkdir(parents=True)
    picture = drawn(CLASS_NAMES[0], 0, size=64).resize((96, 64))
    picture.save(folder / "wide.jpg")
    picture.save(folder / "wide.png")
    picture.save(folder / "wide.webp", lossless=True)
    picture.convert("L").save(folder / "grey.jpg")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.convert("P").save(folder / "palette.png")
    picture.resize((40, 48)).save(folder / "small.jpg")
    turned = Image.Exif()
    turned[ORIENTATION] = 6  # lies on its side
    picture.save(folder / "turned.jpg", exif=turned)
    other = folder.parent / "b"
    other.mkdir()
    picture.resize((48, 48)).save(other / "square.png")
    return folder.parent


def test_the_longer_side_is_made_smaller_and_never_larger(odd: Path, tmp_path: Path) -> None:
    prepared(odd, tmp_path / "out", ShardSettings(resize_longer=48, quality=90))
    found = {
        Path(row["image"]["path"]).name: row["image"]["bytes"] for row in rows(tmp_path / "out")
    }
    for kept in ("a/small.jpg", "b/square.png"):
        assert found[Path(kept).name] == (odd / kept).read_bytes()
    forms = {name: Image.open(io.BytesIO(content)) for name, content in found.items()}
    assert {name: (form.format, form.mode, form.size) for name, form in forms.items()} == {
        "wide.jpg": ("JPEG", "RGB", (48, 32)),
        "wide.png": ("PNG", "RGB", (48, 32)),
        "wide.webp": ("JPEG", "RGB", (48, 32)),
        "grey.jpg": ("JPEG", "L", (48, 32)),
        "cmyk.jpg": ("JPEG", "RGB", (48, 32)),
        "palette.png": ("PNG", "RGB", (48, 32)),
        "small.jpg": ("JPEG", "RGB", (40, 48)),
        "turned.jpg": ("JPEG", "RGB", (32, 48)),
        "square.png": ("PNG", "RGB", (48, 48)),
    }
    for name in found.keys() - {"small.jpg", "square.png"}:
        picture = Image.open(odd / "a" / name)
        mode = "L" if picture.mode == "L" else "RGB"
        expected = ImageOps.exif_transpose(picture).convert(mode)
        expected.thumbnail((48, 48), Image.Resampling.LANCZOS)
        again = io.BytesIO()
        expected.save(again, forms[name].format, quality=90)
        assert found[name] == again.getvalue(), name
    assert forms["turned.jpg"].getexif().get(ORIENTATION, 1) == 1


@pytest.fixture
def with_bad(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """100 images of which 3 are bad, and those with their reasons."""
    folder = drawn_folder(tmp_path / "bad", classes=2, per_class=50)
    bad = {f"{CLASS_NAMES[0]}/00007.png": "empty", f"{CLASS_NAMES[1]}/00000.png": "truncated"}
    whole = (folder / CLASS_NAMES[1] / "00000.png").read_bytes()
    (folder / CLASS_NAMES[0] / "00007.png").write_bytes(b"")
    (folder / CLASS_NAMES[1] / "00000.png").write_bytes(whole[: len(whole) // 2])
    (folder / CLASS_NAMES[1] / "00049.png").write_text("no image")
    return folder, bad | {f"{CLASS_NAMES[1]}/00049.png": "not an image"}


def test_bad_images_are_left_out_named_and_counted(
    with_bad: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, bad = with_bad
    out = tmp_path / "out"
    prepared(folder, out)
    named = list(csv.DictReader((out / "quarantine.csv").read_text().splitlines()))
    assert [row["source"] for row in named] == [str(folder)] * 3
    assert {row["path"]: row["reason"] for row in named} == bad
    paths = [row["image"]["path"] for row in rows(out)]
    assert len(paths) == len(set(paths)) == 97
    assert not set(paths) & set(bad)
    said = manifest(out).splits["train"]
    assert (said.rows, said.bad_images) == (97, 3)
    assert said.classes == {CLASS_NAMES[0]: 49, CLASS_NAMES[1]: 48}
    assert faults(Folder(str(out)), manifest(out)) == []
    prepared(folder, tmp_path / "again", workers=1)
    assert files(tmp_path / "again") == files(out)


def test_too_many_bad_images_end_it_and_a_resume_may_allow_them(
    with_bad: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, bad = with_bad
    out = tmp_path / "out"
    prepared(folder, out, most_bad=0.03)  # 3 of 100 are not more
    allowed = files(out)
    out = tmp_path / "stopped"
    with pytest.raises(ValueError, match=r"data has 3 images that .* max_bad_fraction=0.02; .*csv"):
        prepared(folder, out, most_bad=0.02)
    assert not (out / "manifest.json").exists()
    named = csv.DictReader((out / "quarantine.csv").read_text().splitlines())
    assert {row["path"]: row["reason"] for row in named} == bad
    prepared(folder, out, most_bad=0.03, resume="must")
    assert files(out) == allowed


def test_an_object_store_gets_the_same_files_also_by_a_resume(
    with_bad: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, _ = with_bad
    prepared(folder, tmp_path / "out")
    with object_store() as store:
        store.upload(folder, "images")
        # Ray's processes were started before the store: they know only what a URI says.
        uris = (store.uri(path, f"{ACCESS_KEY}:{SECRET_KEY}@") for path in ("images", "shards"))
        data, uri = (f"{uri}&region=us-east-1" for uri in uris)
        out = Folder(uri)
        with pytest.raises(ValueError, match="more than max_bad_fraction") as said:
            prepared(data, out, most_bad=0.02)
        assert SECRET_KEY not in str(said.value)
        prepared(data, out, resume="must")
        there = {name: out.read(name) for name in out.names()}
        found = read_manifest(out)
        assert found
        assert faults(out, found) == []
    here = files(tmp_path / "out")
    shard_names = {name for name in here if name.endswith(".parquet")}
    assert there.keys() == here.keys()
    assert {name: there[name] for name in shard_names} == {name: here[name] for name in shard_names}
    assert found.splits == manifest(tmp_path / "out").splits
    assert not any(SECRET_KEY.encode() in (content or b"") for content in there.values())


def test_data_without_a_good_image_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "1.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no image that can be used among 2 of train: .* empty"):
        prepared(tmp_path / "data", tmp_path / "out")


def test_storage_that_fails_is_said_and_what_is_written_stays(
    data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    last = max(path.name for path in undisturbed.glob("*.parquet"))
    begun = plan.identity(read_data(str(data)), SMALL)
    Folder(str(out / "progress")).write("plan.json", json.dumps(begun).encode())
    (out / last / "in the way").mkdir(parents=True)
    with pytest.raises(ValueError, match=rf"not be written: .*{last}.*; --resume goes on") as said:
        prepared(data, out, resume="must", workers=1)
    assert "Traceback" not in str(said.value)
    noted = {path.name.removesuffix(".json") for path in out.glob("progress/*.parquet.json")}
    assert noted | {last} == {path.name for path in undisturbed.glob("*.parquet")}
    (out / last / "in the way").rmdir()
    (out / last).rmdir()
    prepared(data, out, resume="must")
    assert files(out) == files(undisturbed)


Damage = Callable[[Path, str, dict[str, Any]], None]


def flip_a_byte(out: Path, name: str, said: dict[str, Any]) -> None:
    content = bytearray((out / name).read_bytes())
    content[random.Random(0).randrange(len(content))] ^= 1
    (out / name).write_bytes(content)


def cut_the_end(out: Path, name: str, said: dict[str, Any]) -> None:
    (out / name).write_bytes((out / name).read_bytes()[:-1])


def lose_a_file(out: Path, name: str, said: dict[str, Any]) -> None:
    (out / name).unlink()


def count_rows_wrong(out: Path, name: str, said: dict[str, Any]) -> None:
    said["splits"]["train"]["files"][name]["rows"] += 1


def count_a_class_wrong(out: Path, name: str, said: dict[str, Any]) -> None:
    said["splits"]["train"]["classes"][NAMES[0]] -= 1


def count_a_split_wrong(out: Path, name: str, said: dict[str, Any]) -> None:
    said["splits"]["train"]["bytes"] -= 1


def swap_two_files(out: Path, name: str, said: dict[str, Any]) -> None:
    other = out / next(iter(said["splits"]["train"]["files"]))
    first, second = (out / name).read_bytes(), other.read_bytes()
    (out / name).write_bytes(second)
    other.write_bytes(first)


def add_a_file(out: Path, name: str, said: dict[str, Any]) -> None:
    (out / "more.parquet").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "wrong"),
    [
        (flip_a_byte, ["{name}: sha256 is "]),
        (cut_the_end, ["{name}: has "]),
        (lose_a_file, ["{name}: missing"]),
        (count_rows_wrong, ["{name}: has "]),
        (count_a_class_wrong, ["train: class 'dotted-disc' has 20 images, the manifest says 19"]),
        (count_a_split_wrong, ["train: its files have "]),
        (swap_two_files, ["{first}: ", "{name}: "]),
        (add_a_file, ["more.parquet: not in the manifest"]),
    ],
)
def test_verify_names_what_is_wrong(
    undisturbed: Path, tmp_path: Path, damage: Damage, wrong: list[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name, content in files(undisturbed).items():
        (out / name).write_bytes(content)
    folder = Folder(str(out))
    assert faults(folder, manifest(out)) == []
    said = json.loads((out / "manifest.json").read_text())
    first, name, *_ = said["splits"]["train"]["files"]
    damage(out, name, said)
    (out / "manifest.json").write_text(json.dumps(said))
    found = faults(folder, manifest(out))
    assert len(found) == len(wrong)
    for line, begins in zip(found, wrong, strict=True):
        assert line.startswith(begins.format(name=name, first=first))


def test_the_job_says_what_it_wrote_and_verify_ends_with_1_where_it_differs(
    data: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare_data = job("prepare_data")

    def work(**fields: Any) -> tuple[int, str]:
        code = prepare_data.work(prepare_data.PrepareJob(out=str(tmp_path / "out"), **fields))
        return code, capsys.readouterr().out

    code, said = work(data=str(data), settings=SMALL)
    assert code == 0
    assert "18 of 18 shards" in said
    assert "train: 120 images, 1.2 MB, shards: 12" in said
    assert files(tmp_path / "out") == files(undisturbed)
    assert work(verify=True)[0] == 0
    first, second, *_ = manifest(undisturbed).splits["train"].files
    (tmp_path / "out" / first).unlink()
    (tmp_path / "out" / second).write_bytes(b"")
    code, said = work(verify=True)
    assert code == 1
    assert f"{first}: missing" in said
    assert f"{second}: has 0 bytes, the manifest says" in said
