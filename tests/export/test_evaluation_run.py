"""`psvit evaluate` writes to MLflow too, below the run of the training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from psvit_ray.arch.spec import ArchSpec, StageSpec
from psvit_ray.runtime.tracking.store_uri import sqlite_uri
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.engine import run_training
from psvit_ray.training.exporting import export_checkpoint, training_info
from psvit_ray.training.source import load_source
from tests.helpers.command_line import Refused, Run
from tests.helpers.drawn import drawn_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = drawn_folder(tmp_path_factory.mktemp("data"), classes=2, per_class=24, size=40)
    rare = sorted(path for path in folder.iterdir())[1]
    for path in sorted(rare.iterdir())[8:]:
        path.unlink()
    return folder


def exported(folder: Path, data: Path, run_id: str = "") -> Path:
    spec = ArchSpec(
        img_size=32,
        patch_size=8,
        num_classes=2,
        pooling="2d",
        stages=(StageSpec(embed_dim=32, num_heads=2, hidden_dim=64, share_groups=(1,)),),
    )
    train = TrainConfig(data=str(data), epochs=1, batch_size=8, lr=0.01)
    configuration = Configuration(spec=spec, train=train)
    source = load_source(configuration)
    (report,) = run_training(configuration, source)
    folder.mkdir()
    checkpoint = report.checkpoint()
    training = training_info(checkpoint, which="best", run_id=run_id)
    export_checkpoint(folder, checkpoint, training, splits=source.images)
    return folder


def test_an_evaluation_is_a_run_below_its_training(
    run: Run, refused: Refused, data: Path, tmp_path: Path
) -> None:
    store = sqlite_uri(tmp_path / "mlflow.db")
    client = MlflowClient(store)
    experiment = client.create_experiment("a", (tmp_path / "artifacts").as_uri())
    training = client.create_run(experiment)
    model = exported(tmp_path / "model", data, run_id=training.info.run_id)
    command = f"evaluate --model {model} --data {data} --split all"
    done = run(f"{command} --out o --tracking-uri {store}")
    assert (done.code, done.err) == (0, "")
    (evaluation,) = client.search_runs(
        [experiment], f"tags.mlflow.parentRunId = '{training.info.run_id}'"
    )
    assert evaluation.info.status == "FINISHED"
    assert evaluation.data.tags["psvit.role"] == "evaluation"
    written = json.loads(Path("o/metrics.json").read_text())
    for name in ("top1", "balanced_top1", "auroc", "images"):
        assert evaluation.data.metrics[name] == pytest.approx(written[name])
    assert evaluation.data.metrics["commonest_top1"] == 75.0
    low, high = written["auroc_interval"]
    metrics = evaluation.data.metrics
    assert (metrics["auroc_interval_low"], metrics["auroc_interval_high"]) == (low, high)
    assert metrics["at_threshold_recall"] == written["at_threshold"]["recall"]
    artifacts = {artifact.path for artifact in client.list_artifacts(evaluation.info.run_id)}
    assert {"metrics.json", "confusion.png", "roc.png"} <= artifacts
    missing = sqlite_uri(tmp_path / "other.db")
    assert "which does not exist" in refused(f"{command} --out p --tracking-uri {missing}")
