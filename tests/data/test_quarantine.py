"""The same bad images give the same file, however often and in whichever order they are found."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from psvit_ray.data import quarantine
from psvit_ray.storage.folder import Folder
from tests.helpers.object_store import object_store

ROWS = [
    ("data", "train/cat/1.png", "truncated"),
    ("data", "train-0.parquet:17", 'cannot be decoded: "x", y'),
    ("data", "empty,\n.png", "empty"),
    ("data", "ö.jpg", "not an image"),
    ("data", "Icon\r", "empty"),
    ("data", "=1+1.png", "empty"),
    ("data", "latin-\udcff.png", "empty"),
]
FILE = (
    "source,path,reason\n"
    "data,'=1+1.png,empty\n"
    'data,"Icon\r",empty\n'
    'data,"empty,\n.png",empty\n'
    "data,latin-\udcff.png,empty\n"
    'data,train-0.parquet:17,"cannot be decoded: ""x"", y"\n'
    "data,train/cat/1.png,truncated\n"
    "data,ö.jpg,not an image\n"
).encode("utf-8", "surrogateescape")


def test_the_file_depends_neither_on_order_nor_on_how_often(tmp_path: Path) -> None:
    for number in range(20):
        rows = random.Random(number).sample(ROWS, len(ROWS))
        folder = Folder(str(tmp_path / str(number)))
        quarantine.add_to_quarantine(folder, rows[:2])
        quarantine.add_to_quarantine(folder, rows[1:])
        quarantine.add_to_quarantine(folder, [])
        assert (tmp_path / str(number) / "quarantine.csv").read_bytes() == FILE
        assert quarantine.read_quarantine(folder) == sorted(ROWS)


def test_without_bad_images_there_is_no_file(tmp_path: Path) -> None:
    quarantine.add_to_quarantine(Folder(str(tmp_path)), [])
    assert list(tmp_path.iterdir()) == []
    assert quarantine.read_quarantine(Folder(str(tmp_path))) == []


def test_what_is_there_already_is_not_written_again(tmp_path: Path) -> None:
    quarantine.add_to_quarantine(Folder(str(tmp_path)), ROWS)
    written = (tmp_path / "quarantine.csv").stat().st_ino
    quarantine.add_to_quarantine(Folder(str(tmp_path)), ROWS[2:])
    assert (tmp_path / "quarantine.csv").stat().st_ino == written


@pytest.mark.processes
def test_it_is_kept_in_an_object_store_too() -> None:
    with object_store() as store:
        folder = Folder(store.uri("run"))
        quarantine.add_to_quarantine(folder, ROWS[:1])
        quarantine.add_to_quarantine(folder, ROWS[1:])
        assert folder.read("quarantine.csv") == FILE


@pytest.mark.parametrize("content", [b"source,path,reason\nx\ry,a,b\n", b"a,b\n1,2\n"])
def test_a_file_that_is_not_as_it_was_written_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "quarantine.csv").write_bytes(content)
    said = f"{tmp_path}/quarantine.csv must be as it was written, with source, path, reason: "
    with pytest.raises(ValueError, match=said):
        quarantine.read_quarantine(Folder(str(tmp_path)))
