"""Exported models in MLflow's registry, with the code that serves them.

Beside `tracking`, the only importer of MLflow.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from importlib import metadata, resources
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import AnyType
from PIL import Image

from psvit_ray.export.model_folder import ExportedModel
from psvit_ray.export.picture_classifier import COLUMN
from psvit_ray.runtime.tracking import moved_store, served_model
from psvit_ray.runtime.tracking import store_uri as stores
from psvit_ray.runtime.tracking.evaluation_run import held_run
from psvit_ray.storage.file_names import check_file_name
from psvit_ray.text.secrets import without_secrets

REQUIREMENTS = (
    "torch", "torchvision", "timm", "numpy", "pandas", "pillow", "pydantic", "pyarrow",
    "safetensors", "pyyaml", "tyro",
)  # fmt: skip
"""Packages that serving imports, of the versions here."""
LOGGED_MODEL = "model"
"""Name of an exported model within its run, for which MLflow takes fewer characters than for a name
in the registry."""


def check(tracking_uri: str, run_id: str, name: str, alias: str) -> None:
    """Raises ValueError for names that MLflow does not take, and for a store that does not hold
    the run. Writes nothing. `alias` may be empty."""
    check_name(name, alias)
    stores.check(tracking_uri)
    if not run_id:
        raise ValueError("register needs the run in MLflow, where it is not: --resume writes it")
    if not stores.exists(tracking_uri):
        raise ValueError(
            f"register needs the store of the run, got {without_secrets(tracking_uri)}, which does "
            "not exist: give --tracking-uri"
        )
    held_run(tracking_uri, run_id)


def check_name(name: str, alias: str = "") -> None:
    """Raises ValueError for names that MLflow does not take."""
    check_file_name(name, "register")
    if not name.strip(" .") or re.search("[/:?]", name):  # `?` would end the name in models:/NAME
        raise ValueError(f"register must be a name without /, : and ?, got {name!r}")
    if alias and (
        not re.fullmatch(r"[\w-]{1,255}", alias) or re.fullmatch(r"(?i)latest|v\d+", alias)
    ):
        raise ValueError(
            "alias must be of letters, digits, _ and -, and not latest or a version such as v1, "
            f"got {alias!r}"
        )


def register(
    exported: ExportedModel, folder: Path, *, tracking_uri: str, name: str, alias: str
) -> str:
    """Uploads the model as `log_model` and makes it a version of `name`, which it returns; with
    `alias` that name then means this version. Raises ValueError where MLflow refuses."""
    logged = log_model(exported, folder, tracking_uri=tracking_uri)
    return add_version(logged, tracking_uri=tracking_uri, name=name, alias=alias)


def logged_model(tracking_uri: str, run_id: str) -> LoggedModel | None:
    """The model that a run has, if it has one. Raises ValueError where MLflow does not say."""
    with _as_value_error(tracking_uri):
        client = MlflowClient(tracking_uri)
        models = client.search_logged_models(
            [held_run(tracking_uri, run_id).info.experiment_id], f"source_run_id = '{run_id}'"
        )
    return next((model for model in models if model.status == LoggedModelStatus.READY), None)


def is_registered(tracking_uri: str, logged: LoggedModel, name: str) -> bool:
    """Whether a model is a version of `name`."""
    with _as_value_error(tracking_uri):
        versions = MlflowClient(tracking_uri).search_model_versions(
            f"run_id = '{logged.source_run_id}'"
        )
    return any(version.name == name for version in versions)


def log_model(exported: ExportedModel, folder: Path, *, tracking_uri: str) -> LoggedModel:
    """Uploads the model as one of its run.

    What is served takes pictures and answers with labels and probabilities
    (`served_model`); `data/model/` in it is the exported folder. Raises ValueError where
    MLflow refuses.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    moved_store.adopt(tracking_uri)
    config = exported.config
    run = held_run(tracking_uri, config.training.run_id)
    tags = {
        "psvit.spec_id": config.spec.spec_id,
        "psvit.pattern": config.spec.pattern,
        "psvit.data_digest": config.training.data_digest,
    }
    with _as_value_error(tracking_uri), tempfile.TemporaryDirectory() as work:
        client = MlflowClient(tracking_uri)
        logged = client.create_logged_model(
            run.info.experiment_id, name=LOGGED_MODEL, source_run_id=run.info.run_id, tags=tags
        )
        status = LoggedModelStatus.FAILED
        try:
            model = Model(
                artifact_path=logged.artifact_location,
                run_id=run.info.run_id,
                model_uuid=logged.model_id,
                model_id=logged.model_id,
            )
            served = Path(work, "model")
            _save(exported, folder, served, model)
            client.log_model_artifacts(logged.model_id, str(served))
            status = LoggedModelStatus.READY
        finally:
            client.finalize_logged_model(logged.model_id, status)
        return client.get_logged_model(logged.model_id)


def add_version(logged: LoggedModel, *, tracking_uri: str, name: str, alias: str) -> str:
    """Makes a logged model a version of `name`, which it returns; with `alias` that name then means
    this version. Raises ValueError where MLflow refuses."""
    with _as_value_error(tracking_uri):
        client = MlflowClient(tracking_uri)
        with contextlib.suppress(MlflowException):  # it may be there; the next call says if not
            client.create_registered_model(name)
        version = client.create_model_version(
            name,
            source=logged.artifact_location,  # `models:/...` would be looked up in a global store
            run_id=logged.source_run_id,
            model_id=logged.model_id,
            tags={key: value for key, value in logged.tags.items() if key.startswith("psvit.")},
        ).version
        if alias:
            client.set_registered_model_alias(name, alias, version)
        return str(version)


def _save(exported: ExportedModel, folder: Path, path: Path, model: Model) -> None:
    """Saves the model in MLflow's form: the exported folder and this package, of which
    `served_model` answers. Nothing in it is a pickle."""
    preprocessing = exported.preprocessing
    side = preprocessing.img_size
    png = io.BytesIO()
    Image.new(preprocessing.mode, (side, side)).save(png, "PNG")
    with tempfile.TemporaryDirectory() as work:
        data = shutil.copytree(folder, Path(work, "model"))
        mlflow.pyfunc.save_model(
            str(path),
            loader_module=served_model.__name__,
            data_path=str(data),
            code_paths=[str(resources.files("psvit_ray"))],
            mlflow_model=model,
            signature=ModelSignature(
                Schema([ColSpec(AnyType(), COLUMN)]),
                Schema([ColSpec(DataType.string, "label"), ColSpec(AnyType(), "probabilities")]),
                ParamSchema([ParamSpec("logits", DataType.boolean, False)]),
            ),
            # MLflow compares names of columns with numbers, of which pandas warns but for objects.
            input_example=pd.DataFrame(
                [[base64.b64encode(png.getvalue()).decode()]],
                columns=pd.Index([COLUMN], dtype=object),
            ),
            pip_requirements=[
                # Without the build (`+cpu`), which PyPI does not have.
                f"{name}=={metadata.version(name).partition('+')[0]}"
                for name in REQUIREMENTS
            ],
        )


@contextlib.contextmanager
def _as_value_error(tracking_uri: str) -> Iterator[None]:
    try:
        yield
    except (MlflowException, OSError) as error:
        raise ValueError(
            f"register failed in {without_secrets(tracking_uri)}: {_brief(error)}"
        ) from None


def _brief(error: Exception) -> str:
    return without_secrets(str(error)).partition("\n")[0]
