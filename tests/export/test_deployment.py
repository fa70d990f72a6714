"""From images to answers by the jobs themselves: a run is trained, exported in every form,
registered, evaluated, and asked; all say the same."""

from __future__ import annotations

import base64
import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import ray
import torch
from PIL import Image
from ray.util.state import list_actors
from torch import Tensor

import psvit_ray
from psvit_ray.data.sources.load_data import read_data
from psvit_ray.data.splits import split_file
from psvit_ray.export import model_folder
from psvit_ray.export.inference import score_batches, to_predictions
from psvit_ray.export.model_files import ONNX, TORCH_EXPORT
from psvit_ray.runtime.batch import inference_actors
from psvit_ray.search.record import Record, RecordStore
from psvit_ray.storage.folder import Folder
from tests.helpers.command_line import job, parse
from tests.helpers.drawn import CLASS_NAMES, drawn_folder

ROOT = Path(__file__).parents[2]
SPEC = {
    "img_size": 64,
    "patch_size": 8,
    "num_classes": 10,
    "pooling": "2d",
    "stages": [
        {"embed_dim": 32, "num_heads": 2, "hidden_dim": 64, "share_groups": [1]},
        {"embed_dim": 64, "num_heads": 4, "hidden_dim": 128, "share_groups": [2]},
    ],
}


class Deployed(NamedTuple):
    data: Path
    run: Path
    model: Path
    record: Record
    tracking_uri: str


def work(line: str) -> int:
    name = line.split()[0]
    return int(job(name).work(parse(line)))


