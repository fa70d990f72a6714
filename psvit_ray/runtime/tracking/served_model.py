"""A registered model as MLflow loads and serves it: MLflow calls `_load_pyfunc`, then `predict`.

It travels with the model, with the rest of this package.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mlflow.exceptions import MlflowException

from psvit_ray.export.model_folder import load_model_folder
from psvit_ray.export.picture_classifier import PictureClassifier

SERVED = "__pyfunc_model_path__"
"""Environment variable of MLflow's servers, in which no file is read by its path."""


class ServedModel:
    """An exported model for MLflow, whose server shows the message of an MlflowException only."""

    def __init__(self, folder: str) -> None:
        served = SERVED in os.environ
        self._classifier = PictureClassifier(load_model_folder(folder), read_files=not served)

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Any:
        """As `PictureClassifier.predict`; `params` may have `logits`. Raises MlflowException for
        what is not a picture."""
        try:
            return self._classifier.predict(model_input, logits=bool((params or {}).get("logits")))
        except ValueError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None


def _load_pyfunc(folder: str) -> ServedModel:
    return ServedModel(folder)
