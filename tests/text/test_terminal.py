"""What is shown to people, on terminals and in pictures, and what Ray leaves on their disks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from wcwidth import wcswidth

from psvit_ray.report.evaluation import mistakes_picture, roc_picture
from psvit_ray.report.evaluation.binary_curves import binary_result
from psvit_ray.report.evaluation.evaluation_picture import confusion_png, reliability_png
from psvit_ray.report.evaluation.metrics import LabelledPredictions
from psvit_ray.report.pareto_picture import png
from psvit_ray.report.summary import aligned
from psvit_ray.runtime.cluster import cluster


def test_columns_stand_below_each_other_whatever_the_letters() -> None:
    rows = [["class", "%"], ["実験", "1"], ["größe", "22"], ["e\u0301", "3"], ["a\n\x1b[31mb", "4"]]
    lines = aligned(rows).splitlines()
    assert len(lines) == len(rows)
    assert {wcswidth(line) for line in lines} == {wcswidth(lines[0])}
    assert r"a\n\x1b[31mb" in lines[-1]


@pytest.mark.parametrize(
    "name", [r"$\frac", "$x$", "a\nb", "\x1b[31m", "実験", "\udcff", "a\x00b", "\\"]
)
@pytest.mark.filterwarnings("error")
def test_a_picture_is_drawn_with_any_name(name: str) -> None:
    half = np.array([0.5, 0.5])
    answers = LabelledPredictions(
        class_names=(name, "b"),
        labels=np.array([0, 1]),
        predictions=np.array([1, 1]),
        confidences=half,
        label_probabilities=half,
        losses=half,
        ranks=np.array([1.0, 0.0]),
        bad=(),
        margins=half,
    )
    for draw in (confusion_png, reliability_png):
        assert draw(answers, f"{name}: test").startswith(b"\x89PNG")
    curves = binary_result(answers, None)
    assert curves
    sheet = mistakes_picture.picture(answers, lambda _: Image.new("L", (9, 7)), name)
    for figure in (roc_picture.picture(curves, name), sheet):
        assert png(figure).startswith(b"\x89PNG")


@pytest.mark.processes
@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_cannot_show_a_name_ends_no_job(encoding: str, tmp_path: Path) -> None:
    program = (
        "from psvit_ray.commands.command_line import run; from pydantic import BaseModel\n"
        "class Job(BaseModel): pass\n"
        "def work(job): print('実験 \\udcff', input()); raise ValueError('größe \\udcff')\n"
        "run(Job, work)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        input=b"x\n",
        capture_output=True,
    )
    assert done.returncode == 2
    assert done.stdout == "実験 \\udcff x\n".encode(encoding, "backslashreplace")
    assert done.stderr == "error: größe \\udcff\n".encode(encoding, "backslashreplace")


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_that_is_too_deep_for_rays_sockets_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    longest = "/tmp/" + "x" * 32
    monkeypatch.setenv(name, longest + "ü")
    said = f"{name} must be at most 37 bytes long, as Ray puts sockets there, got '{longest}ü'; "
    with pytest.raises(ValueError, match=said + "set RAY_TMPDIR=/tmp"):
        cluster.start_ray()  # is not started
    monkeypatch.setenv(name, longest)
    cluster.check_socket_paths()


def test_the_token_of_a_cluster_is_its_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    cluster.make_token_private()
    text = token.read_text()
    assert len(text) == 64
    assert token.stat().st_mode & 0o777 == 0o600
    assert token.parent.stat().st_mode & 0o777 == 0o700
    token.chmod(0o644)
    cluster.make_token_private()
    assert token.read_text() == text
    assert token.stat().st_mode & 0o777 == 0o600
    token.unlink()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster.make_token_private()
    assert not token.exists()
