"""Names that users choose: which are taken, and how they come to Ray, MLflow and object stores."""

from __future__ import annotations

import os
import random
from pathlib import Path
from urllib.parse import unquote

import pytest
from mlflow.store.artifact.utils.models import _parse_model_uri
from mlflow.utils import validation
from pyarrow import fs

from psvit_ray.runtime.cluster.ray_names import ray_name
from psvit_ray.runtime.session.config import SessionConfig
from psvit_ray.runtime.session.session import resolve_folder
from psvit_ray.runtime.tracking import registry
from psvit_ray.runtime.tracking.gauges import Gauges
from psvit_ray.runtime.tracking.parent_run import data_set_name, experiment_name
from psvit_ray.search.description import read_records
from psvit_ray.storage import files
from psvit_ray.storage.file_names import MAX_NAME_BYTES, check_file_name, check_folder_name
from psvit_ray.storage.folder import Folder
from psvit_ray.text.printable import printable

STRANGE = (
    *("größe-1", "実験", "a b", "50%25", "what?", "a#b", "it's", 'a"b', "a[b]*", "=a", "con"),
    "ü" * 120,
)


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_that_a_disk_takes_is_a_name(name: str, tmp_path: Path) -> None:
    storage, resolved = resolve_folder(
        SessionConfig(storage=str(tmp_path), name=name), default_name="x"
    )
    assert (storage.uri, resolved) == (str(tmp_path), name)
    (storage / name).write("a", b"1")
    assert (tmp_path / name / "a").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "name must not be empty"),
        (".", "name must be usable as a folder name, got '.'"),
        ("..", "name must be usable as a folder name, got '..'"),
        ("a/b", "name must be usable as a folder name, got 'a/b'"),
        ("a\\b", r"name must be usable as a folder name, got 'a\\b'"),
        (" a", "name must be usable as a folder name, got ' a'"),
        ("a ", "name must be usable as a folder name, got 'a '"),
        ("-a", "name must be usable as a folder name, got '-a'"),
        ("a\nb", r"name must be of printable characters, got '\n' in 'a\nb'"),
        ("a\x00b", r"name must be of printable characters, got '\x00' in 'a\x00b'"),
        ("a\x1b[31m", r"name must be of printable characters, got '\x1b' in 'a\x1b[31m'"),
        ("a\udcff", r"name must be of printable characters, got '\udcff' in 'a\udcff'"),
        ("a\u202eb", r"name must be of printable characters, got '\u202e' in 'a\u202eb'"),
        ("a" * 241, f"name must be at most 240 bytes long in UTF-8, got 241 in '{'a' * 40}'..."),
        ("ü" * 121, f"name must be at most 240 bytes long in UTF-8, got 242 in '{'ü' * 40}'..."),
    ],
)
def test_any_other_name_is_refused_with_the_rule(name: str, said: str, tmp_path: Path) -> None:
    for use in (
        lambda: resolve_folder(SessionConfig(storage=str(tmp_path), name=name), default_name="x"),
        lambda: read_records(Folder(str(tmp_path)), name),
    ):
        with pytest.raises(ValueError, match="name must") as caught:
            use()
        assert str(caught.value).startswith(said)
    assert os.listdir(tmp_path) == []


def test_the_longest_name_has_room_for_what_is_being_written(tmp_path: Path) -> None:
    longest = "x" * MAX_NAME_BYTES
    check_file_name(longest, "out")
    (tmp_path / f".{longest}.0123abcd").touch()
    Folder(str(tmp_path)).write(longest, b"1")
    assert os.listdir(tmp_path)


def test_ray_takes_every_name_that_is_taken() -> None:
    for name in STRANGE:
        check_folder_name(name, "name")
        Gauges(name).training([])  # Ray raises for a tag that is not ASCII
        assert ray_name(name).isascii()
        assert len(ray_name(name)) <= 200
    assert unquote(ray_name("größe 50%25")) == "größe 50%25"
    assert ray_name("digits-20260101-120000") == "digits-20260101-120000"


@pytest.mark.parametrize("name", STRANGE)
def test_a_name_in_an_object_store_is_read_back_by_pyarrow(name: str) -> None:
    above = Folder.at("gs://anonymous@bucket/prefix?retry_limit_seconds=1")
    assert fs.FileSystem.from_uri((above / name).uri)[1] == f"bucket/prefix/{name}"
    assert files.parent(above / name) == (above, name)


