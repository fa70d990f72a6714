"""A store of MLflow with all its tables, which takes seconds to make."""

from __future__ import annotations

import functools
import logging
import tempfile
from pathlib import Path

from mlflow import MlflowClient


@functools.cache
def _empty_database() -> bytes:
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # as every session does
    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        return Path(folder, "mlflow.db").read_bytes()


def put_store(storage: Path, name: str = "mlflow.db") -> None:
    """Puts an empty store where a run would make one, if there is none."""
    storage.mkdir(exist_ok=True)
    if not (storage / name).exists():
        (storage / name).write_bytes(_empty_database())
