"""Picture of how often the best candidates made each choice, beside how often all did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from psvit_ray.report.oneshot.traits import MIN_CANDIDATES, TraitChoice
from psvit_ray.report.pareto_picture import COLOURS, DEIT_COLOUR, new_figure

ROW = 0.21
"""Height of a row in inches."""
NAMES = {
    "pool_op": "pooling operator",
    "patch_size": "patch size",
    "num_stages": "number of stages",
    "embed_dim": "width (embed_dim)",
    "head_dim": "width of a head",
    "mlp_ratio": "MLP ratio",
    "tokens": "tokens in each layer",
}
SHARES = "takes the map of the layer before"

LabelledRows = list[tuple[str, TraitChoice | None]]
"""Rows of a label and its choice; None for a heading of a group."""


def picture(choices: Sequence[TraitChoice], *, title: str) -> Figure:
    """Picture with a column for the whole spec and one for each stage."""
    columns = {name: list(_rows(list(group))) for name, group in groupby(choices, _stage)}
    if not columns:
        figure = new_figure(8, 3)
        message = f"no comparison of fewer than {MIN_CANDIDATES} candidates, or of equal ones"
        figure.text(0.5, 0.5, message, ha="center")
    else:
        max_rows = max(len(rows) for rows in columns.values())
        figure = new_figure(0.6 + 3.6 * len(columns), 1.5 + ROW * max_rows)
        panels = figure.subplots(1, len(columns), squeeze=False)[0]
        for axes, (name, rows) in zip(panels, columns.items(), strict=True):
            _draw(axes, rows, max_rows)
            axes.set_title(name, loc="left", fontsize=10)
        figure.legend(
            *panels[0].get_legend_handles_labels(),
            loc="outside lower left",
            ncols=2 if len(columns) < 3 else 4,
            frameon=False,
            fontsize=8.5,
        )
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    return figure


def _stage(choice: TraitChoice) -> str:
    stage, dot, _ = choice.trait.rpartition(".")
    return f"stage {stage.removeprefix('stage')}" if dot else "whole spec"


def _rows(choices: Sequence[TraitChoice]) -> Iterator[tuple[str, TraitChoice | None]]:
    """Rows of a column. A layer that shares or does not has one row, which says both."""
    for heading, group in groupby(choices, _heading):
        yield heading, None
        for choice in group:
            if heading != SHARES:
                yield (
                    choice.choice if isinstance(choice.choice, str) else f"{choice.choice:g}",
                    choice,
                )
            elif choice.choice:
                yield f"layer {choice.trait.rpartition('share')[2]}", choice


def _heading(choice: TraitChoice) -> str:
    name = choice.trait.rpartition(".")[2]
    return SHARES if name.startswith("share") else NAMES.get(name, name)


def _draw(axes: Axes, rows: LabelledRows, max_rows: int) -> None:
    labels = [label if choice else "" for label, choice in rows]
    for y, (label, choice) in enumerate(rows):
        if choice is None:
            axes.text(0, y + 0.2, label, va="center", fontsize=8, fontweight="bold")
    axes.text(104, 0.2, "lift", va="center", fontsize=7.5)
    shown = [(y, choice) for y, (_, choice) in enumerate(rows) if choice]
    axes.barh(
        [y for y, _ in shown],
        [100 * choice.share for _, choice in shown],
        height=0.75,
        color="lightgrey",
        label="of all candidates",
    )
    for sign, colour, legend in (
        (1, COLOURS[0], "of the best: more often"),
        (-1, DEIT_COLOUR, "of the best: less often"),
        (0, "dimgrey", "of the best: as often, within the 95 % interval"),
    ):
        with_sign = [(y, choice) for y, choice in shown if _difference_sign(choice) == sign]
        ends = [choice.interval or (0.0, 0.0) for _, choice in with_sign]
        axes.hlines(
            [y for y, _ in with_sign],
            [100 * low for low, _ in ends],
            [100 * high for _, high in ends],
            color=colour,
            linewidth=1.3,
        )
        axes.scatter(
            [100 * (choice.top_share or 0.0) for _, choice in with_sign],
            [y for y, _ in with_sign],
            s=20,
            color=colour,
            label=legend,
            zorder=3,
            clip_on=False,
        )
        for y, choice in with_sign:
            axes.text(104, y, f"x {choice.lift:.2f}", va="center", fontsize=7.5, color=colour)
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(max_rows - 0.4, -0.8)
    axes.set_xlim(0, 100)
    axes.set_xlabel("candidates that chose it, %", fontsize=8.5)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _difference_sign(choice: TraitChoice) -> int | None:
    """1 where the best candidates made the choice more often than all did, -1 where less, 0 where
    the difference may be chance; None where the trait applies to none of them."""
    if choice.interval is None:
        return None
    low, high = choice.interval
    return int(choice.share < low) - int(choice.share > high)