@pytest.fixture(scope="module")
def deployed(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    folder = tmp_path_factory.mktemp("deployed")
    data = drawn_folder(folder / "drawn", classes=10, splits={"train": 30, "test": 10})
    (folder / "spec.json").write_text(json.dumps(SPEC))
    run, model = folder / "runs" / "a", folder / "a%20model"
    line = (
        f"train_psvit --arch {folder}/spec.json --data {data} --storage {folder}/runs --name a "
        "--epochs 8 --batch-size 16 --lr 0.002 --model-ema-decay 0.9"
    )
    assert work(line) == 0
    line = f"export --run {run} --out {model} --onnx --torch-export --register drawn"
    assert work(f"{line} --which last --alias champion") == 0
    (record,) = RecordStore(Folder(str(run))).all()
    return Deployed(data, run, model, record, f"sqlite:///{folder}/runs/mlflow.db")


@pytest.fixture(scope="module")
def pictures(deployed: Deployed) -> Tensor:
    """All test images, by the transform that is loaded with the model."""
    _, transform = psvit_ray.load(deployed.model)
    return torch.stack([transform(Image.open(path)) for path in test_images(deployed)])


def test_images(deployed: Deployed) -> list[Path]:
    return sorted(deployed.data.glob("test/*/*.png"))


test_images.__test__ = False  # type: ignore[attr-defined]


def labels(deployed: Deployed) -> np.ndarray:
    return np.repeat(np.arange(10), 10)


def logits_of_the_network(deployed: Deployed, x: Tensor) -> Tensor:
    model, _ = psvit_ray.load(deployed.model)
    return model(x)


def logits_of_onnx(deployed: Deployed, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(deployed.model / ONNX)
    return torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def logits_of_torch_export(deployed: Deployed, x: Tensor) -> Tensor:
    return torch.export.load(deployed.model / TORCH_EXPORT).module()(x)


def logits_of_the_registered(deployed: Deployed, x: Tensor) -> Tensor:
    """As MLflow serves it: of the files themselves."""
    asked, said = deployed.run / "asked.json", deployed.run / "said.json"
    rows = [[base64.b64encode(path.read_bytes()).decode()] for path in test_images(deployed)]
    table = {"columns": ["image"], "data": rows}
    asked.write_text(json.dumps({"dataframe_split": table, "params": {"logits": True}}))
    command = f"models predict -m models:/drawn@champion --env-manager local -t json -i {asked}"
    mlflow(deployed, f"{command} -o {said}")
    answers = json.loads(said.read_text())["predictions"]
    names = model_folder.load_model_folder(deployed.model).class_names
    return torch.tensor([[answer["logits"][name] for name in names] for answer in answers])


def mlflow(deployed: Deployed, command: str) -> None:
    environment = {
        "MLFLOW_TRACKING_URI": deployed.tracking_uri,
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    mlflow = Path(sys.executable).parent / "mlflow"
    done = subprocess.run(
        [mlflow, *command.split()], env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.processes
@pytest.mark.parametrize(
    "logits_of",
    [logits_of_the_network, logits_of_onnx, logits_of_torch_export, logits_of_the_registered],
)
def test_every_form_gives_the_logits_and_the_top1_of_the_evaluation(
    deployed: Deployed,
    pictures: Tensor,
    tmp_path: Path,
    logits_of: Callable[[Deployed, Tensor], Tensor],
) -> None:
    with torch.inference_mode():
        logits = logits_of(deployed, pictures)
        expected = logits_of_the_network(deployed, pictures)
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    if logits_of in (logits_of_the_network, logits_of_torch_export):
        assert torch.equal(logits, expected)
    right = logits.argmax(dim=1).numpy() == labels(deployed)
    assert work(f"evaluate --model {deployed.model} --data {deployed.data} --out {tmp_path}/e") == 0
    found = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert (found["split"], found["images"], found["correct"]) == ("test", 100, right.sum())
    # The training scored the same images with the same weights.
    assert deployed.record.test_top1 == pytest.approx(found["top1"])
    assert [one == "1" for one in deployed.record.test_correct] == right.tolist()
    assert len(set(logits.argmax(dim=1).tolist())) > 3  # it has learned to tell something apart


@pytest.mark.processes
def test_a_registered_model_brings_the_package_that_answers(deployed: Deployed) -> None:
    paths = [str(path) for path in test_images(deployed)[:7]]
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import mlflow, pandas\n"
        f"mlflow.set_tracking_uri({deployed.tracking_uri!r})\n"
        "model = mlflow.pyfunc.load_model('models:/drawn/1')\n"
        f"print(len(model.predict(pandas.DataFrame({{'image': {paths}}}))))\n"
        "import psvit_ray; print('code/psvit_ray/__init__.py' in psvit_ray.__file__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "7\nTrue\n", done.stderr
    artifacts = deployed.run.parent / "mlartifacts"
    (beside,) = artifacts.glob("models/*/artifacts/data/model")
    assert (
        model_folder.load_model_folder(beside).config
        == model_folder.load_model_folder(deployed.model).config
    )


def test_the_holdout_is_the_one_of_the_training(deployed: Deployed, tmp_path: Path) -> None:
    line = f"evaluate --model {deployed.model} --data {deployed.data} --split holdout"
    assert work(f"{line} --out {tmp_path}/e --batch-size 7") == 0
    found = json.loads((tmp_path / "e" / "metrics.json").read_text())
    last = deployed.record.curve[-1].metrics
    splits = split_file.read_split_file(Folder(str(deployed.run)))
    assert splits is not None
    assert found["images"] == len(splits.indices("holdout"))
    assert found["top1"] == pytest.approx(last["holdout/top1"])
    assert found["loss"] == pytest.approx(last["holdout/loss"], rel=1e-6)


def test_the_best_checkpoint_is_exported_by_default(deployed: Deployed, tmp_path: Path) -> None:
    assert work(f"export --run {deployed.run} --out {tmp_path}/m") == 0
    facts = model_folder.load_model_folder(tmp_path / "m").config.training
    curve = deployed.record.curve
    assert facts.holdout_top1 == max(point.metrics["holdout/top1"] for point in curve)
    assert (facts.run_id, facts.name) == (deployed.record.run_id, "a")
    last = model_folder.load_model_folder(deployed.model).config.training
    assert (last.epoch, last.test_top1) == (8, deployed.record.test_top1)


# Answers


def answered(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_are_those_of_the_evaluation(
    deployed: Deployed, pictures: Tensor, tmp_path: Path
) -> None:
    model, _ = psvit_ray.load(deployed.model)
    with torch.inference_mode():
        probabilities = model(pictures).double().softmax(dim=1)
    out = tmp_path / "answers.csv"
    assert work(f"predict --model {deployed.model} --data {deployed.data}/test --out {out}") == 0
    rows = answered(out)
    assert [row["path"] for row in rows] == [str(path) for path in test_images(deployed)]
    names = sorted(CLASS_NAMES[:10])
    for row, expected in zip(rows, probabilities, strict=True):
        best = expected.argsort(descending=True)[:5].tolist()
        said = [row["label"], *(row[f"label_{k}"] for k in range(2, 6))]
        assert said == [names[number] for number in best]
        assert float(row["probability"]) == pytest.approx(expected.max().item(), rel=1e-5)
        assert row["error"] == ""


def test_actors_answer_as_this_process_does(deployed: Deployed, tmp_path: Path) -> None:
    line = f"predict --model {deployed.model} --data {deployed.data} --top-k 2"
    assert work(f"{line} --out {tmp_path}/here.csv --workers 0") == 0
    assert work(f"{line} --out {tmp_path}/there.csv --workers 2") == 0
    here, there = answered(tmp_path / "here.csv"), answered(tmp_path / "there.csv")
    assert len(here) == 400
    assert_same_answers(here, there)


def assert_same_answers(ours: list[dict[str, str]], theirs: list[dict[str, str]]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys()
        for name in mine:
            if name.startswith("probability") and mine[name]:
                assert float(mine[name]) == pytest.approx(float(other[name]), rel=1e-4)
            else:
                assert mine[name] == other[name]


def test_what_an_actor_that_was_killed_had_is_answered(deployed: Deployed) -> None:
    table = read_data(str(deployed.data)).train
    exported = model_folder.load_model_folder(deployed.model)
    found = []
    for number, several in enumerate(
        inference_actors.predict_tables(
            exported,
            [table.take(np.arange(start, start + 20)) for start in range(0, 300, 20)],
            workers=2,
            resources_per_worker={"CPU": 1},
            batch_size=20,
            top_k=1,
            decoder="pil",
        )
    ):
        found += several
        if number == 2:
            alive: Any = list_actors(
                ray.get_runtime_context().gcs_address,
                filters=[("class_name", "=", "InferenceActor"), ("state", "=", "ALIVE")],
            )
            os.kill(alive[0].pid, signal.SIGKILL)
    here = score_batches(exported.model, table, exported.preprocessing, batch_size=20)
    expected = list(to_predictions(here, 1))
    assert [answer.classes for answer in found] == [answer.classes for answer in expected]
