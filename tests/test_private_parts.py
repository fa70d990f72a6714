"""Parts of libraries without a public name: each library's in few modules, and all still there."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import ray
from optuna.samplers import TPESampler
from ray.tune.schedulers import AsyncHyperBandScheduler

ROOT = Path(__file__).parent.parent
HOMES = {
    "psvit_ray/runtime/cluster/ray_private.py": "ray",
    "psvit_ray/runtime/cluster/ray_train_private.py": "ray",
    "psvit_ray/search/tpe.py": "optuna",
    "psvit_ray/training/agreement.py": "torch",
    "psvit_ray/model/psvit.py": "timm",
}
"""The modules that may know private parts, and of which library."""
SUBCLASSES = {
    "psvit_ray/search/tpe.py": ("optuna", TPESampler),
    "psvit_ray/runtime/tune/asha.py": ("ray", AsyncHyperBandScheduler),
}
"""The modules whose class uses private attributes of the library's class that it extends."""


def is_private(name: str) -> bool:
    """Whether a dotted name has a part that its library does not promise to keep."""
    return any(
        part.startswith(("_", "internal_")) and not part.startswith("__")
        for part in name.split(".")
    )


def private_parts(source: str) -> Iterator[str]:
    """Dotted names of the private parts of other packages that a module imports or reaches for."""
    tree = ast.parse(source)
    imported: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {alias.asname or alias.name: alias.name for alias in node.names}
            imported |= {here: f"{node.module}.{name}" for here, name in names.items()}
    imported = {here: name for here, name in imported.items() if not name.startswith("psvit_ray")}
    yield from filter(is_private, imported.values())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, _, rest = ast.unparse(node).partition(".")
            dotted = all(part.isidentifier() for part in rest.split("."))
            if root in imported and dotted and is_private(rest):
                yield f"{imported[root]}.{rest}"


def missing(name: str) -> bool:
    """Whether a dotted name is not there: of modules first, then of attributes."""
    parts = name.split(".")
    found: Any = importlib.import_module(parts[0])
    for end, part in enumerate(parts[1:], start=2):
        try:
            found = getattr(found, part)
        except AttributeError:
            try:
                found = importlib.import_module(".".join(parts[:end]))
            except ImportError:
                return True
    return False


def used_in_homes() -> list[tuple[str, str]]:
    return [
        (home, name)
        for home in HOMES
        for name in sorted({*private_parts((ROOT / home).read_text())})
    ]


def used_by_subclasses() -> list[tuple[str, str]]:
    """Private attributes of `self` that a subclass uses and does not define."""
    return [
        (file, name)
        for file in SUBCLASSES
        for name in sorted(_attributes(ast.parse((ROOT / file).read_text())))
    ]


def _attributes(tree: ast.AST) -> set[str]:
    used, own = set(), set()
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Load()):
                used.add(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                own.add(name)
            case ast.FunctionDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
                own.add(name)
    return {name for name in used - own if name.startswith("_")}


def moved(library: str, name: str, file: str) -> str:
    return (
        f"{library} {metadata.version(library)} has no {name} any more, a private part that "
        f"{file} uses: see what took its place, and change that file alone"
    )


def test_private_parts_of_libraries_are_known_to_few_modules() -> None:
    files = [*ROOT.glob("psvit_ray/**/*.py"), *ROOT.glob("jobs/**/*.py")]
    used = [
        (str(file.relative_to(ROOT)), name)
        for file in files
        for name in private_parts(file.read_text())
    ]
    assert {file for file, _ in used} == HOMES.keys()
    assert [(file, name) for file, name in used if name.partition(".")[0] != HOMES[file]] == []


@pytest.mark.parametrize(("file", "name"), used_in_homes())
def test_a_private_part_of_a_library_is_still_there(file: str, name: str) -> None:
    assert not missing(name), moved(HOMES[file], name, file)


@pytest.mark.parametrize(("file", "name"), used_by_subclasses())
def test_a_private_attribute_of_an_extended_class_is_still_there(file: str, name: str) -> None:
    library, extended = SUBCLASSES[file]
    instance = extended()
    assert hasattr(instance, name), moved(library, f"{extended.__name__}.{name}", file)


def test_ray_still_takes_the_address_of_this_host() -> None:
    file = "psvit_ray/runtime/cluster/ray_private.py"
    parameter = "_node_ip_address"
    known = inspect.getsource(ray.init)  # among those that its signature hides in `kwargs`
    assert f'"{parameter}"' in known, moved("ray", f"argument {parameter} of ray.init", file)


def test_a_part_that_a_new_version_moved_is_named() -> None:
    source = "from ray._private import worker\nworker._no_such_node\nfrom os import _exit as leave"
    assert [*private_parts(source)] == [
        "ray._private.worker",
        "os._exit",
        "ray._private.worker._no_such_node",
    ]
    assert missing("ray._private.worker._no_such_node")
    assert missing("ray._private.no_such_module.name")
    assert not missing("ray._private.worker._global_node")
