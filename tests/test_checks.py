"""What is run before a commit is what `make check` runs."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def recipe(target: str) -> list[str]:
    """The command lines of a target in the Makefile."""
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert found
    lines = found[1].replace("$(PYTHON)", "$(VENV)/bin/python").replace("$(VENV)", ".venv")
    return [line.strip() for line in lines.splitlines()]


def test_hooks_before_a_commit_are_the_commands_of_make_check() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = [hook["entry"].removeprefix("env ") for hook in local["hooks"]]
    assert hooks == [*recipe("check"), *recipe("docs")]
