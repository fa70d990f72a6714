"""Checkpoints: whole or not at all, and what becomes of one that is torn."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import math
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from psvit_ray.storage.folder import Folder
from psvit_ray.training import checkpoint
from psvit_ray.training.checkpoint import (
    BrokenCheckpoint,
    Checkpoint,
    CheckpointError,
    CheckpointManager,
)
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.engine import run_training
from psvit_ray.training.source import load_source
from tests.helpers.records import BAD_JSON
from tests.helpers.training import SPEC, assert_same_state


@pytest.fixture(scope="module")
def saved() -> list[Checkpoint]:
    """After each of three epochs."""
    train = TrainConfig(epochs=3, data_fraction=0.1, model_ema_decay=0.9)
    configuration = Configuration(spec=SPEC, train=train)
    return [
        report.checkpoint() for report in run_training(configuration, load_source(configuration))
    ]


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[CheckpointManager]:
    given = CheckpointManager(Folder(str(tmp_path)))
    yield given
    given.close()


def put_all(kept: CheckpointManager, checkpoints: list[Checkpoint], *top1: float) -> None:
    for one, score in itertools.zip_longest(checkpoints, top1):
        kept.put(one, score=score).result()


def step_of(found: Checkpoint | None) -> int:
    return found.step if found else -1


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path, saved: list[Checkpoint]) -> None:
    saved[1].save(Folder(str(tmp_path / "a")))
    found = checkpoint.load_checkpoint(Folder(str(tmp_path / "a")))
    assert_same_state(found, saved[1])
    assert found.run == saved[1].run


def test_a_snapshot_does_not_change_with_later_steps() -> None:
    configuration = Configuration(
        spec=SPEC, train=TrainConfig(epochs=3, data_fraction=0.1, model_ema_decay=0.9)
    )
    source = load_source(configuration)
    reports = run_training(configuration, source)
    first = next(reports).checkpoint()
    list(reports)
    assert_same_state(first, next(run_training(configuration, source)).checkpoint())


def test_the_newest_and_the_best_are_kept(
    tmp_path: Path, kept: CheckpointManager, saved: list[Checkpoint]
) -> None:
    put_all(kept, saved, 50.0, 40.0, 30.0)
    assert len(names(tmp_path)) == 3
    assert step_of(kept.newest()) == saved[2].step
    assert step_of(kept.best()) == saved[0].step
    put_all(
        fewer := CheckpointManager(Folder(str(tmp_path / "b")), keep=1), saved, 50.0, 60.0, 30.0
    )
    assert names(tmp_path / "b") == [saved[1].name, saved[2].name]
    fewer.close()


@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors", "state.pt", "run.json"])
def test_a_newest_that_is_torn_falls_back_with_one_warning(
    tmp_path: Path,
    kept: CheckpointManager,
    saved: list[Checkpoint],
    file: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put_all(kept, saved)
    path = tmp_path / saved[2].name / file
    content = path.read_bytes()
    cuts = [0, *random.Random(file).sample(range(len(content)), 3), len(content) - 1]
    for cut in cuts:  # 20 with the four files
        path.write_bytes(content[:cut])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = kept.newest()
        assert found is not None
        assert_same_state(found, saved[1])
        (warning,) = caplog.records
        assert f"{file} has {cut:,} of {len(content):,} bytes" in warning.message
        assert f"going on from {saved[1].name}" in warning.message
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    path.write_bytes(flipped)
    assert step_of(kept.newest()) == saved[1].step
    path.write_bytes(content)
    assert step_of(kept.newest()) == saved[2].step


def test_without_its_manifest_it_falls_back_too(
    tmp_path: Path,
    kept: CheckpointManager,
    saved: list[Checkpoint],
    caplog: pytest.LogCaptureFixture,
) -> None:
    put_all(kept, saved)
    (tmp_path / saved[2].name / "manifest.json").unlink()
    assert step_of(kept.newest()) == saved[1].step
    assert "manifest.json is missing" in caplog.text
    (tmp_path / saved[2].name / "manifest.json").write_text("{")
    assert step_of(kept.newest()) == saved[1].step


def test_where_none_can_be_read_it_is_an_error_and_no_fresh_start(
    tmp_path: Path, kept: CheckpointManager, saved: list[Checkpoint]
) -> None:
    assert kept.newest() is None
    put_all(kept, saved)
    for name in names(tmp_path):
        (tmp_path / name / "state.pt").write_bytes(b"")
    with pytest.raises(BrokenCheckpoint, match=r"no checkpoint can be read: .*state.pt has 0 of"):
        kept.newest()


def test_a_broken_one_does_not_take_the_place_of_one_that_is_kept(
    tmp_path: Path, saved: list[Checkpoint]
) -> None:
    kept = CheckpointManager(Folder(str(tmp_path)), keep=1)
    put_all(kept, saved[:1])
    saved[2].save(Folder(str(tmp_path / saved[2].name)))
    (tmp_path / saved[2].name / "state.pt").write_bytes(b"")
    assert step_of(kept.newest()) == saved[0].step
    put_all(kept, saved[1:2])
    assert names(tmp_path) == [saved[1].name]
    kept.close()


def test_a_write_that_was_cut_short_never_counts(
    tmp_path: Path, saved: list[Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_all(CheckpointManager(Folder(str(tmp_path))), saved[:1])

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", die)
        with pytest.raises(KeyboardInterrupt):
            put_all(CheckpointManager(Folder(str(tmp_path))), saved[1:2])
    assert names(tmp_path) == [saved[0].name, saved[1].name]
    kept = CheckpointManager(Folder(str(tmp_path)))
    assert step_of(kept.newest()) == saved[0].step
    put_all(kept, saved[2:])
    assert names(tmp_path) == [saved[0].name, saved[2].name]
    kept.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB, where this may be mounted."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.mark.processes
def test_a_full_disk_is_said_and_the_checkpoint_before_stays(
    small_disk: Path, saved: list[Checkpoint]
) -> None:
    put_all(kept := CheckpointManager(Folder(str(small_disk / "a"))), saved[:1])
    (small_disk / "filler").write_bytes(b"0" * (8 * 2**20 - 300_000))
    big = saved[1].model | {"more": torch.zeros(100_000)}
    kept.put(Checkpoint(**{**vars(saved[1]), "model": big}))
    said = rf"checkpoint cannot be written to .*{saved[1].name}: .*[Nn]o space left.* bytes\)"
    with pytest.raises(CheckpointError, match=said):
        kept.close()
    assert names(small_disk / "a") == [saved[0].name]
    found = CheckpointManager(Folder(str(small_disk / "a"))).newest()
    assert found is not None
    assert_same_state(found, saved[0])


def test_nothing_read_from_a_checkpoint_executes(tmp_path: Path, saved: list[Checkpoint]) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "marker",)

    evil = Checkpoint(**{**vars(saved[0]), "optimizer": Malicious()})
    evil.save(Folder(str(tmp_path / "1")))  # with the hashes it should have
    with pytest.raises(BrokenCheckpoint, match="Weights only load failed"):
        checkpoint.load_checkpoint(Folder(str(tmp_path / "1")))
    assert not (tmp_path / "marker").exists()


def edited(path: Path, **changes: Any) -> bytes:
    return json.dumps(json.loads(path.read_text()) | changes).encode()


@pytest.mark.parametrize(
    "change",
    [
        *BAD_JSON.values(),
        {"step": -1},
        {"step": True},
        {"step": "2"},
        {"epoch": None},
        {"top1": math.nan},
        {"top1": "good"},
        {"files": []},
        {"files": {}},
        {"files": {"../state.pt": {"sha256": "0" * 64, "bytes": 1}}},
        {"files": {"state.pt": {"sha256": "0" * 64, "bytes": -1}}},
        {"files": {"state.pt": {"sha256": 3, "bytes": 1}}},
        b"[" * 5_000,
        {"files": {"state.pt": {"bytes": 1}}},
    ],
    ids=repr,
)
def test_a_manifest_that_was_edited_or_torn_is_passed_over_with_a_warning(
    tmp_path: Path,
    kept: CheckpointManager,
    saved: list[Checkpoint],
    change: bytes | dict[str, Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    put_all(kept, saved)
    path = tmp_path / saved[2].name / "manifest.json"
    path.write_bytes(change if isinstance(change, bytes) else edited(path, **change))
    assert step_of(kept.newest()) == saved[1].step
    (warning,) = caplog.records
    assert str(path.parent) in warning.message
    assert "\n" not in warning.message
    assert step_of(kept.best()) == -1


@pytest.mark.parametrize("file", ["manifest.json", "state.pt", "run.json"])
def test_a_folder_where_a_file_should_be_is_passed_over_with_a_warning(
    tmp_path: Path,
    kept: CheckpointManager,
    saved: list[Checkpoint],
    file: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put_all(kept, saved)
    (tmp_path / saved[2].name / file).unlink()
    (tmp_path / saved[2].name / file).mkdir()
    assert step_of(kept.newest()) == saved[1].step
    assert f"{file} cannot be read: is a directory" in caplog.text


def test_what_others_put_among_the_checkpoints_neither_counts_nor_is_deleted(
    tmp_path: Path,
    kept: CheckpointManager,
    saved: list[Checkpoint],
    caplog: pytest.LogCaptureFixture,
) -> None:
    put_all(kept, saved[:1])
    own = tmp_path / saved[0].name
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "step-000000007").write_text("a file")
    (tmp_path / "step-000000008-epoch-0001").mkdir()
    (tmp_path / "step-000000008-epoch-0001" / "notes.md").write_text("mine")
    for copy in (f"{own.name} (copy)", "best-so-far", "step-000999999-epoch-0099", ".backup"):
        shutil.copytree(own, tmp_path / copy)
    others = set(names(tmp_path)) - {own.name}
    (own / "notes.md").write_text("mine")
    assert step_of(kept.newest()) == saved[0].step
    assert caplog.records == []
    put_all(kept, saved[1:])
    assert set(names(tmp_path)) == others | {one.name for one in saved}
    assert names(own) == ["notes.md"]  # the checkpoint is gone, the note is not
    assert step_of(kept.newest()) == saved[2].step
    for copy in others - {"notes.txt", "step-000000007", "step-000000008-epoch-0001"}:
        assert step_of(checkpoint.load_checkpoint(Folder(str(tmp_path / copy)))) == saved[0].step


def test_the_same_step_is_saved_twice_without_writing_over_what_counts(
    tmp_path: Path, saved: list[Checkpoint]
) -> None:
    """Within the epoch, and once it is evaluated: one of the two is whole at any time."""
    kept = CheckpointManager(Folder(str(tmp_path)), keep=1)
    within = dataclasses.replace(saved[1], epoch=saved[0].epoch)
    put_all(kept, [within])
    assert names(tmp_path) == [within.name]
    put_all(kept, [saved[1]])
    assert names(tmp_path) == [saved[1].name]
    assert within.name != saved[1].name
    kept.close()


def test_a_checkpoint_of_an_older_version_is_gone_on_from(
    tmp_path: Path, kept: CheckpointManager, saved: list[Checkpoint]
) -> None:
    saved[0].save(Folder(str(tmp_path / f"step-{saved[0].step:09d}")))
    assert step_of(kept.newest()) == saved[0].step
    put_all(kept, saved[1:])
    assert names(tmp_path) == [saved[1].name, saved[2].name]