def test_a_uri_may_be_given_with_letters_that_are_not_ascii() -> None:
    folder = Folder.at("gs://anonymous@bucket/My Runs/größe%20")
    assert fs.FileSystem.from_uri(folder.uri)[1] == "bucket/My Runs/größe "


@pytest.mark.parametrize("name", [*STRANGE[:-1], "a@b", "my.model"])
def test_the_registry_takes_a_name_and_its_uri_names_the_model(name: str) -> None:
    if "?" in name:
        return
    with pytest.raises(ValueError, match="tracking_uri must be"):  # the name is looked at first
        registry.check("nowhere", "run", name, "champion")
    validation._validate_model_name(name)
    version = _parse_model_uri(f"models:/{name}/1")
    assert (version.name, version.version) == (name, "1")
    assert _parse_model_uri(f"models:/{name}@champion").alias == "champion"
    validation._validate_logged_model_name(registry.LOGGED_MODEL)


@pytest.mark.parametrize(
    ("name", "alias", "said"),
    [
        ("a/b", "", "register must be a name without /, : and [?], got 'a/b'"),
        ("a?b", "", "register must be a name without /, : and [?], got 'a[?]b'"),
        ("..", "", "register must be a name"),
        ("  ", "", "register must be a name"),
        ("a\nb", "", "register must be of printable characters"),
        ("a" * 300, "", "register must be at most 240 bytes"),
        ("a", "v1", "alias must be of letters"),
        ("a", "b c", "alias must be of letters"),
        ("a", "b" * 256, "alias must be of letters"),
    ],
)
def test_a_name_that_the_registry_does_not_take_is_refused(
    name: str, alias: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        registry.check("nowhere", "run", name, alias)


def test_an_experiment_has_a_name_that_mlflows_databases_take() -> None:
    assert experiment_name("digits") == "psvit/digits"
    long = ["ü" * 400 + end for end in "ab"]
    assert [len(experiment_name(data)) for data in long] == [256, 256]
    assert experiment_name(long[0]) != experiment_name(long[1])
    assert experiment_name("/a\nb") == "psvit/a\\nb"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("digits", "digits"),
        ("/data/photos/", "photos"),
        ("../photos", "photos"),
        ("s3://bucket/flowers", "flowers"),
        ("s3://bucket", "bucket"),
        ("/data/shards/train-*.parquet", "shards"),
        ("gs://bucket/birds.parquet", "birds"),
        ("torchvision:CIFAR10:/data/sets", "CIFAR10"),
        ("/", "data"),
    ],
)
def test_an_experiment_is_called_as_the_data_set_not_as_its_path(data: str, name: str) -> None:
    assert data_set_name(data) == name


def test_a_data_set_in_the_working_directory_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "birds").mkdir()
    monkeypatch.chdir(tmp_path / "birds")
    assert data_set_name(".") == "birds"


# Paths


@pytest.mark.parametrize("path", ["~zz-photos", "~$lock", "~tmp"])
def test_a_path_with_a_tilde_of_nobody_is_a_plain_path_if_it_is_there(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"path must begin with ~/ .*; .* write \./~"):
        Folder.at(path)
    assert Folder.at(f"./{path}").uri == str(tmp_path / path)
    Path(path).mkdir()
    assert Folder.at(path).uri == str(tmp_path / path)
    assert Folder.at("~root").uri == os.path.expanduser("~root")


@pytest.mark.parametrize("path", ["a\x00b", "a\udcff"])
def test_what_no_path_may_hold_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path must be UTF-8 without NUL"):
        Folder.at(path)


def test_a_file_uri_is_decoded() -> None:
    assert Folder.at("file:///data/My%20Runs%3F").uri == "/data/My Runs?"


# A terminal


def test_what_is_printed_is_one_line_that_says_all() -> None:
    assert printable("größe 実験 'a' \U0001f600") == "größe 実験 'a' \U0001f600"
    assert printable("a\n\x1b[31m\u202eb\udcff\x85") == r"a\n\x1b[31m\u202eb\udcff\x85"
    draw = random.Random(0)
    for _ in range(1000):
        value = "".join(chr(draw.randrange(0x3000)) for _ in range(20))
        assert printable(value).isprintable()
        assert printable(value).splitlines() == [printable(value)]
