"""What a command loads before it knows that its options are right: counted in modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from psvit_ray import __version__
from psvit_ray.commands import app

ROOT = Path(__file__).parents[2]
HEAVY = {
    *("torch", "torchvision", "timm", "ray", "mlflow", "pyarrow", "matplotlib", "PIL", "optuna"),
    *("scipy", "sklearn", "numpy"),
}
REQUIRED = {
    "compare": ["--search", "a"],
    "report": ["--name", "a"],
    "export": ["--run", "a", "--out", "b"],
    "evaluate": ["--model", "a", "--data", "b", "--out", "c"],
    "predict": ["--model", "a", "--data", "b", "--out", "c"],
    "prepare": ["--data", "a", "--out", "b"],
    "redundancy": ["--model", "a", "--data", "b", "--out", "c"],
    "latency": ["--out", "a"],
}
WRONG_VALUES = {
    "tune": ["--epochs", "0"],
    "train": ["--lr", "-1"],
    "compare": ["--seeds", "0"],
    "prepare": ["--shard-mb", "0"],
    "evaluate": ["--batch-size", "0"],
    "predict": ["--top-k", "0"],
    "doctor": ["--drop", "2"],
    "latency": ["--unseen", "1"],
    "redundancy": ["--threshold", "2"],
}
SHOWS_MODULES = """
import atexit, sys
atexit.register(lambda: print("loaded", *sys.modules, file=sys.stderr))
from psvit_ray.commands.app import main
main()
"""

pytestmark = pytest.mark.processes


def psvit(*argv: str, code: str = SHOWS_MODULES) -> tuple[int, str, str, set[str]]:
    """Exit code, both outputs, and the heavy modules that the process had loaded in the end."""
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    error, _, loaded = done.stderr.partition("loaded ")
    return done.returncode, done.stdout, error, set(loaded.split()) & HEAVY


@pytest.mark.parametrize("command", app.COMMANDS)
def test_help_and_a_wrong_option_load_nothing_heavy(command: str) -> None:
    code, out, error, heavy = psvit(command, "--help")
    assert (code, error, heavy) == (0, "", set())
    assert out.startswith(f"usage: psvit {command} ")
    code, out, error, heavy = psvit(command, "--zzz", "1")
    assert (code, out, heavy) == (2, "", set())
    assert error.startswith("error: unknown option --zzz")
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", WRONG_VALUES)
def test_a_wrong_value_is_found_before_anything_heavy_is_loaded(command: str) -> None:
    name, value = WRONG_VALUES[command]
    code, out, error, heavy = psvit(command, *REQUIRED.get(command, []), name, value)
    assert (code, out, heavy) == (2, "", set())
    field = name.removeprefix("--").replace("-", "_")
    assert error.startswith(f"error: {field} must be ")
    assert error.count("\n") == 1


WRONG_PATHS = {
    "compare": ("--search z", "name must exist in "),
    "report": ("--name z", "name must exist in "),
    "export": ("--run z --out b", "run must be a folder that train_psvit wrote, got "),
    "evaluate": ("--model z --data digits --out b", "model must be an exported folder, got "),
    "predict": ("--model z --data a.png --out b.csv", "model must be an exported folder, got "),
    "redundancy": ("--model z/ --data digits --out b", "model must be an exported folder, got "),
    "prepare": ("--data z/ --out b", "data must exist, got 'z/'"),
    "latency": ("--out there.json", "out must be new, got "),
}
MORE_WRONG_PATHS = [
    ("evaluate", "--model there --data digitz --out b", "data must be a known source, got "),
    ("predict", "--model there --data z.png --out b.csv", "data must exist, got 'z.png'"),
]


@pytest.mark.parametrize(
    ("command", "line", "said"),
    [*((name, *pair) for name, pair in WRONG_PATHS.items()), *MORE_WRONG_PATHS],
)
def test_a_wrong_path_is_found_before_anything_heavy_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, line: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "config.json").write_text("{}")
    (tmp_path / "there.json").touch()
    code, out, error, heavy = psvit(command, *line.split())
    assert (code, out) == (2, "")
    assert error.startswith(f"error: {said}")
    assert heavy <= {"pyarrow", "PIL", "numpy"}


def test_a_dry_run_of_bad_input_loads_neither_torch_nor_ray() -> None:
    for wrong, said in (
        (["--max-gmacs", "0.00000001"], "no configuration of the space meets max_gmacs=1e-08"),
        (["--recipe", "digitz"], "recipe 'digitz' does not exist; nearest is 'digits'"),
        (["--data", "digitz"], "data must be a known source, got 'digitz'"),
        (["--strategy", "oneshot", "--population", "900000"], "population must be at most 5,491"),
    ):
        code, out, error, heavy = psvit("tune", "--dry-run", *wrong)
        assert (code, out) == (2, "")
        assert error.startswith(f"error: {said}")
        assert heavy <= {"pyarrow", "PIL", "numpy", "optuna"}


def test_an_architecture_that_is_none_loads_neither_torch_nor_ray() -> None:
    for arch, said in (("2|2-x|1", "pattern '2|2-x|1': "), ("psvit_2d_tinny", "no preset is ")):
        code, out, error, heavy = psvit("train", "--arch", arch)
        assert (code, out) == (2, "")
        assert error.startswith(f"error: {said}")
        assert heavy <= {"pyarrow", "PIL", "numpy"}


def test_the_command_alone_its_version_and_its_help() -> None:
    for argv in ([], ["--help"], ["-h"]):
        code, out, _, _ = psvit(*argv)
        assert code == 0
        assert all(f"\n  {command} " in out for command in app.COMMANDS)
    as_module = "import runpy; runpy.run_module('psvit_ray', run_name='__main__')"
    for program in (SHOWS_MODULES, as_module):
        assert psvit("--version", code=program)[:2] == (0, f"psvit-ray {__version__}\n")


def test_a_mistyped_command_is_named_the_nearest() -> None:
    code, out, error, heavy = psvit("tnue")
    assert (code, out, heavy) == (2, "", set())
    assert error == (
        f"error: command must be one of {', '.join(app.COMMANDS)}, got 'tnue'; nearest is 'tune'\n"
    )


INTERRUPTED = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

module = sys.argv.pop()
sys.meta_path.insert(0, Interrupt())
from psvit_ray.commands.app import main
main()
"""


@pytest.mark.parametrize(
    "module",
    ["tyro", "pydantic", "numpy.linalg", "pyarrow.lib", "torch.nn", "timm.layers", "ray.train"],
)
def test_ctrl_c_while_modules_are_loaded_is_130_without_a_traceback(module: str) -> None:
    flags = ["--arch", "2|1|1", "--gpus-per-worker", "0"]
    assert psvit("train", *flags, module, code=INTERRUPTED)[:3] == (130, "", "interrupted\n")
