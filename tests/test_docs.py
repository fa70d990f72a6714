"""What the pages say: their commands parse, their recipe is one, their files and links exist."""

from __future__ import annotations

import ast
import re
import runpy
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from psvit_ray.arch.presets import preset
from psvit_ray.commands import app, command_line
from psvit_ray.training.config import Configuration

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("cluster/*.md")]
OPERATORS = {"|", "||", "&&", "&", ";", ">", "<"}


def lines_of(script: str) -> Iterator[list[str]]:
    """The words of each command line; a quoted text may go over several lines."""
    open_line = ""
    for line in script.replace("\\\n", " ").splitlines():
        open_line += line + "\n"
        try:
            words = shlex.split(open_line, comments=True)
        except ValueError:  # a quotation that is not closed yet
            continue
        open_line = ""
        yield words


def commands_of(script: str) -> Iterator[list[str]]:
    """The commands of this project in a shell script: `[psvit, tune, ...]` and
    `[python, jobs/..., ...]`, also those that `sh -c` or `ray job submit` is given."""
    for words in lines_of(script):
        starts = [0, *(i + 1 for i, word in enumerate(words) if word in {*OPERATORS, "--"})]
        for start, end in zip(starts, [*(i - 1 for i in starts[1:]), None], strict=True):
            match words[start:end]:
                case ["psvit", *_] as command:
                    yield command
                case ["python", *rest] as command if "jobs" in " ".join(rest[:2]):
                    yield command
                case ["sh", "-c", inner]:
                    yield from commands_of(inner)


def blocks(page: Path, *languages: str) -> list[str]:
    """The contents of a page's fenced blocks in one of these languages."""
    pattern = rf"^```(?:{'|'.join(languages)})\n(.*?)^```"
    return re.findall(pattern, page.read_text(), re.MULTILINE | re.DOTALL)


def scripts(page: Path) -> list[str]:
    """What a page shows to be typed into a shell."""
    typed = [
        "\n".join(line[2:] for line in block.splitlines() if line.startswith("$ "))
        for block in blocks(page, "console")
    ]
    return blocks(page, "bash") + typed


COMMANDS = sorted(
    {shlex.join(c) for page in PAGES for script in scripts(page) for c in commands_of(script)}
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the files that the pages' commands read: the recipe of one's own and
    the winner of a search."""
    (recipe,) = blocks(ROOT / "docs" / "search.md", "yaml")
    (tmp_path / "my.yaml").write_text(recipe)
    best = Configuration(spec=preset("psvit_2d_tiny")).model_dump(mode="json")
    for name in ("a", "digits"):
        (tmp_path / "outputs" / name).mkdir(parents=True)
        (tmp_path / "outputs" / name / "best.yaml").write_text(yaml.safe_dump(best))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Parsed(Exception):
    """A command got as far as its work."""


def start(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a command line until its job is to begin. Raises Parsed there, ValueError before it for
    what is wrong."""

    def parse_only(
        job: type[BaseModel], work: Any, argv: Sequence[str] | None = None, **_: object
    ) -> None:
        command_line.parse(job, sys.argv[1:] if argv is None else argv)
        raise Parsed

    monkeypatch.setattr(command_line, "run", parse_only)
    program, *argv = words
    if program == "psvit":
        monkeypatch.setattr(sys, "argv", ["psvit", *argv])
        app.main()
    elif argv[0] == "-m":
        monkeypatch.setattr(sys, "argv", argv[1:])
        monkeypatch.delitem(sys.modules, argv[1], raising=False)  # another test may have it
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        monkeypatch.setattr(sys, "argv", argv)
        runpy.run_path(str(ROOT / argv[0]), run_name="__main__")


@pytest.mark.filterwarnings("ignore:'jobs.studies.* found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_pages_parses(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Parsed):
        start(shlex.split(line), monkeypatch)


def test_a_wrong_flag_of_a_page_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "x | psvit report --name a --nam b\nsh -c 'python jobs/report.py --zzz'  # why"
    report, door = commands_of(script)
    for words, wrong in ((report, "--nam"), (door, "--zzz")):
        with pytest.raises(ValueError, match=f"unknown option {wrong}"):
            start(words, monkeypatch)


def test_the_pages_show_every_command() -> None:
    shown = {words[1] for line in COMMANDS if (words := shlex.split(line))[0] == "psvit"}
    named = set(re.findall(r"`psvit (\w+)", (ROOT / "README.md").read_text()))
    assert shown <= set(app.COMMANDS)
    assert set(app.COMMANDS) <= named


def test_links_and_pictures_of_the_readme_exist() -> None:
    text = (ROOT / "README.md").read_text()
    targets = [t for t in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in t]
    assert len(targets) > 10
    for target in targets:
        assert (ROOT / target).exists(), target


def templates() -> set[str]:
    """Every text of the package, with `...` where a value is filled in."""
    found = set()
    for path in (ROOT / "psvit_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else "..." for p in node.values]
                found.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return found


def test_the_messages_that_are_explained_are_those_of_the_package() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    messages = re.findall(r"^### `(.*)`$", page, re.MULTILINE)
    assert len(messages) > 40
    known = templates()
    unknown = []
    for message in messages:
        pieces = [re.escape(piece) for piece in message.split("...") if piece]
        if not any(re.search(".*".join(pieces), text) for text in known):
            unknown.append(message)
    assert unknown == []


def test_the_files_of_the_walks_exist_and_stand_in_the_pictures() -> None:
    walks = runpy.run_path(str(ROOT / "docs" / "draw_walks.py"))["WALKS"]
    assert len(walks) == 4
    for name, steps in walks.items():
        picture = (ROOT / "docs" / "images" / f"walk_{name}.svg").read_text()
        for path, _ in steps:
            assert (ROOT / "psvit_ray" / path).is_file(), path
            assert path.partition("/")[2] in picture, path


def test_files_that_the_pages_name_exist() -> None:
    named = {
        path
        for page in PAGES
        for path in re.findall(
            r"`((?:psvit_ray|jobs|tests|docs|cluster)/[\w/.]*)`", page.read_text()
        )
    }
    assert len(named) > 5
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


def test_flags_that_the_pages_name_exist(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    studies = {tuple(shlex.split(line)[:3]) for line in COMMANDS if line.startswith("python -m")}
    for program in [*(("psvit", command) for command in app.COMMANDS), *studies]:
        with pytest.raises(SystemExit):
            start([*program, "--help"], monkeypatch)
    known = set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    assert len(known) > 100
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r"`((?:psvit |--)[^`]+)`", text):
            named = set(re.findall(r"(?<!\S)--[a-z][\w-]*", code))
            assert named <= known, f"{page.name}: {code}"
