"""The floors of the house: imports only go down, and only `runtime` and the jobs know Ray."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

MAY_IMPORT = {
    "arch": {"arch"},
    "data": {"arch", "data"},
    "model": {"arch", "model"},
    "training": {"arch", "data", "model", "training"},
    "search": {"arch", "data", "model", "training", "search"},
    "report": {"arch", "data", "model", "training", "search", "report"},
    "runtime": {"arch", "data", "model", "training", "search", "runtime"},
    "jobs": {"arch", "data", "model", "training", "search", "report", "runtime", "cli", "jobs"},
}
MAY_IMPORT["cli"] = MAY_IMPORT["jobs"] | {"faults", "yaml_file"}
MAY_IMPORT["faults"] = {"arch", "data"}
MAY_IMPORT["yaml_file"] = {"arch"}
KNOWS_RAY = {"runtime", "jobs"}
MAY_IMPORT["__init__"] = {"training"}  # `psvit_ray.load`, where it is called
KNOWS_MLFLOW = {"psvit_ray/runtime/tracking.py", "psvit_ray/runtime/registry.py"}
KNOWS_MLFLOW |= {"jobs/simulate_search.py"}  # which asks it what a user does


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of all that is imported, at any depth: also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def arrows_up(root: Path) -> list[str]:
    """Every import that the floors forbid: `file: what`."""
    files = [*root.glob("psvit_ray/**/*.py"), *root.glob("jobs/**/*.py")]
    assert files
    found = []
    for path in sorted(files):
        place = path.relative_to(root)
        # psvit_ray/cli.py and psvit_ray/__init__.py are rooms of their own.
        room = "jobs" if place.parts[0] == "jobs" else place.parts[1].removesuffix(".py")
        found += [
            f"{place}: {name}"
            for name in imported(ast.parse(path.read_text()))
            if not allowed(name.split("."), room, str(place))
        ]
    return found


def allowed(name: list[str], room: str, place: str) -> bool:
    if name[0] == "psvit_ray":
        return name[1] in MAY_IMPORT.get(room, set())
    if name[0] == "ray":
        return room in KNOWS_RAY
    if name[0] == "mlflow":
        return place in KNOWS_MLFLOW
    if room == "arch":
        return name[0] == "pydantic" or name[0] in sys.stdlib_module_names
    return name[0] != ""  # a relative import would hide which room it reaches


def test_imports_only_go_down() -> None:
    assert arrows_up(ROOT) == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("psvit_ray/model/layers.py", "import psvit_ray.training.engine"),
        ("psvit_ray/model/layers.py", "from psvit_ray import data"),
        ("psvit_ray/data/loader.py", "from psvit_ray.model.psvit import PSViT"),
        ("psvit_ray/training/engine.py", "from psvit_ray.search.record import Record"),
        ("psvit_ray/search/record.py", "from psvit_ray.runtime import launch"),
        ("psvit_ray/search/record.py", "def late():\n    import ray"),
        ("psvit_ray/report/table.py", "from psvit_ray.runtime import tracking"),
        ("psvit_ray/runtime/launch.py", "from psvit_ray.report import leaderboard"),
        ("psvit_ray/runtime/launch.py", "from psvit_ray import cli"),
        ("psvit_ray/runtime/launch.py", "from mlflow import MlflowClient"),
        ("psvit_ray/cli.py", "import ray.train"),
        ("psvit_ray/arch/spec.py", "import numpy"),
        ("psvit_ray/search/record.py", "from ..runtime import launch"),
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


def loaded_by(imports: str) -> set[str]:
    code = f"import sys, {imports}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_package_and_its_models_load_neither_ray_nor_mlflow() -> None:
    heavy = {"ray", "mlflow", "torch", "timm"}
    assert loaded_by("psvit_ray") & heavy == set()  # `psvit_ray.load` imports what it needs
    assert loaded_by("psvit_ray, psvit_ray.model") & heavy == {"torch", "timm"}
