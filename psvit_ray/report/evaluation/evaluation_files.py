"""An evaluation as files: numbers, tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from psvit_ray.data import quarantine
from psvit_ray.report.evaluation.evaluation_picture import confusion_png, reliability_png
from psvit_ray.report.evaluation.metrics import LabelledPredictions, hardest, metrics, per_class
from psvit_ray.text import csv_file
from psvit_ray.text.printable import printable

MAX_RECALLS_SHOWN = 5

Locate = Callable[[int], tuple[str, str]]
"""Function from the index of an image to its source and its path or row there."""


def write(
    answers: LabelledPredictions,
    folder: Path,
    *,
    about: dict[str, Any],
    title: str,
    place: Locate,
    num_hardest: int,
) -> None:
    """Writes an evaluation: `metrics.json`, `per_class.csv`, `confusion.csv` and `.png`,
    `reliability.png`, `hardest.csv`, and `quarantine.csv` where images cannot be read.

    Args:
        about: What `metrics.json` has before the numbers.
        title: Title of the pictures.
        place: Source and path of an image by its index.
        num_hardest: Number of images with the highest loss to list.
    """
    content = {**about, **metrics(answers)}
    (folder / "metrics.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    rows = per_class(answers)
    _write_csv(folder / "per_class.csv", list(rows[0]), [list(row.values()) for row in rows])
    names = answers.class_names
    _write_csv(
        folder / "confusion.csv",
        ["label", *names, "(unreadable)"],
        [[name, *row] for name, row in zip(names, answers.confusion().tolist(), strict=True)],
    )
    (folder / "confusion.png").write_bytes(confusion_png(answers, title))
    (folder / "reliability.png").write_bytes(reliability_png(answers, title))
    _write_csv(
        folder / "hardest.csv",
        ["source", "path", "label", "prediction", "probability", "label_probability", "loss"],
        _hardest(answers, place, num_hardest),
    )
    if answers.bad:
        bad = [(*place(index), reason) for index, reason in answers.bad]
        (folder / quarantine.QUARANTINE).write_bytes(quarantine.quarantine_csv(bad))


def summary(answers: LabelledPredictions) -> str:
    """A few lines for a terminal."""
    values = metrics(answers)
    numbers = [f"top-1 {values['top1']:.2f} %"]
    if values["top5"] is not None:
        numbers.append(f"top-5 {values['top5']:.2f} %")
    if values["loss"] is not None:
        numbers += [f"loss {values['loss']:.4f}", f"ECE {100 * values['ece']:.2f} %"]
    lines = [f"{values['correct']:,} of {values['images']:,} right: {', '.join(numbers)}"]
    if values["unreadable"]:
        lines.append(
            f"{values['unreadable']:,} cannot be read and count as wrong: {quarantine.QUARANTINE} "
            "names "
            "them"
        )
    recalls = [(row["recall"], row["class"]) for row in per_class(answers) if row["support"]]
    worst = ", ".join(
        f"{printable(name)} {recall:.1f} %" for recall, name in sorted(recalls)[:MAX_RECALLS_SHOWN]
    )
    return "\n".join([*lines, f"lowest recall: {worst}"])


def _hardest(answers: LabelledPredictions, place: Locate, count: int) -> Iterable[Sequence[object]]:
    names = answers.class_names
    for index in hardest(answers, count).tolist():
        yield (
            *place(index),
            names[answers.labels[index]],
            names[answers.predictions[index]],
            f"{answers.confidences[index]:.6g}",
            f"{answers.label_probabilities[index]:.6g}",
            f"{answers.losses[index]:.6g}",
        )


def _write_csv(path: Path, heading: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.write_bytes(csv_file.csv_bytes(heading, rows))
