"""The record survives the disk whole, and ranks only what was trained in full."""

from __future__ import annotations

import itertools
import math
import os
import random
import re
from pathlib import Path

import pytest

from psvit_ray.search import description
from psvit_ray.search.oneshot.scores import ScoreStore
from psvit_ray.search.record import (
    Record,
    RecordStore,
    Status,
    best,
    best_deit,
    differences,
    pareto,
    ranking,
)
from psvit_ray.storage.folder import Folder
from tests.helpers.records import BAD_JSON, DEIT, record, spec_of

STATUSES: tuple[Status, ...] = (
    "pending",
    "running",
    "interrupted",
    "completed",
    "stopped",
    "failed",
)


def test_a_record_comes_back_from_json_as_it_was_also_where_training_diverged() -> None:
    diverged = record(3, (50.0, math.nan, math.inf), status="failed", reason="loss is NaN: é|\n")
    again = Record.model_validate_json(diverged.model_dump_json())
    assert repr(again) == repr(diverged)
    assert again.params == diverged.params
    assert [type(v) for v in again.params.values()] == [int, float, str, float]
    assert math.isnan(again.curve[1].metrics["holdout/top1"])
    assert again.key == diverged.key


def test_a_result_is_the_last_epoch_not_the_best() -> None:
    assert record(0, (10.0, 99.0, 60.0)).top1 == 60.0
    assert record(0, (10.0, 99.0, 60.0)).epochs_done == 3
    assert record(0, (99.0, math.nan)).top1 is None
    assert record(0).top1 is None
    assert record(0).epochs_done == 0


def test_a_store_gives_back_what_was_put_in_order_and_the_newest_of_each(tmp_path: Path) -> None:
    store = RecordStore(Folder.at(str(tmp_path / "search")))
    assert store.all() == []
    records = [record(number, (50.0,)) for number in range(12)]
    for one in reversed(records):
        store.put(one.model_copy(update={"status": "running"}))
        store.put(one)
    assert store.all() == records


def test_what_a_killed_writer_left_is_not_read(tmp_path: Path) -> None:
    store = RecordStore(Folder.at(str(tmp_path)))
    store.put(record(0, (50.0,)))
    (name,) = os.listdir(tmp_path / "record")
    (tmp_path / "record" / f".{name}.1a2b3c4d").write_text('{"number": 0, "ki')
    assert store.all() == [record(0, (50.0,))]


def test_a_reader_beside_a_writer_sees_whole_records_only(tmp_path: Path) -> None:
    """The old stays in place, complete, until the new is: never written into."""
    store = RecordStore(Folder.at(str(tmp_path)))
    old, new = record(0, (50.0,)), record(0, (50.0, 60.0))
    store.put(old)
    path = next((tmp_path / "record").iterdir())
    with path.open() as held:  # a reader that has begun
        store.put(new)
        assert Record.model_validate_json(held.read()) == old
    assert store.all() == [new]
    assert len(list((tmp_path / "record").iterdir())) == 1


@pytest.mark.parametrize("content", BAD_JSON.values(), ids=BAD_JSON)
def test_a_file_that_is_no_record_is_named_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    store = RecordStore(Folder.at(str(tmp_path)))
    store.put(record(0, (50.0,)))
    store.put(record(1, (50.0,)))
    path = max((tmp_path / "record").iterdir())
    path.write_bytes(content)
    remedy = "restore it from a copy, or delete it to train its configuration again"
    said = rf"^{re.escape(str(path))} is not a record: [^\n]+; {remedy}$"
    with pytest.raises(ValueError, match=said):
        store.all()
    path.unlink()
    path.mkdir()
    said = rf"^{re.escape(str(path))} cannot be read: is a directory; {remedy}$"
    with pytest.raises(ValueError, match=said):
        store.all()


def test_what_others_put_beside_the_records_does_not_count(tmp_path: Path) -> None:
    store = RecordStore(Folder.at(str(tmp_path)))
    store.put(record(0, (50.0,)))
    (own,) = (tmp_path / "record").iterdir()
    own.with_name(f"{own.stem} (copy).json").write_bytes(own.read_bytes())
    own.with_name("notes.txt").write_text("mine")
    assert store.all() == [record(0, (50.0,))]


@pytest.mark.parametrize("content", BAD_JSON.values(), ids=BAD_JSON)
def test_a_file_that_is_no_description_is_no_search_that_has_not_begun(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "search.json").write_bytes(content)
    said = (
        rf"^{re.escape(str(tmp_path))}/search.json is not a search's description: [^\n]+; "
        r"restore it from a copy; .* begin under another --name \(what is here stays\)$"
    )
    with pytest.raises(ValueError, match=said):
        description.read_description(Folder(str(tmp_path)))


def test_records_without_a_description_are_no_search_that_has_not_begun(tmp_path: Path) -> None:
    assert description.read_description(Folder(str(tmp_path))) is None
    RecordStore(Folder(str(tmp_path))).put(record(0))
    with pytest.raises(ValueError, match=r"search\.json is missing beside its record/; restore it"):
        description.read_description(Folder(str(tmp_path)))


