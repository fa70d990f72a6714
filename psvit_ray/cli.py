"""From a recipe and a command line to one checked configuration; from an error to one line.

Recipe < command line. A recipe is a YAML file whose sections are named like the fields of a job's
configuration; sections that another job reads are passed over.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro
import yaml
from pydantic import BaseModel, ValidationError

from psvit_ray.arch.presets import preset
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data.sources import load

RECIPES = Path(__file__).parent.parent / "jobs" / "recipes"
SECTIONS = ("base", "train", "search", "trials")
Job = TypeVar("Job", bound=BaseModel)


def run(job: type[Job], work: Callable[[Job], int]) -> NoReturn:
    """Parses, works, exits. What the user got wrong is one line on standard error and code 2."""
    try:
        code = work(parse(job, sys.argv[1:]))
    except ValidationError as error:
        fail(one_line(error))
    except ValueError as error:
        fail(str(error))
    sys.stdout.flush()
    sys.exit(code)


def fail(line: str) -> NoReturn:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def parse(job: type[Job], argv: Sequence[str]) -> Job:
    """Raises ValueError for a recipe that cannot be read; exits with code 2 for a wrong flag."""
    argv = _bare_resume(argv)
    recipe = _value_of("--recipe", argv) or job.model_fields["recipe"].default
    sections = {
        name: value for name, value in read_recipe(recipe).items() if name in job.model_fields
    }
    if (arch := _value_of("--arch", argv)) and arch.endswith((".yaml", ".yml")):
        sections["train"] = sections.get("train", {}) | _read_best(arch)["train"]
    default = job.model_validate({"recipe": recipe, **sections})
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    if "--help" in argv or "-h" in argv:
        tyro.cli(job, default=default, args=argv, config=config)
    printed = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "2000"  # tyro breaks lines at the terminal's width
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            return tyro.cli(job, default=default, args=argv, config=config)
    except SystemExit:
        raise ValueError(_of_a_box(printed.getvalue())) from None
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)


def read_recipe(name: str) -> dict[str, Any]:
    """A recipe by name or by path. Raises ValueError if there is none or it is not a mapping."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        known = sorted(file.stem for file in RECIPES.glob("*.yaml"))
        raise ValueError(f"recipe must exist, got {name!r}{nearest(name, known)}") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" at line {place.line + 1}" if place else ""
        raise ValueError(f"recipe {name!r} is not YAML{line}") from None
    if not isinstance(content, dict):
        raise ValueError(f"recipe {name!r} must be a mapping of {', '.join(SECTIONS)}")
    for section in content:
        if section not in SECTIONS:
            raise ValueError(
                f"recipe {name!r}: unknown section {section!r}{nearest(str(section), SECTIONS)}"
            )
    return content


def resolve_arch(arch: str | None, base: ArchSpec | None, data: str) -> ArchSpec:
    """A preset, a pattern with the widths of `base`, a spec.json, a best.yaml, or `base` itself.

    A preset takes its images and classes from the data. Raises ValueError for anything else.
    """
    if arch and arch.endswith((".yaml", ".yml")):
        return ArchSpec.model_validate(_read_best(arch)["spec"])
    if arch and arch.endswith(".json"):
        try:
            return ArchSpec.from_json(Path(arch).read_text())
        except FileNotFoundError:
            raise ValueError(f"arch must be a file that exists, got {arch!r}") from None
    if arch and not arch[0].isdigit():
        source = load(data, holdout=0.5, split_seed=0)
        images = {name: getattr(source, name) for name in ("img_size", "in_chans", "num_classes")}
        return ArchSpec.model_validate({**dict(preset(arch)), **images})
    if base is None:
        raise ValueError("arch must be given: this recipe has no base spec")
    return base.with_pattern(arch) if arch else base


def _read_best(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise ValueError(f"arch must be a file that exists, got {path!r}") from None
    if not isinstance(content, dict) or not {"spec", "train"} <= content.keys():
        raise ValueError(f"arch must be a search's best.yaml with spec and train, got {path!r}")
    return content


def nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.0)
    return f"; nearest is {near[0]!r}" if near else ""


def one_line(error: ValidationError) -> str:
    """Every field that is wrong: where, the rule, what came."""
    lines = []
    for found in error.errors():
        where = ".".join(str(part) for part in found["loc"])
        if found["type"] == "value_error":
            reason = str(found["ctx"]["error"])
            lines.append(f"{where}: {reason}" if where else reason)
        else:
            lines.append(f"{where} {_rule(found['msg'])}, got {found['input']!r}")
    return "; ".join(lines)


def _rule(message: str) -> str:
    return message.removeprefix("Input ").replace("should be", "must be")


def _of_a_box(text: str) -> str:
    """The point of what tyro prints framed, with help around it."""
    rows = [re.sub(r"^[│|]|[│|]$", "", row).strip() for row in text.splitlines()]
    said, *rest = [row for row in rows[1:] if row and not re.match(r"[─╰+]|-{3}", row)]
    if said.startswith("Unrecognized options"):
        meant = rest.index("Perhaps you meant:") if "Perhaps you meant:" in rest else None
        hint = f"; nearest is {rest[meant + 1].split()[0]}" if meant is not None else ""
        return f"unknown option {said.split()[2].rstrip(',')}{hint}"
    if "validation error" in said:  # pydantic's rows: field, then rule [type=, input_value=, ...]
        found = []
        for field, rule in zip([said, *rest], rest, strict=False):
            if parts := re.match(r"(.*) \[type=(\w+), input_value=(.*), input_type=", rule):
                message, kind, value = parts.groups()
                if kind == "value_error":
                    found.append(message.removeprefix("Value error, "))
                else:
                    found.append(f"{field} {_rule(message)}, got {value}")
        return "; ".join(found)
    return said.removeprefix("Error parsing ")


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    """Files that give the other flags their defaults must be read before these are parsed."""
    for place, word in enumerate(argv):
        if word == flag and place + 1 < len(argv):
            return argv[place + 1]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def _bare_resume(argv: Sequence[str]) -> list[str]:
    """`--resume` alone means `--resume must`."""
    words = list(argv)
    for place, word in enumerate(words):
        if word == "--resume" and (place + 1 == len(words) or words[place + 1].startswith("-")):
            words.insert(place + 1, "must")
            break
    return words
