"""An evaluation as files: numbers, tables and pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from psvit_ray.data import quarantine
from psvit_ray.report.evaluation import mistakes_picture, roc_picture
from psvit_ray.report.evaluation.binary_curves import BinaryResult, Interval
from psvit_ray.report.evaluation.evaluation_picture import confusion_png, reliability_png
from psvit_ray.report.evaluation.metrics import LabelledPredictions, hardest, metrics, per_class
from psvit_ray.report.pareto_picture import png
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
    image_of: Callable[[int], Image.Image],
    num_hardest: int,
    curves: BinaryResult | None,
) -> None:
    """Writes an evaluation: `metrics.json`, `per_class.csv`, `confusion.csv` and `.png`,
    `mistakes.png`, `reliability.png`, `hardest.csv`, with two classes `roc.png`, and
    `quarantine.csv` where images cannot be read.

    Args:
        about: What `metrics.json` has before the numbers.
        title: Title of the pictures.
        place: Source and path of an image by its index.
        image_of: Image by its index, as the network's transform takes it.
        num_hardest: Number of images with the highest loss to list.
        curves: What `binary_result` makes of the answers.
    """
    content = {**about, **metrics(answers), **(_binary(curves) if curves else {})}
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
    (folder / "mistakes.png").write_bytes(
        png(mistakes_picture.picture(answers, image_of, f"{title}: the most frequent mistakes"))
    )
    if curves:
        (folder / "roc.png").write_bytes(png(roc_picture.picture(curves, title)))
    _write_csv(
        folder / "hardest.csv",
        ["source", "path", "label", "prediction", "probability", "label_probability", "loss"],
        _hardest(answers, place, num_hardest),
    )
    if answers.bad:
        bad = [(*place(index), reason) for index, reason in answers.bad]
        (folder / quarantine.QUARANTINE).write_bytes(quarantine.quarantine_csv(bad))


def flat_numbers(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of `metrics.json` by name: those of an object after its name and `_`, and the
    ends of an interval with `_low` and `_high`."""
    for name, value in content.items():
        if isinstance(value, dict):
            yield from flat_numbers(value, f"{prefix}{name}_")
        elif isinstance(value, list) and name.endswith("_interval"):
            yield from zip((f"{prefix}{name}_low", f"{prefix}{name}_high"), value, strict=True)
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", float(value)


def summary(answers: LabelledPredictions, curves: BinaryResult | None) -> str:
    """A few lines for a terminal. `curves` is what `binary_result` makes of the answers."""
    values = metrics(answers)
    numbers = [f"top-1 {_with_interval(values, 'top1')}"]
    if values["top5"] is not None:
        numbers.append(f"top-5 {values['top5']:.2f} %")
    if values["loss"] is not None:
        numbers += [f"loss {values['loss']:.4f}", f"ECE {100 * values['ece']:.2f} %"]
    lines = [
        f"{values['correct']:,} of {values['images']:,} right: {', '.join(numbers)}",
        f"balanced top-1 {_with_interval(values, 'balanced_top1')}, "
        f"F1 {_with_interval(values, 'f1')}",
        f"always the commonest class: top-1 {values['commonest']['top1']:.2f} %, "
        f"balanced top-1 {values['commonest']['balanced_top1']:.2f} %",
    ]
    if curves:
        lines.append(_binary_line(values, curves))
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


def _with_interval(values: dict[str, Any], name: str) -> str:
    low, high = values[f"{name}_interval"]
    return f"{values[name]:.2f} % ({low:.2f} to {high:.2f})"


def _binary(curves: BinaryResult) -> dict[str, Any]:
    """What `metrics.json` has of two classes, in percent but for the threshold."""

    def percent(interval: Interval | None) -> Interval | None:
        return None if interval is None else (100 * interval[0], 100 * interval[1])

    result = curves.at_threshold
    precision = None if result.precision is None else 100 * result.precision
    return {
        "positive_class": curves.class_name,
        "average_precision": 100 * curves.precision_recall.area,
        "average_precision_interval": percent(curves.precision_recall.area_interval),
        "at_threshold": {
            "threshold": result.threshold,
            "precision": precision,
            "precision_interval": percent(result.precision_interval),
            "recall": 100 * result.recall,
            "recall_interval": percent(result.recall_interval),
        },
    }


def _binary_line(values: dict[str, Any], curves: BinaryResult) -> str:
    numbers = _binary(curves)
    of_threshold = numbers["at_threshold"]
    precision = "no precision"
    if of_threshold["precision"] is not None:
        precision = f"precision {_with_interval(of_threshold, 'precision')}"
    return (
        f"AUROC {_with_interval(values, 'auroc')}, average precision of "
        f"{printable(curves.class_name)} {_with_interval(numbers, 'average_precision')}\n"
        f"{printable(curves.class_name)} from a probability of {of_threshold['threshold']:g} on: "
        f"{precision}, recall {_with_interval(of_threshold, 'recall')}"
    )


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
