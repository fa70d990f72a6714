"""Predictions for images as a table, one row for each."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TextIO

from psvit_ray.export.inference import Prediction
from psvit_ray.text import csv_file

WriteRow = Callable[[str, Prediction], None]
"""Function that writes the row of an image: its name, and the answer to it."""


def writer(file: TextIO, suffix: str, class_names: Sequence[str], top_k: int) -> WriteRow:
    """Function that writes rows to `file`, as CSV or JSON lines by `suffix`.

    CSV has path, label, probability, the next likeliest classes in columns `label_2`,
    `probability_2` and so on, error. JSON lines have the same names, and all of the likeliest
    classes in `top`. An image that cannot be read has an error and no label.
    """
    if suffix == ".csv":
        return _csv(file, class_names, top_k)
    return _json_lines(file, class_names)


def _csv(file: TextIO, class_names: Sequence[str], top_k: int) -> WriteRow:
    numbered = [f"{name}_{k}" for k in range(2, top_k + 1) for name in ("label", "probability")]
    file.write(csv_file.csv_line(["path", "label", "probability", *numbered, "error"]))

    def write(path: str, answer: Prediction) -> None:
        cells = [cell for pair in _top_classes(answer, class_names) for cell in pair]
        file.write(csv_file.csv_line([path, *(cells or [""] * (2 * top_k)), answer.reason]))

    return write


def _json_lines(file: TextIO, class_names: Sequence[str]) -> WriteRow:
    def write(path: str, answer: Prediction) -> None:
        top = [
            {"label": label, "probability": probability}
            for label, probability in _top_classes(answer, class_names)
        ]
        first = top[0] if top else {"label": None, "probability": None}
        line = {"path": path, **first, "top": top, "error": answer.reason or None}
        file.write(json.dumps(line) + "\n")

    return write


def _top_classes(answer: Prediction, class_names: Sequence[str]) -> list[tuple[str, float]]:
    return [
        (class_names[number], float(f"{probability:.6g}"))
        for number, probability in zip(answer.classes, answer.probabilities, strict=True)
    ]
