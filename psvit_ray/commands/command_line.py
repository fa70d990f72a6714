"""From a recipe and a command line to one checked configuration; from an error to one line.

Recipe < best.yaml, where one is given as `--arch`, < command line. A recipe is a YAML file whose
sections are named like the fields of a job's configuration; those that another job reads are passed
over. A job without a field `recipe` has none.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, get_args

import tyro
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from psvit_ray.arch.presets import preset
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.commands import open_recipes
from psvit_ray.commands.exits import end, fail, leave, printable_output
from psvit_ray.commands.shorter import shortened as shortened_recipe
from psvit_ray.storage.fence import LeaseLost
from psvit_ray.text.messages import nearest, short_repr, shortened
from psvit_ray.text.yaml_file import read_text, read_yaml
from psvit_ray.training.config import Configuration

if TYPE_CHECKING:
    from psvit_ray.data.sources.image_source import Source

RECIPES = Path(__file__).parents[1] / "recipes"
SECTIONS = ("base", "train", "search", "oneshot", "trials")
MAX_FAULTS = 8
MAX_NAME = 60
MAX_MESSAGE = 600
MAX_ARGUMENT = 4_096  # what a path can have
UNKNOWN = "Unrecognized options:"  # of tyro
Job = TypeVar("Job", bound=BaseModel)


def run(
    job: type[Job],
    work: Callable[[Job], int],
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
) -> NoReturn:
    """Parses, works, exits. Whatever goes wrong is one line on standard error: with code 2 what the
    user gave, with code 1 what else there is, and where another driver took the name over. `prog`
    is what help calls the program, by default the file that runs."""
    printable_output()
    try:
        code = work(parse(job, sys.argv[1:] if argv is None else argv, prog=prog))
        if sys.stdout is not None:
            sys.stdout.flush()
    except ValidationError as error:
        fail(2, one_line(error))
    except LeaseLost as error:
        fail(1, str(error))
    except BaseException as error:  # one line for each
        end(error)
    leave(code)


def parse(job: type[Job], argv: Sequence[str], *, prog: str | None = None) -> Job:
    """Raises ValueError for a wrong flag, value or file, and says which."""
    if longest := max((word for word in argv if len(word) > MAX_ARGUMENT), default=""):
        flag = longest.partition("=")[0] if longest.startswith("--") else ""
        flag = flag or _flag_before(longest, argv) or "an argument"
        raise ValueError(
            f"{shortened(flag, MAX_NAME)} must have at most {MAX_ARGUMENT:,} "
            f"characters, got {len(longest):,}"
        )
    argv = _bare_resume(argv)
    fields = job.model_fields
    recipe, sections = "", {}
    if "recipe" in fields:
        data = _value_of("--data", argv)
        recipe = _value_of("--recipe", argv) or open_recipes.usual_recipe(job, data)
        sections = recipe_sections(recipe, _value_of("--arch", argv), data)
        sections = shortened_recipe(sections, _value_of("--epochs", argv))
        sections = open_recipes.provisional(job, recipe, sections)
    default = job.model_construct(**_defaults(job, recipe, sections))
    config = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    if "--help" in argv or "-h" in argv:
        tyro.cli(job, default=default, args=argv, prog=prog, config=config)
    printed = io.StringIO()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(5 * MAX_ARGUMENT)  # tyro breaks lines at the terminal's width
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
            parsed = tyro.cli(job, default=default, args=argv, prog=prog, config=config)
    except SystemExit:
        message = _message_in_frame(printed.getvalue(), argv)
        message = re.sub(r"\S{100,}", lambda word: shortened(word[0], 100), message)
        raise ValueError(shortened(message, MAX_MESSAGE)) from None
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
    return parsed.model_copy(update={"argv": tuple(argv)}) if "argv" in fields else parsed


def recipe_sections(recipe: str, arch: str | None, data: str | None = None) -> dict[str, Any]:
    """The sections of a recipe, with the training of `arch` where that is a search's best.yaml.
    Raises ValueError for files that are neither, and as `read_recipe`."""
    sections = read_recipe(recipe, data)
    if arch and arch.endswith((".yaml", ".yml")):
        sections["train"] = sections.get("train", {}) | _read_best(arch)["train"]
    return sections


def recipe_names() -> list[str]:
    """The recipes that come with the package, in order."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def read_recipe(name: str, data: str | None = None) -> dict[str, Any]:
    """The sections of a recipe, by name or by path; a section that is empty is left out.

    Raises ValueError if there is none, if it is not a mapping of mappings, and if it is for other
    data than `data`.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else RECIPES / f"{name}.yaml"
    content = read_yaml(path, f"recipe {name!r}", _hint(name, recipe_names())) or {}
    if not isinstance(content, dict):
        raise ValueError(f"recipe {name!r} must be a mapping of {', '.join(SECTIONS)}")
    only_for = content.pop(open_recipes.ONLY_FOR, None)
    if only_for and data and data != only_for:
        raise ValueError(
            f"recipe {name!r} is for data {short_repr(only_for)} alone, got {data!r}; use --recipe "
            f"{open_recipes.ANY_IMAGES}, which is for images of any kind"
        )
    for section, fields in content.items():
        if section not in SECTIONS:
            raise ValueError(
                f"recipe {name!r}: unknown section "
                f"{short_repr(section)}{_hint(str(section), SECTIONS)}"
            )
        if not isinstance(fields, dict | None):
            raise ValueError(
                f"recipe {name!r}: {section} must be a mapping, got {short_repr(fields)}"
            )
    return {section: fields for section, fields in content.items() if fields is not None}


def _defaults(job: type[BaseModel], recipe: str, sections: dict[str, Any]) -> dict[str, Any]:
    """Every field of a job as the recipe has it; what only the command line can say is missing."""
    values: dict[str, Any] = {}
    for name, field in job.model_fields.items():
        if name == "recipe":
            values[name] = recipe
        elif _is_section(field) and name in sections:
            kind: Any = field.annotation
            try:
                values[name] = TypeAdapter(kind).validate_python(sections[name])
            except ValidationError as error:
                raise ValueError(f"recipe {recipe!r}: {name}: {one_line(error)}") from None
        elif not field.is_required():
            values[name] = field.get_default(call_default_factory=True)
        elif _is_section(field):
            raise ValueError(f"recipe {recipe!r} must have a section {name!r}")
        else:
            values[name] = tyro.MISSING
    return values


def _is_section(field: FieldInfo) -> bool:
    kinds = (field.annotation, *get_args(field.annotation))
    return any(isinstance(kind, type) and issubclass(kind, BaseModel) for kind in kinds)


def resolve_arch(arch: str | None, base: ArchSpec | None, source: Source) -> ArchSpec:
    """The architecture that `read_arch` gives, for the images that `fit_arch` takes."""
    return fit_arch(read_arch(arch, base), arch, source)


def read_arch(arch: str | None, base: ArchSpec | None) -> ArchSpec:
    """A preset, a pattern with the widths of `base`, a spec.json, a best.yaml, that of an exported
    folder, or `base` itself. Raises ValueError for anything else."""
    if arch and arch.endswith((".yaml", ".yml")):
        return ArchSpec.model_validate(_read_best(arch)["spec"])
    if arch and arch.endswith(".json"):
        try:
            return ArchSpec.from_json(read_text(Path(arch), f"arch {arch!r}"))
        except ValidationError as error:
            raise ValueError(f"arch {arch!r} must be a spec: {one_line(error)}") from None
    if arch and ("://" in arch or os.path.isdir(arch)):
        from psvit_ray.export import model_folder  # torch, which no other architecture needs

        return model_folder.load_model_folder(arch).config.spec
    if arch and arch[0].isalpha():
        return preset(arch)
    if base is None:
        raise ValueError("arch must be given: this recipe has no base spec")
    return base if arch is None else base.with_pattern(arch)


def fit_arch(spec: ArchSpec, arch: str | None, source: Source) -> ArchSpec:
    """The spec that `arch` named, for the images of `source`. What a file holds is taken as it is;
    any other has as many classes as the data, and takes its images where these have a fixed size or
    number of channels. Raises ValueError where it cannot."""
    if arch and arch.endswith((".yaml", ".yml", ".json")):
        return spec
    names = ("img_size", "in_chans", "num_classes")
    images = {name: value for name in names if (value := getattr(source, name)) is not None}
    try:
        return ArchSpec.model_validate({**dict(spec), **images})
    except ValidationError as error:
        what = f"arch {arch!r}" if arch else "the recipe's base"
        raise ValueError(f"{what} with data {source.name!r}: {one_line(error)}") from None


def _read_best(path: str) -> dict[str, Any]:
    """A checked `best.yaml` of a search: its `spec` and its `train` as they stand there."""
    content = read_yaml(Path(path), f"arch {path!r}")
    if not isinstance(content, dict) or not {"spec", "train"} <= content.keys():
        raise ValueError(f"arch must be a search's best.yaml with spec and train, got {path!r}")
    try:
        Configuration.model_validate(content)
    except ValidationError as error:
        raise ValueError(f"arch {path!r}: {one_line(error)}") from None
    return content


def _hint(word: str, known: Sequence[str]) -> str:
    near = nearest(word, known)
    return f"; nearest is {near!r}" if near else ""


def one_line(error: ValidationError) -> str:
    """Every field that is wrong, the first few of many: where, the rule, what came."""
    errors = error.errors(include_url=False)
    listed = errors[:MAX_FAULTS]
    places = [fault["loc"] for fault in listed]
    lines = []
    for fault in listed:
        depth = len(fault["loc"])
        if any(place[:depth] == fault["loc"] and len(place) > depth for place in places):
            continue  # a consequence of what is wrong further in
        where = ".".join(shortened(str(part), MAX_NAME) for part in fault["loc"])
        if fault["type"] == "value_error":
            reason = str(fault["ctx"]["error"])
            lines.append(f"{where}: {reason}" if where else reason)
        elif fault["type"] == "missing":
            lines.append(f"{where} must be given")
        elif fault["type"] == "json_invalid":
            lines.append(fault["msg"])
        else:
            lines.append(f"{where} {_rule(fault['msg'])}, got {short_repr(fault['input'])}")
    if more := len(errors) - len(listed):
        lines.append(f"and {more:,} more")
    return "; ".join(lines)


def _rule(message: str) -> str:
    """A rule of pydantic, in the words of this package."""
    for pattern, words in (
        ("Input should", "must"),
        ("should", "must"),
        ("greater than or equal to", "at least"),
        ("less than or equal to", "at most"),
        ("greater than", "more than"),
    ):
        message = message.replace(pattern, words)
    return message


def _message_in_frame(text: str, argv: Sequence[str]) -> str:
    """The message in what tyro prints about these arguments: a frame with help around it."""
    rows = [re.sub(r"^[│|]|[│|]$", "", row).strip() for row in text.splitlines()]
    headline, *rest = [row for row in rows[1:] if row and not re.match(r"[─╰+]|-{3}", row)]
    if headline.startswith("Unrecognized options"):
        word = " ".join(headline.split()[2:3]).rstrip(",")
        if flag := _flag_before(word, argv):
            return f"{flag} takes no such value, got {short_repr(word)}; see --help"
        meant = rest.index("Perhaps you meant:") if "Perhaps you meant:" in rest else None
        hint = f"; nearest is {rest[meant + 1].split()[0]}" if meant is not None else ""
        return f"unknown option {word}{hint or '; see --help'}"
    if "validation error" in headline:  # of pydantic: field, then rule [type=, input_value=, ...]
        messages = []
        for field, rule in zip([headline, *rest], rest, strict=False):
            if parts := re.match(r"(.*) \[type=(\w+), input_value=(.*), input_type=", rule):
                message, kind, value = parts.groups()
                if kind == "value_error":
                    messages.append(message.removeprefix("Value error, "))
                else:
                    messages.append(f"{field} {_rule(message)}, got {value}")
        return "; ".join(messages)
    if headline.startswith("Missing from"):
        end = rest.index(UNKNOWN) if UNKNOWN in rest else len(rest)
        missing = ", ".join(row.split()[0] for row in rest[:end] if row.startswith("--"))
        unknown = "".join(f"unknown option {word}; " for word in rest[end + 1 : end + 2])
        return f"{unknown}{missing} must be given"
    if of_type := re.match(r"(?:Error parsing )?(--\S+): .*(int\(\)|float)[^:]*: (.*)", headline):
        flag, kind, value = of_type.groups()
        return f"{flag} must be a {'whole number' if kind == 'int()' else 'number'}, got {value}"
    return headline.removeprefix("Error parsing ")


def _flag_before(word: str, argv: Sequence[str]) -> str:
    """The flag that a word stands behind; empty where it stands alone."""
    for place, other in enumerate(argv):
        flag, sign, value = other.partition("=")
        if sign and flag.startswith("--") and value == word:
            return flag
        if other == word and not word.startswith("-"):
            return next((before for before in argv[:place][::-1] if before.startswith("--")), "")
    return ""


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
