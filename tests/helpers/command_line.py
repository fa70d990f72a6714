"""Jobs called in this process, as the command line calls them."""

from __future__ import annotations

import functools
import importlib
import re
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from psvit_ray.commands import command_line
from psvit_ray.commands.paths import check_paths

ROOT = Path(__file__).parents[2]
CLASSES = {
    "tune_psvit": "TuneJob",
    "train_psvit": "TrainJob",
    "compare_psvit": "CompareJob",
    "report": "ReportJob",
    "proxy_study": "ProxyStudy",
    "rank_study": "RankStudy",
    "regret": "RegretJob",
    "redundancy": "RedundancyJob",
    "sharing_study": "SharingStudy",
    "prepare_data": "PrepareJob",
    "recipe": "RecipeJob",
    "export": "ExportJob",
    "evaluate": "EvaluateJob",
    "predict": "PredictJob",
    "doctor": "DoctorJob",
    "scaling": "ScalingJob",
    "latency": "LatencyJob",
    "simulate_search": "SimulateSearch",
}
Refused = Callable[[str], str]


@functools.cache
def job(name: str) -> ModuleType:
    """A command, or a study, by the name of its file in `jobs/`."""
    if (ROOT / "jobs" / "studies" / f"{name}.py").exists():
        return importlib.import_module(f"jobs.studies.{name}")
    door = (ROOT / "jobs" / f"{name}.py").read_text()
    command = re.search(r'run\("(\w+)"\)', door)
    assert command
    return importlib.import_module(f"psvit_ray.commands.{command[1]}")


def parse(line: str) -> Any:
    name, *argv = shlex.split(line)
    return command_line.parse(getattr(job(name), CLASSES[name]), argv)


class Said(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A job in an empty folder, in this process. Ray is never started."""
    monkeypatch.chdir(tmp_path)
    ctrl_c = signal.getsignal(signal.SIGINT)  # a job that ends leaves it to the system

    def not_here(**_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("psvit_ray.runtime.cluster.cluster.join", not_here)

    def run(line: str, work: Callable[[Any], int] | None = None) -> Said:
        name, *argv = shlex.split(line)
        monkeypatch.setattr(sys, "argv", [name, *argv])
        capsys.readouterr()

        def checked(job_: Any) -> int:
            check_paths(job_)
            return (work or job(name).work)(job_)

        with pytest.raises(SystemExit) as ended:
            command_line.run(getattr(job(name), CLASSES[name]), checked)
        signal.signal(signal.SIGINT, ctrl_c)
        return Said(int(ended.value.code or 0), *capsys.readouterr())

    return run


def everything_under(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def refused(run: Run, tmp_path: Path) -> Callable[[str], str]:
    """The one line that a wrong input gets."""

    def refused(line: str) -> str:
        before = everything_under(tmp_path), sorted(tmp_path.rglob("*"))
        said = run(line)
        assert said.code == 2
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert said.err.endswith("\n")
        assert said.err.count("\n") == 1
        assert (everything_under(tmp_path), sorted(tmp_path.rglob("*"))) == before
        return said.err.removeprefix("error: ").removesuffix("\n")

    return refused
