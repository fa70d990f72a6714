"""`psvit report` makes all of a search again from what it left, and starts no run."""

from __future__ import annotations

from html import escape
from pathlib import Path

import pytest

from psvit_ray.data.splits import split_file
from psvit_ray.search.description import DESCRIPTION
from psvit_ray.search.oneshot.scores import ScoreStore
from psvit_ray.search.record import Record, RecordStore
from psvit_ray.storage.folder import Folder
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.source import load_source
from tests.helpers.command_line import Refused, Run, everything_under
from tests.helpers.records import DEIT, PSVIT, SMALL, record, score

RECORDS = [
    record(0, (80.0, 90.5), spec=DEIT, kind="baseline"),
    record(1, (85.0, 97.25)),
    record(2, (70.0,), status="stopped"),
]
FINALISTS = [
    record(3, (85.0, 95.0), kind="finalist"),
    record(4, (85.0, 96.0), kind="finalist"),
    record(5, (85.0, 99.0), kind="finalist"),
]


def searched(folder: Path, records: list[Record]) -> Folder:
    there = Folder(str(folder))
    there.write(DESCRIPTION, b'{"search_id": "a", "identity": {}}')
    for each in records:
        RecordStore(there).put(each)
    return there


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    addresses: list[str] = []
    monkeypatch.setattr("webbrowser.open", addresses.append)
    return addresses


def test_the_report_of_a_search_is_opened(run: Run, tmp_path: Path, opened: list[str]) -> None:
    searched(tmp_path / "outputs" / "a b", RECORDS)
    said = run("report --name 'a b' --open")
    assert (said.code, said.err) == (0, "")
    assert opened == [f"file://{tmp_path}/outputs/a%20b/report.html"]
    page = (tmp_path / "outputs" / "a b" / "report.html").read_text()
    assert f"<pre>{escape(said.out.strip())}</pre>" in page
    assert "1 stopped early" in said.out
    before = everything_under(tmp_path)
    assert run("report --name 'a b'").code == 0
    assert len(opened) == 1
    assert everything_under(tmp_path) == before


def test_the_report_of_a_one_shot_search_has_its_candidates_and_finalists(
    run: Run, tmp_path: Path
) -> None:
    folder = searched(tmp_path / "outputs" / "a", FINALISTS)
    supernet = record(0, (50.0,), kind="supernet", seconds=60.0)
    RecordStore(folder / "supernet").put(supernet)
    ScoreStore(folder).put(0, [score(0, 60.0, spec=SMALL), score(1, 70.0, spec=PSVIT)])
    source = load_source(Configuration(spec=PSVIT, train=TrainConfig(data="digits")))
    assert source.images
    folder.write(split_file.SPLITS_FILE, source.images.to_bytes())
    said = run("report --name a")
    assert (said.code, said.err) == (0, "")
    assert "2 candidates up to generation 0" in said.out
    assert f"on {len(source.holdout):,} images" in said.out
    assert "supernet 60 s (100 %)" in said.out
    assert f"{PSVIT.pattern} from scratch, seed 4, 96.00 %" in said.out, "the median of its seeds"
    assert "99.00" not in (tmp_path / "outputs" / "a" / "best.yaml").read_text()
    page = (tmp_path / "outputs" / "a" / "report.html").read_text()
    assert "<h2>Finalists</h2>" in page
    assert "<h2>Best candidates</h2>" in page
    assert f"<pre>{escape(said.out.strip())}</pre>" in page


def test_only_what_is_on_this_machine_is_opened(refused: Refused) -> None:
    assert refused("report --storage s3://bucket/a --name a --open") == (
        "open must be used with a storage on this machine, got s3://bucket/a"
    )
