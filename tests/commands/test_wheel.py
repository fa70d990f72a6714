"""The wheel, installed where there is no checkout: the command, its recipes, one-line errors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from psvit_ray import __version__
from psvit_ray.commands.command_line import RECIPES

ROOT = Path(__file__).parents[2]
Psvit = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.processes


def environment() -> dict[str, str]:
    """The environment of this process, in which no checkout is found."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def pip(folder: Path, *argv: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *argv]
    subprocess.run(command, cwd=folder, env=environment(), check=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of the wheel alone, which sees the libraries of this one but no checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # setuptools writes beside what it builds
    shutil.copytree(ROOT / "psvit_ray", source / "psvit_ray")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip(folder, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("psvit_ray-*.whl")
    venv.create(folder / "venv", with_pip=False)
    pip(folder, "--python", folder / "venv" / "bin" / "python", "install", "--no-deps", wheel)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # A folder of a .pth file is searched, but the .pth files in it, as of an editable install, are
    # not read.
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "venv" / "bin" / "psvit"


@pytest.fixture
def psvit(installed: Path, tmp_path: Path) -> Psvit:
    """Runs the installed command in an empty folder."""

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [installed, *argv],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_the_wheel_has_the_version_the_license_and_the_types(installed: Path, psvit: Psvit) -> None:
    assert psvit("--version").stdout == f"psvit-ray {__version__}\n"
    (packages,) = installed.parents[1].glob("lib/python*/site-packages")
    assert (packages / "psvit_ray" / "py.typed").exists()
    about = packages / f"psvit_ray-{__version__}.dist-info"
    assert (about / "licenses" / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()
    assert "\nLicense-Expression: Apache-2.0\n" in (about / "METADATA").read_text()


def test_an_installed_command_lists_and_prints_its_recipes(psvit: Psvit) -> None:
    listed = psvit("recipes")
    assert (listed.returncode, listed.stderr) == (0, "")
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert names == sorted(path.stem for path in RECIPES.glob("*.yaml"))
    assert psvit("recipes", "digits").stdout == (RECIPES / "digits.yaml").read_text()
    wrong = psvit("recipes", "digitz")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.endswith("got 'digitz'; nearest is 'digits'\n")


def test_an_installed_command_helps_refuses_and_plans(psvit: Psvit, tmp_path: Path) -> None:
    assert "psvit COMMAND" in psvit("--help").stdout
    wrong = psvit("tune", "--num-trails", "3")
    assert (wrong.returncode, wrong.stdout, wrong.stderr) == (
        *(2, ""),
        "error: unknown option --num-trails; nearest is --num-trials\n",
    )
    planned = psvit("tune", "--recipe", "digits", "--dry-run", "--epochs", "3")
    assert (planned.returncode, planned.stderr) == (0, "")
    resolved = yaml.safe_load(planned.stdout.partition("\n\n")[0])
    assert resolved["train"]["epochs"] == 3
    assert list(tmp_path.iterdir()) == []
