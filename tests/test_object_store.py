"""Images in an object store are the images on the disk, also in the processes of a loader."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import moto.settings
import pytest

from psvit_ray.data import sources
from psvit_ray.data.loader import eval_loader
from psvit_ray.data.transforms import Preprocessing
from tests.drawn import drawn_folder
from tests.object_store import ACCESS_KEY, SECRET_KEY, Store, object_store
from tests.stored import assert_same, load, write_by_datasets

PREPROCESSING = Preprocessing(img_size=32, in_chans=3, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    there = tmp_path_factory.mktemp("here")
    drawn_folder(there / "images", classes=3, splits={"train": 8, "val": 4})
    for split in ("train", "val"):
        write_by_datasets(there / "images" / split, there / f"parquet/{split}-0.parquet")
    return there


@pytest.fixture(scope="module")
def store(here: Path) -> Iterator[Store]:
    with object_store() as store:
        store.upload(here, "some/where")
        yield store


@pytest.mark.parametrize("kind", ["images", "parquet", "parquet/train-0.parquet", "parquet/*-0.*"])
def test_a_store_gives_what_the_disk_gives(kind: str, here: Path, store: Store) -> None:
    there = load(store.uri(f"some/where/{kind}"))
    assert_same(there, load(here / kind))
    assert there.train.place(5)[1] == load(here / kind).train.place(5)[1]


@pytest.mark.parametrize("kind", ["images", "parquet"])
def test_the_processes_of_a_loader_read_from_a_store(kind: str, here: Path, store: Store) -> None:
    there, plain = load(store.uri(f"some/where/{kind}")), load(here / kind)
    there.train.read(0)  # connects before the processes are forked
    batches = list(eval_loader(there.train, PREPROCESSING, 5, processes=2))
    for ours, theirs in zip(batches, eval_loader(plain.train, PREPROCESSING, 5), strict=True):
        assert ours.images.equal(theirs.images)
        assert ours.labels.equal(theirs.labels)
        assert not ours.bad
    assert sum(len(batch.labels) for batch in batches) == 24


def test_no_place_and_no_name_holds_the_credentials(store: Store) -> None:
    secret = store.uri("some/where/images", f"{ACCESS_KEY}:{SECRET_KEY}@")
    source = load(secret)
    assert source.train.read(0)
    for text in (source.name, *source.notes, *source.train.place(0)):
        assert ACCESS_KEY not in text
        assert SECRET_KEY not in text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            "s3://user:hidden@bucket/x?endpoint_override=127.0.0.1:9&scheme=http",
            "AWS Error NETWORK",
        ),
        ("s3://user:hid/den@bucket/x", "Cannot parse URI: 's3://bucket/x'"),
        ("http://user:hidden@host/x", "Unrecognized filesystem type in URI: http://host/x"),
    ],
)
def test_a_store_that_cannot_be_reached_is_said_without_secrets(data: str, said: str) -> None:
    shown = re.sub("user:hid/?den@", "", data)
    with pytest.raises(
        ValueError, match=re.escape(f"data must be readable, got '{shown}': ")
    ) as caught:
        sources.read(data)
    assert said in str(caught.value)
    assert "den" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_store_that_refuses_the_credentials_is_said(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)  # it now asks for them
    said = r"data must be readable, got 's3://.*': .* AWS Error ACCESS_DENIED"
    with pytest.raises(ValueError, match=said) as caught:
        sources.read(store.uri("some/where/images"))
    assert SECRET_KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_in_the_store_is_said(store: Store) -> None:
    for path in ("nothing", "some/where/images/trian", "some/*/images/*.parquet"):
        with pytest.raises(ValueError, match=r"data must (exist|match a file)"):
            sources.read(store.uri(path))
    with pytest.raises(ValueError, match="data must exist, got 's3://elsewhere/"):
        sources.read(store.uri("x").replace("bucket", "elsewhere"))
