"""A folder is the same on a disk and in an object store, and never shows half a file."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyarrow import fs

from psvit_ray.storage.folder import Folder
from psvit_ray.text.secrets import without_secrets


@pytest.fixture(params=["disk", "object store"])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Folder]:
    if request.param == "disk":
        yield Folder(str(tmp_path / "outputs"))
        return
    there = fs._MockFileSystem()
    monkeypatch.setattr(Folder, "open", lambda self: (there, self.uri.partition("://")[2]))
    yield Folder("mock://bucket/outputs")


def test_what_is_written_is_read(folder: Folder) -> None:
    folder.write("a.json", b"first")
    folder.write("a.json", b"")
    folder.write("b.json", bytes(range(256)))
    assert folder.read("a.json") == b""
    assert folder.read("b.json") == bytes(range(256))


def test_nothing_is_there_before_it_is_written(folder: Folder) -> None:
    assert folder.read("a.json") is None
    assert folder.names() == []
    folder.delete("a.json")
    folder.delete_files(["a.json"])
    folder.write("b.json", b"")
    assert folder.read("a.json") is None
    assert (folder / "b.json").read("a.json") is None  # a file, where a folder was meant


def test_names_are_in_order_folders_too_but_no_leftovers(folder: Folder) -> None:
    (folder / "record").write("c.json", b"")
    for name in ("b.json", ".a.json.12345678", "a.json"):
        folder.write(name, b"")
    assert folder.names() == ["a.json", "b.json", "record"]
    assert (folder / "record").names() == ["c.json"]


def test_delete_takes_one_file_and_delete_files_the_folder_with_the_last(folder: Folder) -> None:
    for name in ("a", "b", ".b.0123abcd"):
        (folder / "within").write(name, b"x")
    (folder / "within").delete("a")
    assert (folder / "within").names(hidden=True) == [".b.0123abcd", "b"]
    (folder / "within").delete_files(["a", "b"])
    assert folder.names() == []


def test_files_of_others_are_never_deleted_nor_the_folder_that_holds_them(folder: Folder) -> None:
    others = ["b.txt", ".gitignore", ".b.txt.0123abcd", ".a.0123abcdef", "a (copy)", "0123abcd"]
    for name in ("a", ".a.0123abcd", *others):
        folder.write(name, b"x")
    (folder / "kept").write("a", b"x")
    folder.delete_files(["a", "missing"])
    assert folder.names(hidden=True) == sorted([*others, "kept"])
    assert (folder / "kept").read("a") == b"x"


def test_a_tree_that_is_uploaded_is_there_the_same(folder: Folder, tmp_path: Path) -> None:
    local = tmp_path / "local"
    (local / "within").mkdir(parents=True)
    (local / "model.safetensors").write_bytes(content := bytes(range(256)) * 5000)
    (local / "within" / "state.pt").write_bytes(b"state")
    folder.upload(local)
    assert folder.names() == ["model.safetensors", "within"]
    assert folder.read("model.safetensors") == content
    assert (folder / "within").read("state.pt") == b"state"


def test_a_storage_that_can_be_written_stays_as_it_was(folder: Folder) -> None:
    folder.write("a", b"x")
    folder.check_writable()
    there, path = folder.open()
    assert [file.base_name for file in there.get_file_info(fs.FileSelector(path))] == ["a"]


def test_a_folder_that_is_not_there_is_not_made_by_the_check(tmp_path: Path) -> None:
    Folder(str(tmp_path / "not" / "yet")).check_writable()
    assert list(tmp_path.iterdir()) == []


def test_a_reader_sees_the_old_or_the_new_but_no_part(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    versions = [bytes([letter]) * 2_000_000 for letter in b"abcd"]
    folder.write("a", versions[0])
    ended, broken, reads = threading.Event(), [], 0

    def watch() -> None:
        nonlocal reads
        while not ended.is_set() or not reads:
            content = folder.read("a")
            reads += 1
            if content not in versions:
                broken.append(None if content is None else len(content))

    reader = threading.Thread(target=watch)
    reader.start()
    for turn in range(80):
        folder.write("a", versions[turn % 4])
    ended.set()
    reader.join()
    assert broken == []
    assert os.listdir(tmp_path) == ["a"]


def test_a_write_that_fails_leaves_the_old_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(str(tmp_path))
    folder.write("a", b"old")

    def full(source: Path, target: Path) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(OSError, match="no space"):
            folder.write("a", b"new")
    assert folder.read("a") == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("name", ["a b", "50%20", "a#b", "why?", "ü", "a:b", "user@host"])
def test_a_path_on_disk_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    folder = Folder.at(str(tmp_path / name))
    folder.write("x", b"1")
    assert (tmp_path / name / "x").read_bytes() == b"1"
    assert str(folder) == str(tmp_path / name)


def test_paths_become_absolute_and_uris_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert Folder.at("outputs/").uri == str(tmp_path / "outputs")
    assert Folder.at("~/outputs").uri == "/home/me/outputs"
    assert Folder.at("file:///data/outputs").uri == "/data/outputs"
    assert Folder.at("file:///data/outputs").is_local
    assert Folder.at("s3://bucket/prefix/").uri == "s3://bucket/prefix"
    assert not Folder.at("s3://bucket/prefix").is_local
    assert (Folder.at("s3://bucket") / "name").uri == "s3://bucket/name"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://KEY:secret@bucket/prefix", "s3://bucket/prefix"),
        ("s3://KEY:sec/ret+@bucket/prefix", "s3://bucket/prefix"),
        ("http://token@host:5000", "http://host:5000"),
        ("postgresql+psycopg2://me:pw@host:5432/db", "postgresql+psycopg2://host:5432/db"),
        ("s3://bucket/at@home", "s3://bucket/at@home"),
        ("cannot parse URI: 'hdfs://me:pw@host/x' at 3", "cannot parse URI: 'hdfs://host/x' at 3"),
    ],
)
def test_user_and_password_are_never_shown(uri: str, shown: str) -> None:
    assert str(Folder(uri)) == shown
    assert without_secrets(uri) == shown


@pytest.mark.processes
@pytest.mark.parametrize("uri", ["foo://me:secret@host/x", "s3://me:sec/ret@bucket/secret"])
def test_a_storage_of_an_unknown_kind_is_refused_without_its_password(uri: str) -> None:
    with pytest.raises(ValueError, match="storage must be a path or a URI, got ") as caught:
        Folder(uri).check_writable()
    assert "me:" not in str(caught.value)
    with pytest.raises(ValueError, match=r"^(Cannot parse URI|Unrecognized)") as caught:
        Folder(uri).open()
    assert "me:" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    ("path", "reason"),
    [("file", "must be a folder"), ("file/below", "must be a folder"), ("/proc/x", "writable")],
)
def test_a_storage_that_cannot_be_written_is_refused(
    tmp_path: Path, path: str, reason: str
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"storage must .*{reason}|storage {reason}"):
        Folder(str(tmp_path / path)).check_writable()
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == ""


def test_what_a_folder_holds_is_named_before_the_query_of_a_uri() -> None:
    within = Folder("s3://bucket/a?scheme=http&region=eu") / "b" / "c"
    assert within.uri == "s3://bucket/a/b/c?scheme=http&region=eu"
    assert (Folder("/disk/what?") / "b").uri == "/disk/what?/b"


def test_sizes_are_those_of_the_files_alone(folder: Folder) -> None:
    assert folder.sizes() == {}
    (folder / "within").write("c", b"xyz")
    for name, content in (("b", b"12345"), (".b.12345678", b"1"), ("a", b"")):
        folder.write(name, content)
    assert folder.sizes() == {"a": 0, "b": 5}


def test_leftovers_of_killed_writers_go_and_all_else_stays(folder: Folder) -> None:
    others = [".gitignore", "a.json", ".a.json.0123abcdef", ".b.0123abcd", "a.json.0123abcd"]
    for name in (".a.json.0123abcd", *others):
        folder.write(name, b"x")
    folder.delete_leftovers(["a.json", "c"])
    assert folder.names(hidden=True) == sorted(others)
