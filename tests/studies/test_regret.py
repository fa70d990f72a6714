"""Regret against a study that is written by hand."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.runtime.oneshot.phases import SUPERNET
from psvit_ray.search.description import DESCRIPTION
from psvit_ray.search.oneshot.scores import ScoreStore
from psvit_ray.search.record import Record, RecordStore
from psvit_ray.storage.folder import Folder
from psvit_ray.training.config import Configuration, TrainConfig
from tests.helpers.command_line import Run, job
from tests.helpers.records import LARGE, MIDDLE, SMALL, record, score, spec_of

TOP1 = {SMALL: (80.0, 84.0), MIDDLE: (90.0, 94.0), LARGE: (97.0, 89.0)}
MEANS = {SMALL: 82.0, MIDDLE: 92.0, LARGE: 93.0}
LINE = "regret --study ranks --search found --storage ."


def trained(spec: ArchSpec, seed: int, top1: float, *, seconds: float = 10.0) -> Record:
    one = record(seed, (50.0, top1), kind="fixed", status="completed", seconds=seconds)
    configuration = Configuration(spec=spec, train=TrainConfig(seed=seed))
    return one.model_copy(update={"configuration": configuration})


STUDY = [trained(spec, seed, top1) for spec, each in TOP1.items() for seed, top1 in enumerate(each)]


@pytest.fixture
def stored(tmp_path: Path) -> Callable[[str, list[Record]], Folder]:
    def stored(name: str, records: list[Record]) -> Folder:
        folder = Folder(str(tmp_path)) / name
        folder.write(DESCRIPTION, b'{"search_id": "a", "identity": {}}')
        for one in records:
            RecordStore(folder).put(one)
        return folder

    return stored


Stored = Callable[[str, list[Record]], Folder]


def test_regret_and_compute_are_those_of_the_records(run: Run, stored: Stored) -> None:
    stored("ranks", STUDY)
    folder = stored("found", [trained(MIDDLE, 7, 99.0, seconds=3.0), trained(SMALL, 7, 98.0)])
    supernet = trained(LARGE, 7, 97.0, seconds=2.0)
    (point,) = supernet.curve[-1:]
    two = point.model_copy(update={"metrics": {**point.metrics, "perf/workers": 2.0}})
    RecordStore(folder / SUPERNET).put(supernet.model_copy(update={"curve": (two,)}))
    ScoreStore(folder).put(0, [score(number, 70.0, seconds=0.5) for number in range(2)])
    stored("other", [trained(SMALL, 8, 70.0, seconds=6.0)])
    said = run(f"{LINE} --search other")
    assert said.code == 0, said.err
    assert f"the best, {LARGE.pattern}, has 93.00 % hold-out top-1" in said.out
    found, other = (
        line.split() for line in said.out.splitlines() if " scratch " in line or " oneshot " in line
    )
    assert found[:5] == [
        "found",
        "oneshot",
        "18",
        "30.0",
        MIDDLE.pattern,
    ]  # 3 + 10 + 2 * 2 + 2 * 0.5
    assert other[:5] == ["other", "scratch", "6", "10.0", SMALL.pattern]
    assert [line[8:10] for line in (found, other)] == [["92.00", "1.00"], ["82.00", "11.00"]]


def test_random_search_is_judged_by_the_seeds_that_it_did_not_choose_by() -> None:
    """All its choices, counted: one training of three specs' two seeds, then two trainings."""
    regret = job("regret")
    truth = regret.truth_of(STUDY)
    runs = [(spec, seed) for spec in TOP1 for seed in range(2)]
    one = [93.0 - TOP1[spec][1 - seed] for spec, seed in runs]
    mean, deviation = regret.random_search(truth, 10.0)
    assert mean == pytest.approx(statistics.mean(one), abs=0.2)
    assert deviation == pytest.approx(statistics.pstdev(one), abs=0.2)
    two = []
    for first, second in itertools.permutations(runs, 2):
        if first[0] != second[0]:
            spec, seed = max(first, second, key=lambda run: TOP1[run[0]][run[1]])
            two.append(93.0 - TOP1[spec][1 - seed])
    assert regret.random_search(truth, 29.9)[0] == pytest.approx(statistics.mean(two), abs=0.2)
    assert regret.random_search(truth, 0.0)[0] == pytest.approx(mean, abs=0.2)  # one at the least
    assert regret.regret_of(truth, LARGE) == 0.0


def test_what_cannot_be_compared_is_refused(refused: Callable[[str], str], stored: Stored) -> None:
    stored("ranks", STUDY)
    stored("half", STUDY[:-1])
    stored("found", [trained(MIDDLE, 7, 99.0)])
    stored("same", [STUDY[0]])
    stored("beside", [trained(spec_of((2, 1), (1,)), 7, 99.0)])
    stored("empty", [])
    for line, said in {
        "--study half --search found": "study must have two seeds or more of each architecture, "
        "got 2 with 1 trainings missing; go on with --resume",
        "--study ranks --search same": "search must be of other seeds than the study, got "
        "trainings of it in 'same'; give the search another --seed",
        "--study ranks --search beside": "search must choose among the study's architectures, got "
        "'beside', which chose 2-1|1",
        "--study ranks --search empty": "search must have trained a PSViT in full, got 'empty', "
        "with none",
    }.items():
        assert refused(f"regret {line} --storage .") == said
    assert "name must exist in" in refused("regret --study ranks --search fuond --storage .")