@pytest.mark.parametrize("content", BAD_JSON.values(), ids=BAD_JSON)
def test_a_file_that_has_no_scores_is_named_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    store = ScoreStore(Folder(str(tmp_path)))
    store.put(0, [])
    path = tmp_path / "candidates" / "generation-000.json"
    path.with_name("notes.txt").write_text("mine")
    path.with_name("generation-000 (copy).json").write_text("mine")
    assert store.all() == []
    if content == b"[]":
        return
    path.write_bytes(content)
    said = r"generation-000.json is not a list of scores: [^\n]+; restore it from a copy, or delete"
    with pytest.raises(ValueError, match=said):
        store.all()


def test_storage_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"record cannot be written in .*file/record"):
        RecordStore(Folder.at(str(tmp_path / "file"))).put(record(0))


def test_only_what_was_trained_in_full_ranks_however_good_the_rest_looks() -> None:
    records = [record(n, (99.0,), status=status) for n, status in enumerate(STATUSES)]
    records = [r.model_copy(update={"status": "stopped"}) if r.ranks else r for r in records]
    modest = record(50, (60.0,))
    better = record(51, (70.0,))
    diverged = record(52, (99.0, math.nan))
    ranked = ranking([*records, diverged, modest, better])
    assert [r.number for r in ranked if r.ranks] == [51, 50]
    assert [r.number for r in ranked] == [51, 50, 0, 1, 2, 3, 4, 5, 52]
    assert best([*records, diverged, modest, better]) == better
    assert best([*records, diverged]) is None
    assert pareto(records) == []


def test_equal_accuracy_ranks_by_cost_and_then_by_key() -> None:
    wide = spec_of((2, 1), (2,), dim=64)
    records = [record(0, (70.0,), spec=wide), *(record(n, (70.0,)) for n in range(1, 6))]
    keys = sorted(r.key for r in records[1:])
    for seed in range(5):
        random.Random(seed).shuffle(records)
        assert [r.key for r in ranking(records)] == [*keys, record(0, (70.0,), spec=wide).key]


def test_the_winner_is_a_psvit_and_deits_are_known_by_what_they_are() -> None:
    deit = record(0, (90.0,), spec=DEIT, kind="baseline")
    other_deit = record(1, (95.0,), spec=DEIT)
    psvit = record(2, (80.0,))
    assert best([deit, other_deit, psvit]) == psvit
    assert best_deit([deit, other_deit, psvit]) == other_deit
    assert best([deit, other_deit]) == other_deit, "a search of DeiTs alone has a winner too"
    assert best([deit, record(3, status="failed")]) is None
    shared = record(4, (99.0,), spec=spec_of((2, 1), pooling="1d"))
    without_token = record(5, (99.0,), spec=spec_of((1, 1, 1), pooling="2d"))
    assert not shared.is_deit
    assert not without_token.is_deit
    assert best([deit, psvit], max_macs=psvit.macs) == psvit
    assert best([deit, psvit], max_macs=psvit.macs - 1) is None


def test_the_front_is_that_of_brute_force() -> None:
    rng = random.Random(0)
    specs = [
        spec_of((1,) * depth, dim=dim) for depth, dim in itertools.product(range(1, 6), (8, 16))
    ]
    for _ in range(50):
        records = [
            record(
                number,
                (rng.choice((50.0, 60.0, 70.0, 80.0)),),
                spec=rng.choice(specs),
                status=rng.choice(("completed", "stopped")),
            )
            for number in range(12)
        ]
        ranked = [r for r in records if r.status == "completed"]
        points = {
            (r.macs, r.curve[-1].metrics["holdout/top1"])
            for r in ranked
            if not any(
                (other.macs <= r.macs and (other.top1 or 0) > (r.top1 or 0))
                or (other.macs < r.macs and (other.top1 or 0) >= (r.top1 or 0))
                for other in ranked
            )
        }
        front = pareto(records)
        assert [(r.macs, r.top1) for r in front] == sorted(points)


def test_differences_name_each_place_that_changed() -> None:
    old = {"space": {"stages": [{"depth": [2, 3], "dim": [8]}, {"depth": [1]}]}, "seed": 0, "a": 1}
    new = {"space": {"stages": [{"depth": [2, 4], "dim": [8]}, {"depth": [1]}]}, "seed": 1, "b": 2}
    assert differences(old, new) == [
        "space.stages.0.depth: [2, 3] -> [2, 4]",
        "seed: 0 -> 1",
        "a: 1 -> none",
        "b: none -> 2",
    ]
    assert differences(old, old) == []
    assert differences({"stages": [{"a": 1}]}, {"stages": [{"a": 1}, {"a": 2}]}) == [
        "stages: [{'a': 1}] -> [{'a': 1}, {'a': 2}]"
    ]
