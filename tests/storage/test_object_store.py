"""Images in an object store are the images on the disk, also in the processes of a loader."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import moto.settings
import pytest

from psvit_ray.data.loading.loader import eval_loader
from psvit_ray.data.loading.transforms import Preprocessing
from psvit_ray.data.sources.load_data import read_data
from psvit_ray.runtime.session.lease import Lease, NameInUse
from psvit_ray.storage import file_systems
from psvit_ray.storage.fence import LEASE, LeaseLost
from psvit_ray.storage.folder import Folder
from tests.helpers.drawn import drawn_folder
from tests.helpers.object_store import ACCESS_KEY, SECRET_KEY, Store, object_store
from tests.helpers.stored import assert_same, load, write_by_datasets

PREPROCESSING = Preprocessing(img_size=32, in_chans=3, mean=(0.5,) * 3, std=(0.5,) * 3)

pytestmark = pytest.mark.processes  # whether a store answers is asked in one


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


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["images", "parquet"])
def test_the_processes_of_a_loader_read_from_a_store(kind: str, here: Path, store: Store) -> None:
    there, plain = load(store.uri(f"some/where/{kind}")), load(here / kind)
    there.train.read(0)  # connects before the processes are forked
    batches = list(eval_loader(there.train, PREPROCESSING, 5, processes=2))
    for ours, theirs in zip(batches, eval_loader(plain.train, PREPROCESSING, 5), strict=True):
        assert ours.images.equal(theirs.images)
        assert ours.labels.tolist() == theirs.labels.tolist()
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
        read_data(data)
    assert said in str(caught.value)
    assert "hid" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a server that takes connections and never answers."""
    monkeypatch.setattr(file_systems, "STORE_TIMEOUT_S", 1.0)
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


GOOGLES = (
    "credentials tried: those of GOOGLE_APPLICATION_CREDENTIALS, of gcloud or of this machine's "
    "account (for a public bucket put anonymous@ before its name)"
)


@pytest.mark.parametrize(
    ("store", "tried"),
    [
        ("gs://anonymous@bucket", "no credentials"),
        ("gs://bucket", GOOGLES),
        ("s3://KEY:hidden@bucket", "the credentials of the URI"),
    ],
)
def test_a_store_that_never_answers_is_waited_for_with_a_bound_and_what_was_tried_is_said(
    silent: str, store: str, tried: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    region = "&region=eu" if store.startswith("s3") else ""
    query = f"?endpoint_override={silent}&scheme=http{region}"
    shown = re.sub("//KEY.*@", "//", store) + query  # anonymous is no secret
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hidden@proxy:3128")
    said = (
        f"{shown} cannot be reached: no answer after 1 s; tried {silent}, {tried}, HTTPS_PROXY is "
        "http://proxy:3128"
    )
    uri = f"{store}/some/where{query}"
    with pytest.raises(OSError, match=f"^{re.escape(said)}$"):
        Folder.at(uri).open()
    shown = shown.replace("bucket", "bucket/some/where")
    with pytest.raises(
        ValueError, match=re.escape(f"storage must be writable, got {shown}: {said}")
    ):
        Folder.at(uri).check_writable()
    with pytest.raises(
        ValueError, match=re.escape(f"data must be readable, got '{shown}': {said}")
    ):
        read_data(uri)


def test_googles_own_reason_is_said_where_it_comes_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"127.0.0.1:{server.getsockname()[1]}"
    query = f"endpoint_override={closed}&scheme=http&retry_limit_seconds=1"
    shown = r"^gs://anonymous@bucket\?.* cannot be reached: "
    said = shown + r".*Could not connect to server.* after \d s; tried "
    with pytest.raises(OSError, match=said + re.escape(f"{closed}, no credentials")):
        Folder(f"gs://anonymous@bucket/x?{query}").open()


def test_a_process_opens_a_store_once_whichever_folder_in_it_is_meant(store: Store) -> None:
    folder = Folder(store.uri("a"))
    assert folder.open()[1] == "bucket/a"
    assert (folder / "b").open()[1] == "bucket/a/b"
    assert (folder / "b").open()[0] is folder.open()[0]
    assert Folder(store.uri("")).open() == (folder.open()[0], "bucket")


@pytest.mark.parametrize("name", ["a b", "50%20", "a#b", "why?", "ü", "a+b", "a&b=c"])
def test_a_name_in_a_store_is_taken_as_it_is(store: Store, name: str) -> None:
    folder = Folder(store.uri("names")) / name
    folder.write("x", b"1")
    assert folder.read("x") == b"1"
    assert store.client.get_object(Bucket="bucket", Key=f"names/{name}/x")["Body"].read() == b"1"


def test_a_store_that_refuses_the_credentials_is_said(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)  # it now asks for them
    said = r"data must be readable, got 's3://.*': .* AWS Error ACCESS_DENIED"
    with pytest.raises(ValueError, match=said) as caught:
        read_data(store.uri("some/where/images"))
    assert SECRET_KEY not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_not_in_the_store_is_said(store: Store) -> None:
    for path in ("nothing", "some/where/images/trian", "some/*/images/*.parquet"):
        with pytest.raises(ValueError, match=r"data must (exist|match a file)"):
            read_data(store.uri(path))
    with pytest.raises(ValueError, match="data must exist, got 's3://elsewhere/"):
        read_data(store.uri("x").replace("bucket", "elsewhere"))


def test_of_two_drivers_at_once_in_a_store_one_wins_and_the_one_before_it_writes_no_more(
    store: Store,
) -> None:
    folder = Folder(store.uri("search"))
    with Lease(folder) as before:
        folder.delete(LEASE)
    start, tried = threading.Barrier(2), threading.Barrier(2)

    def contend(name: str) -> str:
        start.wait()
        try:
            with Lease(folder) as token:
                tried.wait()
                token.over(folder.uri).write("record.json", name.encode())
                with pytest.raises(LeaseLost, match="taken over by process"):
                    before.over(folder.uri).write("record.json", b"before")
                return name
        except NameInUse:
            tried.wait()
            return ""

    with ThreadPoolExecutor(2) as pool:
        (winner,) = filter(None, pool.map(contend, ["one", "two"]))
    assert folder.read("record.json") == winner.encode()
    assert folder.names() == ["record.json"]
