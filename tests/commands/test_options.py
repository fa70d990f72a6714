"""What a command knows of the line that it was given."""

from __future__ import annotations

import shlex

import pytest

from psvit_ray.commands.command_line import parse
from psvit_ray.commands.options import CompareJob, ResumableJob, TrainJob, TuneJob


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (TuneJob, "--recipe digits --epochs=3 --name b --max-hours 2"),
        (TuneJob, "--resume auto --name=b --storage '/a b'"),
        (TuneJob, "--name b --resume --lr 0.01"),
        (TrainJob, "--arch '2|2-1|1' --workers 1:2"),
        (CompareJob, "--search s --seeds 3"),
    ],
)
def test_the_line_that_goes_on_is_the_same_job_under_its_name(
    kind: type[ResumableJob], line: str
) -> None:
    job = parse(kind, shlex.split(line))
    psvit, command, *words = shlex.split(job.resume_command("b"))
    assert f"{psvit} {command}" == f"psvit {kind.__name__.removesuffix('Job').lower()}"
    again = parse(kind, words)
    assert (again.launch.name, again.launch.resume) == ("b", "must")
    launch = job.launch.model_copy(update={"name": "b", "resume": "must"})
    assert again.model_copy(update={"argv": ()}) == job.model_copy(
        update={"argv": (), "launch": launch}
    )


def test_the_options_that_were_given() -> None:
    job = parse(TuneJob, shlex.split("--epochs=3 --grace-epochs 2 --resume --name a"))
    assert job.given == {"epochs", "grace_epochs", "resume", "name"}
