"""After a kill or a power cut at any moment a run goes on from a whole state: nothing that was said
to be saved is lost, and nothing is recorded twice."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from psvit_ray.runtime.session import session
from psvit_ray.search.description import read_description, write_description
from psvit_ray.search.record import Record, RecordStore
from psvit_ray.storage import disk as real_disk
from psvit_ray.storage.folder import Folder
from psvit_ray.training.checkpoint import Checkpoint, CheckpointManager, checkpoint_names
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.engine import run_training
from psvit_ray.training.results import EpochResult, Point
from psvit_ray.training.source import load_source
from tests.helpers.power import Disk, Killed, watched
from tests.helpers.training import SPEC

EPOCHS = 2
IDENTITY = {"what": "a run"}


@pytest.fixture(scope="module")
def first() -> Checkpoint:
    configuration = Configuration(spec=SPEC, train=TrainConfig(epochs=1, data_fraction=0.1))
    checkpoint = next(run_training(configuration, load_source(configuration))).checkpoint()
    # Less to read, a thousand times.
    return dataclasses.replace(checkpoint, model={"w": torch.ones(9)}, optimizer={})


@dataclasses.dataclass
class Promises:
    """What a run has said to be saved: how far each is, in half epochs."""

    described: bool = False
    recorded: int = 0
    saved: int = 0


def go_on(folder: Folder, first: Checkpoint, promises: Promises) -> None:
    """A run that trains nothing: a checkpoint within each epoch, one at its end, of the same step,
    and then its record; all as a job does it."""
    description = read_description(folder)
    session.check_resume("auto", folder, "a", description, IDENTITY)
    if description is None:
        write_description(folder, IDENTITY)
    promises.described = True
    store = RecordStore(folder)
    (record,) = store.all() or [
        Record(number=0, kind="fixed", params={}, configuration=first.run.configuration)
    ]
    with contextlib.closing(CheckpointManager(folder / "checkpoints", keep=1)) as kept:
        start = kept.newest()
        epoch = start.epoch if start else 0
        if start and start.curve:  # what it lacks, it is told
            earlier = tuple(_point(number + 1) for number in range(start.epoch))
            result = EpochResult(point=_point(start.epoch), earlier=earlier)
            record = record.reported(result)
            store.put(record)
        for now in range(epoch + 1, EPOCHS + 1):
            for done in (now - 1, now):
                state = dataclasses.replace(
                    first,
                    epoch=done,
                    step=10 * now,
                    curve=[_point(number + 1).model_dump() for number in range(done)],
                )
                kept.put(state, score=float(done)).result()
                promises.saved = 2 * now - (done < now)
            record = record.reported(EpochResult(point=_point(now)))
            store.put(record)
            promises.recorded = now


def _point(epoch: int) -> Point:
    return Point(epoch=epoch, step=10 * epoch, metrics={"holdout/top1": float(epoch)})


def assert_goes_on(path: Path, first: Checkpoint, before: Promises) -> None:
    folder = Folder(str(path))
    description = read_description(folder)
    assert description or not before.described
    records = RecordStore(folder).all()
    assert sum(record.epochs_done for record in records) >= before.recorded
    with contextlib.closing(CheckpointManager(folder / "checkpoints", keep=1)) as kept:
        newest = kept.newest()
    reached = 2 * newest.step // 10 - (newest.epoch < newest.step // 10) if newest else 0
    assert reached >= before.saved
    go_on(folder, first, Promises())
    if description:
        again = read_description(folder)
        assert again
        assert again.search_id == description.search_id
    (record,) = RecordStore(folder).all()
    assert [point.epoch for point in record.curve] == [1, 2]
    assert checkpoint_names(folder / "checkpoints")[-1] == "step-000000020-epoch-0002"


def operations_of_a_run(place: Path, first: Checkpoint) -> int:
    with watched(Disk(place)) as disk:
        go_on(Folder(str(place / "a")), first, Promises())
    return disk.operations


@contextlib.contextmanager
def cut(place: Path, first: Checkpoint, at: int) -> Iterator[tuple[Disk, Promises]]:
    """A run that ends before this operation."""

    def before(number: int) -> None:
        if number == at:
            raise Killed

    place.mkdir()
    promises = Promises()
    with watched(Disk(place, before)) as disk:
        go_on(Folder(str(place / "a")), first, promises)
    yield disk, promises
    shutil.rmtree(place)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real disk need not be waited for."""
    monkeypatch.setattr(real_disk.os, "fsync", lambda file: None)


@pytest.mark.usefixtures("quick")
def test_killed_before_any_operation_a_run_goes_on(tmp_path: Path, first: Checkpoint) -> None:
    (tmp_path / "whole").mkdir()
    for at in range(operations_of_a_run(tmp_path / "whole", first)):
        with cut(tmp_path / "cut", first, at) as (_, promises):
            assert_goes_on(tmp_path / "cut" / "a", first, promises)


def states(disk: Disk, folder: Path, *seeds: int) -> Iterator[Path]:
    """The disk as a power cut may leave it: nothing that was not synced, and some of it."""
    for choose in (None, *map(random.Random, seeds)):
        disk.top.put_down(folder, choose)
        yield folder
        shutil.rmtree(folder)


@pytest.mark.usefixtures("quick")
def test_after_a_power_cut_before_any_operation_a_run_goes_on(
    tmp_path: Path, first: Checkpoint
) -> None:
    (tmp_path / "whole").mkdir()
    for at in range(operations_of_a_run(tmp_path / "whole", first)):
        with cut(tmp_path / "cut", first, at) as (disk, promises):
            for state in states(disk, tmp_path / "after", at):
                assert_goes_on(state / "a", first, promises)


@pytest.mark.usefixtures("quick")
def test_the_layer_finds_what_is_not_synced(
    tmp_path: Path, first: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(real_disk, "sync", lambda file: None)
    place = tmp_path / "cut"
    place.mkdir()
    promises = Promises()
    with watched(Disk(place)) as disk:
        go_on(Folder(str(place / "a")), first, promises)
    assert promises.recorded == EPOCHS
    for state in states(disk, tmp_path / "after"):
        assert list(state.iterdir()) == []
