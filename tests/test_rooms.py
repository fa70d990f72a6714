"""The floors of the house: imports only go down, and only `runtime` and the jobs know Ray."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = {
    "text": set(),
    "arch": {"text"},
    "storage": {"text", "arch"},
    "model": {"arch"},
    "data": {"text", "arch", "storage"},
    "export": {"text", "arch", "storage", "data", "model"},
    "training": {"text", "arch", "storage", "data", "model", "export"},
    "search": {"text", "arch", "storage", "data", "model", "export", "training"},
}
FLOORS["report"] = FLOORS["search"] | {"search"}
FLOORS["runtime"] = FLOORS["search"] | {"search"}
FLOORS["commands"] = FLOORS["search"] | {"search", "report", "runtime"}
FLOORS["jobs"] = FLOORS["commands"] | {"commands"}
FLOORS["__init__"] = {"export"}  # `psvit_ray.load`, where it is called
FLOORS["__main__"] = {"commands"}
"""What each floor may import beside itself."""
ROOMS = {
    "data": ["data", "images", "splits", "sources", "loading", "shards"],
    "search": ["search", "oneshot"],
    "runtime": ["cluster", "tracking", "session", "train", "tune", "batch", "oneshot", "doctor"],
    "report": ["report", "evaluation", "oneshot"],
}
"""Rooms of a floor: each may import itself and those before it."""
KNOWS_RAY = {"runtime", "commands", "jobs"}
KNOWS_MLFLOW = {
    "psvit_ray/runtime/tracking/evaluation_run.py",
    "psvit_ray/runtime/tracking/mlflow_tracker.py",
    "psvit_ray/runtime/tracking/parent_page.py",
    "psvit_ray/runtime/tracking/parent_run.py",
    "psvit_ray/runtime/tracking/registry.py",
    "psvit_ray/runtime/tracking/served_model.py",
    "jobs/studies/simulate_search.py",  # which asks it what a user does
}


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all that is imported, at any depth: also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def arrows_up(root: Path) -> list[str]:
    """Every import that the floors and rooms forbid: `file: what`."""
    files = [*root.glob("psvit_ray/**/*.py"), *root.glob("jobs/**/*.py")]
    assert files
    return [
        f"{path.relative_to(root)}: {name}"
        for path in sorted(files)
        for name in imported(ast.parse(path.read_text()))
        if not allowed(name.split("."), path.relative_to(root))
    ]


def allowed(name: list[str], path: Path) -> bool:
    """Whether the file may import what has this dotted name."""
    floor = "jobs" if path.parts[0] == "jobs" else path.parts[1].removesuffix(".py")
    if name == ["psvit_ray", "__version__"]:
        return True
    if name[0] == "psvit_ray":
        if name[1] != floor:
            return name[1] in FLOORS[floor]
        rooms = ROOMS.get(floor, [])
        here = path.parts[2] if len(path.parts) > 3 else floor
        there = name[2] if len(name) > 2 and name[2] in rooms else floor
        if here in rooms and there in rooms:
            return rooms.index(there) <= rooms.index(here)
        return here == there
    if name[0] == "jobs":
        return floor == "jobs"
    if name[0] == "ray":
        return floor in KNOWS_RAY
    if name[0] == "mlflow":
        return str(path) in KNOWS_MLFLOW
    if floor == "arch":
        return name[0] == "pydantic" or name[0] in sys.stdlib_module_names
    return name[0] != ""  # a relative import would hide which room it reaches


def test_imports_only_go_down() -> None:
    assert arrows_up(ROOT) == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("psvit_ray/model/layers.py", "import psvit_ray.training.engine"),
        ("psvit_ray/model/layers.py", "from psvit_ray import data"),
        ("psvit_ray/data/loading/loader.py", "from psvit_ray.model.psvit import PSViT"),
        ("psvit_ray/data/images/decode.py", "from psvit_ray.data.sources import columns"),
        ("psvit_ray/data/tables.py", "from psvit_ray.data.images import decode"),
        ("psvit_ray/export/config.py", "from psvit_ray.training import config"),
        ("psvit_ray/training/engine.py", "from psvit_ray.search.record import Record"),
        ("psvit_ray/search/record.py", "from psvit_ray.runtime.session import session"),
        ("psvit_ray/search/record.py", "from psvit_ray.search.oneshot import scores"),
        ("psvit_ray/search/record.py", "def late():\n    import ray"),
        ("psvit_ray/report/summary.py", "from psvit_ray.runtime.tracking import registry"),
        ("psvit_ray/runtime/session/session.py", "from psvit_ray.report import leaderboard"),
        ("psvit_ray/runtime/session/session.py", "from psvit_ray.runtime.train import worker"),
        ("psvit_ray/runtime/session/session.py", "from psvit_ray.commands import app"),
        ("psvit_ray/runtime/session/session.py", "from mlflow import MlflowClient"),
        ("psvit_ray/commands/tune.py", "from jobs.studies import scaling"),
        ("psvit_ray/arch/spec.py", "import numpy"),
        ("psvit_ray/search/record.py", "from ..runtime import session"),
        ("psvit_ray/__init__.py", "import psvit_ray.model"),
        ("jobs/deep/tune.py", "import mlflow"),
    ],
)
def test_an_arrow_that_runs_up_is_found(tmp_path: Path, place: str, line: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(f"from __future__ import annotations\n\n{line}\n")
    (found,) = arrows_up(tmp_path)
    assert found.startswith(f"{place}: ")


def borrowed(root: Path) -> list[str]:
    """Every import of one test module by another: `file: what`."""
    return [
        f"{path.relative_to(root)}: {name}"
        for path in sorted(root.glob("tests/**/*.py"))
        for name in imported(ast.parse(path.read_text()))
        if any(part.startswith("test_") for part in name.split("."))
    ]


def test_what_several_tests_use_is_a_helper(tmp_path: Path) -> None:
    assert borrowed(ROOT) == []
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text("from tests.room import test_b\nimport pytest\n")
    assert borrowed(tmp_path) == ["tests/test_a.py: tests.room.test_b"]


def test_a_test_module_is_imported_by_the_name_of_its_place() -> None:
    """By a second name, what it holds would be there twice."""
    assert __name__ == "tests.test_rooms"


def test_no_room_has_more_files_than_a_reader_can_keep_in_mind() -> None:
    """At most 14, beside `__init__.py`; `commands` has one for each word of `psvit`."""
    sizes = {
        str(folder.relative_to(ROOT)): len(list(folder.glob("[a-z]*.py")))
        for folder in (ROOT / "psvit_ray").rglob("*")
        if folder.is_dir() and folder.name != "__pycache__"
    }
    assert {
        room: size for room, size in sizes.items() if size > 14 and "commands" not in room
    } == {}


def loaded_by(imports: str) -> set[str]:
    code = f"import sys, {imports}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.processes
def test_the_package_and_its_models_load_neither_ray_nor_mlflow() -> None:
    heavy = {"ray", "mlflow", "torch", "timm"}
    assert loaded_by("psvit_ray") & heavy == set()  # `psvit_ray.load` imports what it needs
    assert loaded_by("psvit_ray, psvit_ray.model") & heavy == {"torch", "timm"}
