"""Each file once, by whatever links lead to it; what is no file or cannot be read is one bad image;
names need not be UTF-8."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from psvit_ray.data import quarantine
from psvit_ray.data.images import file_bytes
from psvit_ray.data.images.decode import BadImage
from psvit_ray.data.sources import unlabelled
from psvit_ray.data.sources.load_data import read_data
from psvit_ray.data.splits.layout import DataLayout
from psvit_ray.data.tables import ImageTable
from psvit_ray.storage import files
from psvit_ray.storage.folder import Folder
from tests.helpers.stored import folder_of


def paths_of(table: ImageTable) -> list[str]:
    return [table.place(index)[1] for index in range(len(table))]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "pets", *(f"{c}/{n}.png" for c in ("cat", "dog") for n in range(3)))


OWN = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(3)]


@pytest.mark.parametrize(
    "links",
    [
        {"dog/link": "."},
        {"dog/link": ".."},
        {"link": "."},
        {"dog/link": "../.."},
        {"dog/link": "/"},
        {"cat/x": "../dog", "dog/y": "../cat"},
        {"dog/a": "b", "dog/b": ".."},
        {"dog/again.png": "0.png"},
    ],
)
def test_links_to_what_is_there_add_nothing_and_are_said(links: dict[str, str], pets: Path) -> None:
    for name, target in links.items():
        os.symlink(target, pets / name)
    splits = read_data(str(pets))
    assert splits.class_names == ("cat", "dog")
    assert paths_of(splits.train) == OWN
    assert splits.notes[0].startswith(
        f"left out, as each file is used once: {len(links)} links or second names, such as "
    )
    (part,) = unlabelled.read_unlabelled(
        [str(pets)]
    )  # which answers to a file by each of its names
    names = [name for name in links if name.endswith(".png")]
    assert paths_of(part.table) == sorted([*OWN, *names])


def test_linked_folders_and_files_from_elsewhere_are_used_once(pets: Path, tmp_path: Path) -> None:
    pool = folder_of(tmp_path / "pool", "owl/1.png", "owl/deep/2.png", "3.png")
    os.symlink(pool / "owl", pets / "owl")
    os.symlink(pool / "owl" / "deep", pets / "owl2")
    os.symlink(pool / "3.png", pets / "dog" / "b.png")
    os.symlink(pool / "3.png", pets / "dog" / "a.png")
    os.symlink(pool, pool / "owl" / "around")
    splits = read_data(str(pets))
    assert splits.class_names == ("cat", "dog", "owl")
    assert sorted(paths_of(splits.train)) == sorted(
        [*OWN, "dog/a.png", "owl/1.png", "owl/deep/2.png"]
    )


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_one_file_in_two_classes_is_refused(link: object, pets: Path, tmp_path: Path) -> None:
    pool = folder_of(tmp_path / "pool", "1.png")
    for name in ("cat/z.png", "dog/z.png"):
        link(pool / "1.png", pets / name)  # type: ignore[operator]
    with pytest.raises(
        ValueError, match=r"in one class, got dog/z.png, which is the file cat/z.png"
    ):
        read_data(str(pets))


def test_splits_that_are_links_into_a_pool_are_read_where_they_are_said(tmp_path: Path) -> None:
    data = folder_of(tmp_path, *(f"pool/{number}.png" for number in range(4)), "all/ant/5.png")
    for number, name in enumerate(("train/bee/a", "train/cow/b", "test/bee/c", "test/cow/d")):
        there = data / f"{name}.png"
        there.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(data / "pool" / f"{number}.png", there)
    os.symlink("../all/ant", data / "train" / "ant")
    with pytest.raises(ValueError, match=r"say --splits train=train,test=test"):
        read_data(str(data))
    splits = read_data(str(data), DataLayout(splits="train=train,test=test"))
    assert splits.class_names == ("ant", "bee", "cow")
    assert paths_of(splits.train) == ["train/ant/5.png", "train/bee/a.png", "train/cow/b.png"]
    assert splits.test is not None
    assert [splits.test.read(index) for index in range(2)] == [b"pool/2.png", b"pool/3.png"]


def test_a_split_that_is_a_link_to_another_is_refused(tmp_path: Path) -> None:
    data = folder_of(tmp_path, "train/ant/1.png", "train/bee/1.png", "test/ant/2.png")
    os.symlink("test", data / "val")
    with pytest.raises(ValueError, match="each image in one split, got val in val, which is test"):
        read_data(str(data))
    both = DataLayout(splits="train=train,test=test")
    assert paths_of(read_data(str(data), both).train) == [
        "train/ant/1.png",
        "train/bee/1.png",
    ]


def test_a_link_with_a_suffix_of_its_own_names_the_file(tmp_path: Path) -> None:
    data = folder_of(tmp_path, "blobs/0a1b", "blobs/2c3d", "cat/", "dog/")
    os.symlink("../blobs/0a1b", data / "cat" / "1.png")
    os.symlink("../blobs/2c3d", data / "dog" / "1.png")
    assert paths_of(read_data(str(data)).train) == ["cat/1.png", "dog/1.png"]


def test_hard_links_of_a_class_are_one_image(pets: Path) -> None:
    os.link(pets / "cat" / "1.png", pets / "cat" / "9.png")
    splits = read_data(str(pets))
    assert paths_of(splits.train) == OWN
    assert splits.notes[0].endswith("such as cat/9.png, which is cat/1.png")


def test_what_is_no_file_or_has_no_end_is_a_bad_image(
    pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(pets / "cat" / "pipe.png")
    os.symlink("/dev/zero", pets / "cat" / "zero.png")
    os.symlink("gone", pets / "cat" / "gone.png")
    os.symlink("loop.png", pets / "cat" / "loop.png")
    monkeypatch.setattr(file_bytes, "MAX_BYTES", 20)
    (pets / "dog" / "large.png").write_bytes(b"x" * 21)
    (pets / "dog" / "just.png").write_bytes(b"x" * 20)
    table = read_data(str(pets)).train
    reasons = {}
    for index, path in enumerate(paths_of(table)):
        try:
            table.read(index)
        except BadImage as error:
            reasons[path] = str(error)
    assert reasons == {
        "cat/pipe.png": "not a regular file",
        "cat/zero.png": "not a regular file",
        "cat/gone.png": "no such file or directory",
        "cat/loop.png": "too many levels of symbolic links",
        "dog/large.png": "more than 20 bytes",
    }


def test_a_path_that_cannot_be_is_a_bad_image(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, reason in {
        "file/1.png": "not a directory",
        "x" * 300: "file name too long",
        "a\0b": "no path of a file: embedded null byte",
        "caf\udce9.png": "no such file or directory",
    }.items():
        with pytest.raises(BadImage) as caught:
            file_bytes.read_image_file(Folder(str(tmp_path)), path)
        assert str(caught.value) == reason


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EMFILE])
def test_a_storage_that_fails_is_no_bad_image(
    number: int, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_data(str(pets)).train

    def fails(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, "open", fails)
    with pytest.raises(OSError, match=os.strerror(number)):
        table.read(0)


def test_a_folder_that_cannot_be_listed_is_named(
    pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = os.scandir

    def scandir(path: str) -> object:
        if path.endswith("dog"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(files.os, "scandir", scandir)
    with pytest.raises(ValueError, match=rf"data must be readable, got .*'{pets}/dog'"):
        read_data(str(pets))


def test_names_that_are_not_utf_8_keep_their_bytes(tmp_path: Path) -> None:
    names = [b"caf\xe9/\xff.png", b"caf\xe9/2.png", b"tea/1.png"]
    for name in names:
        there = os.path.join(os.fsencode(tmp_path), b"data", name)
        os.makedirs(os.path.dirname(there), exist_ok=True)
        Path(os.fsdecode(there)).write_bytes(name)
    splits = read_data(str(tmp_path / "data"))
    assert splits.class_names == ("caf\\xe9", "tea")
    table = splits.train.take(np.arange(3))
    assert {table.read(index) for index in range(3)} == set(names)
    rows = [(*table.place(index), "bad") for index in range(3)]
    quarantine.add_to_quarantine(Folder(str(tmp_path)), rows)
    assert quarantine.read_quarantine(Folder(str(tmp_path))) == sorted(rows)
    assert b"/data,caf\xe9/\xff.png,bad\n" in (tmp_path / "quarantine.csv").read_bytes()
    os.chdir(tmp_path / "data")
    (part,) = unlabelled.read_unlabelled(["-"], [os.fsdecode(names[0]) + "\n"])
    assert part.table.read(0) == names[0]


def test_a_macs_and_a_nass_folders_are_no_classes(pets: Path) -> None:
    folder_of(
        pets, "__MACOSX/cat/._1.png", "@eaDir/x.png", ".cache/x.png", "dog/@eaDir/0.png/t.jpg"
    )
    splits = read_data(str(pets))
    assert (splits.class_names, paths_of(splits.train)) == (("cat", "dog"), OWN)
