"""What is wrong with a file of cluster/: each check reads its text and gives the problems as lines.

Here: what all have in common, the image, and what goes with a job. `cluster_launcher.py` has Ray's
launcher, `cluster_manifests.py` Kubernetes, Compose and Grafana.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import run
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from ray._private.runtime_env.packaging import create_package

from psvit_ray import __version__

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SETTINGS = ("PSVIT_STORAGE", "MLFLOW_TRACKING_URI")  # what the submit line reads on the head


def required(package: str) -> SpecifierSet:
    """The versions that pyproject.toml allows."""
    requirements = (Requirement(line) for line in PROJECT["dependencies"])
    return next(wanted.specifier for wanted in requirements if wanted.name == package)


def values(tree: Any, key: str) -> Iterator[Any]:
    """All values under `key`, wherever it is."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == key:
                yield value
            yield from values(value, key)
    elif isinstance(tree, list):
        for value in tree:
            yield from values(value, key)


def header(text: str) -> Iterator[str]:
    """Each file says what it gives, its command, and what it costs when idle."""
    top = re.match(r"(#.*\n)+", text)
    for word in ("gives", "command", "when idle"):
        if not top or not re.search(rf"^#   {word} ", top[0], re.M):
            yield f"the header must say `{word}`"


def image(name: str) -> Iterator[str]:
    """Pinned, and of the versions that pyproject.toml asks for."""
    repository, _, tag = name.rpartition(":")
    if not repository or "/" in tag or not re.search(r"\d+\.\d+", tag):
        yield f"image {name} must be pinned to a version"
    elif "psvit-ray" in repository:
        ours = re.fullmatch(r"([\d.]+)-ray([\d.]+)-py311", tag)
        if not ours or ours[1] != __version__ or ours[2] not in required("ray"):
            wanted = f"{__version__}-rayVERSION-py311"
            yield f"image {name} must be {wanted}, with Ray {required('ray')}"
    elif repository == "rayproject/ray" and tag.split("-")[0] not in required("ray"):
        yield f"image {name} must have Ray {required('ray')}"
    elif "mlflow" in repository and tag.strip("v").split("-")[0] not in required("mlflow"):
        yield f"image {name} must have MLflow {required('mlflow')}"


# The image, and what goes with a job


def dockerfile(text: str) -> Iterator[str]:
    yield from header(text)
    command = [str(Path(sys.executable).with_name("hadolint")), "--format", "json", "-"]
    found = run(command, input=text, capture_output=True, text=True, check=False)
    yield from (f"hadolint {one['code']}: {one['message']}" for one in json.loads(found.stdout))
    lines = [line.split() for line in text.splitlines() if line[:1].isalpha()]
    base = next(words[1] for words in lines if words[0] == "FROM")
    yield from image(base)
    if "-py311" not in base:
        yield f"the base must have the Python of the images' tags, py311, got {base}"
    if [words[1:] for words in lines if words[0] == "USER"][-1:] != [["1000"]]:
        yield "the last USER must be 1000, which is Ray's"
    if text.count("pip install") != 1:
        yield "one pip layer"
    for _, *copied, _ in (words for words in lines if words[0] == "COPY"):
        for source in copied:
            if not (ROOT / source).exists():
                yield f"COPY {source}: not in the repository"


def dockerignore(text: str) -> Iterator[str]:
    patterns = [line for line in text.splitlines() if line and line[0] != "#"]
    if patterns[:1] != ["*"]:
        yield "the first pattern must be `*`: all is left out but what is named"
    copied = re.findall(r"^COPY (\S+)", (CLUSTER / "Dockerfile").read_text(), re.M)
    let_in = [pattern[1:] for pattern in patterns if pattern[0] == "!"]
    if sorted(let_in) != sorted(copied):
        yield f"what is let in must be what the Dockerfile copies, {copied}, got {let_in}"
    if "**/__pycache__" not in patterns:
        yield "**/__pycache__ must be left out"


LEFT = ("data/a.parquet", "outputs/a.pt", "shards/a", ".git/a", ".venv/a", "submit.log")


def rayignore(text: str) -> Iterator[str]:
    """Packs a folder as `ray job submit --working-dir .` does."""
    needed = [
        str(path.relative_to(ROOT))
        for folder in ("psvit_ray", "jobs")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml")
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name in (*needed, *LEFT, "psvit_ray/__pycache__/a.pyc", "tests/a.py"):
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
        Path(folder, ".rayignore").write_text(text)
        Path(folder, ".gitignore").write_text((ROOT / ".gitignore").read_text())
        package = Path(folder).with_suffix(".zip")
        create_package(folder, package, include_gitignore=True, logger=logging.getLogger(__name__))
        packed = set(zipfile.ZipFile(package).namelist())
        package.unlink()
    if lost := [name for name in needed if name not in packed]:
        yield f"{len(lost)} files that a job needs are left out, as {lost[0]}"
    for name in (*LEFT, "psvit_ray/__pycache__/a.pyc", "tests/a.py"):
        if name in packed:
            yield f"{name} must be left out"
