"""What `jobs/export.py` refuses, and what it leaves behind then: nothing."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from psvit_ray.export import formats
from psvit_ray.export.formats import ConversionError
from psvit_ray.export.model_files import WEIGHTS
from psvit_ray.search.record import Record, RecordStore
from psvit_ray.storage.folder import Folder
from psvit_ray.training.checkpoint import MANIFEST, Checkpoint
from tests.helpers.command_line import Refused, Run, everything_under
from tests.helpers.networks import DIGITS_SPECS, trained


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    (found,) = trained(DIGITS_SPECS["2d"])
    return found


def write_run(folder: Path, checkpoint: Checkpoint, run_id: str = "", top1: float = 50.0) -> None:
    """As train_psvit leaves it."""
    there = Folder(str(folder))
    there.write("search.json", b'{"search_id": "a", "identity": {}}')
    record = Record(
        number=0,
        kind="fixed",
        params={},
        configuration=checkpoint.run.configuration,
        status="completed",
        run_id=run_id,
    )
    RecordStore(there).put(record)
    checkpoint.save(there / "checkpoints" / checkpoint.name, score=top1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "--run nowhere --out o",
            "run must be a folder that train_psvit wrote, got {here}/nowhere",
        ),
        (
            "--run search --out o",
            "run must hold one training, got 2 configurations in {here}/search; of a search, train "
            "the winner with psvit train --arch best.yaml",
        ),
        (
            "--run begun --out o",
            "run must have ended an epoch, got {here}/begun, which has not",
        ),
        (
            "--run broken --out o",
            "{here}/broken/checkpoints/step-000000002-epoch-0001 is broken: model.safetensors has "
            "another sha256 than was written",
        ),
        ("--run a --out full", "out must be new or empty, got {here}/full, which holds 'a.txt'"),
        (
            "--run a --out full/a.txt/o",
            "out must be a folder, got {here}/full/a.txt/o: {here}/full/a.txt is a file",
        ),
        ("--run a --out o --alias champion", "alias needs --register"),
        ("--run a --out o --register a/b", "register must be a name without /, : and ?, got 'a/b'"),
        (
            "--run a --out o --register m --alias v3",
            "alias must be of letters, digits, _ and -, and not latest or a version such as v1, "
            "got 'v3'",
        ),
        (
            "--run unwritten --out o --register m",
            "register needs the run in MLflow, where it is not: --resume writes it",
        ),
        (
            "--run a --out o --register m",
            "register needs the store of the run, got sqlite:///{here}/mlflow.db, which does not "
            "exist: give --tracking-uri",
        ),
        (
            "--run a --out o --register m --tracking-uri http://me:hunter2@127.0.0.1:9",
            "tracking_uri must answer, got http://127.0.0.1:9: ConnectionError",
        ),
        ("--run a", "--out must be given"),
    ],
)
def test_wrong_input_is_one_line(
    refused: Refused, checkpoint: Checkpoint, tmp_path: Path, line: str, said: str
) -> None:
    for name in ("a", "search", "begun", "broken", "unwritten"):
        write_run(tmp_path / name, checkpoint, "" if name == "unwritten" else "some-run")
    record = next(tmp_path.glob("search/record/*.json"))
    other = json.loads(record.read_text())
    other["configuration"]["train"]["lr"] = 1.0
    record.with_name("other.json").write_text(json.dumps(other))
    shutil.rmtree(tmp_path / "begun" / "checkpoints")
    (weights,) = tmp_path.glob(f"broken/checkpoints/*/{WEIGHTS}")
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("")
    assert refused(f"export {line}") == said.format(here=tmp_path)


def test_another_store_is_told_from_the_one_of_the_run(
    run: Run, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/other.db"
    MlflowClient(uri).create_experiment("other")
    write_run(tmp_path / "a", checkpoint, "some-run")
    said = run(f"export --run a --out o --register m --tracking-uri {uri}")
    assert said.code == 2
    assert said.err.startswith(f"error: tracking_uri must hold the run some-run, got {uri}: ")
    assert said.err.count("\n") == 1
    assert not (tmp_path / "o").exists()


def test_onnx_that_is_not_installed_is_said_before_a_checkpoint_is_read(
    refused: Refused, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "a", checkpoint)
    shutil.rmtree(tmp_path / "a" / "checkpoints")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError):
        importlib.import_module("onnxscript")
    assert refused("export --run a --out o --onnx") == (
        "onnx needs onnxscript, which is not installed: pip install 'psvit-ray[onnx]'"
    )


def test_a_run_within_its_first_epoch_has_only_a_last_checkpoint(
    refused: Refused, run: Run, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    write_run(tmp_path / "a", checkpoint)
    manifest = next(tmp_path.glob(f"a/checkpoints/*/{MANIFEST}"))
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"score": None}))
    assert refused("export --run a --out o") == (
        f"run must have ended an epoch, got {tmp_path}/a, which has not; --which last takes what "
        "there is"
    )
    assert run("export --run a --out o --which last").code == 0
    assert (tmp_path / "o" / WEIGHTS).exists()


def test_what_answers_otherwise_is_no_export(
    run: Run, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "a", checkpoint)
    before = everything_under(tmp_path)

    def disagree(*_: object) -> None:
        raise ConversionError("model.pt2 must answer as the network does")

    monkeypatch.setattr(formats, "check_agreement", disagree)
    said = run("export --run a --out o --torch-export")
    assert said == (
        1,
        "",
        "error: nothing was exported: model.pt2 must answer as the network does\n",
    )
    assert everything_under(tmp_path) == before
