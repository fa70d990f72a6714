"""Fewer epochs than a recipe has: what it counts in epochs shrinks with them, so that `--epochs 2`
needs no other flag."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

SHRINKING = (
    ("train", "warmup_epochs"),
    ("search", "grace_epochs"),
    ("oneshot", "finetune_epochs"),
)
"""Sections and fields of a recipe that count epochs of a training."""


def shortened(sections: Mapping[str, Any], epochs: str | None) -> dict[str, Any]:
    """The sections of a recipe for a training of `epochs`, the text of a flag. They stay as they
    are where the flag is missing or wrong, or asks for as many epochs as the recipe or more."""
    changed = dict(sections)
    for section, name, _, fewer in _changes(sections, epochs):
        changed[section] = {**changed[section], name: fewer}
    return changed


def shorter_note(sections: Mapping[str, Any], job: BaseModel) -> str:
    """A line that says what shrank in `job` from the sections of its recipe; empty if nothing
    did."""
    epochs = job.train.epochs  # type: ignore[attr-defined]  # of a job that trains
    shrunk = [
        f"{name} from {full:g} to {fewer:g}"
        for section, name, full, fewer in _changes(sections, str(epochs))
        if getattr(getattr(job, section, None), name, None) == fewer
    ]
    if not shrunk:
        return ""
    return f"epochs: {epochs}, of {sections['train']['epochs']} in the recipe; {', '.join(shrunk)}"


def _changes(
    sections: Mapping[str, Any], epochs: str | None
) -> Iterator[tuple[str, str, float, float]]:
    """Section, field, the recipe's number and the smaller one."""
    full = sections.get("train", {}).get("epochs")
    if not (epochs and epochs.isdecimal() and isinstance(full, int) and 0 < int(epochs) < full):
        return
    for section, name in SHRINKING:
        number = sections.get(section, {}).get(name)
        if isinstance(number, int | float) and number > 0:
            fewer = number * int(epochs) / full
            whole = name != "warmup_epochs"
            yield section, name, number, max(1, round(fewer)) if whole else float(f"{fewer:.3g}")
