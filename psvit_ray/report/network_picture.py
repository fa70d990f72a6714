"""Picture of an architecture: its token grids, poolings and shared attention maps."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Polygon, Rectangle

from psvit_ray.arch.cost import cost
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.report.macs_unit import MacsUnit

LEADER, FOLLOWER, POOL, GREY = "#0072B2", "#A9D3EC", "#D55E00", "#555555"
LEGEND = {
    LEADER: "layer that computes an attention map",
    FOLLOWER: "layer that reuses it",
    POOL: "token pooling",
}
LAYER, GAP, BETWEEN = 0.62, 0.16, 0.5  # width of a layer; space between layers, and between groups
TALLEST = 3.6


def picture(name: str, spec: ArchSpec) -> Figure:
    """The layers of `spec` from left to right; a layer is as high as the side of its token grid.

    Layers under one bracket share an attention map, which the dark one of them computes. `name` is
    what the title calls the network.
    """
    figure = Figure(figsize=(9.2, 3.9), dpi=150)
    axes = figure.add_axes((0.01, 0.08, 0.98, 0.82))
    sides = [round(tokens**0.5, 1) for tokens in spec.num_tokens]
    x = _image(axes, spec)
    before = TALLEST
    for number, (stage, tokens) in enumerate(zip(spec.stages, spec.num_tokens, strict=True)):
        height = max(TALLEST * sides[number] / sides[0], 0.9)
        if number:
            x = _pool(axes, x, before, height)
        start, before = x, height
        for size in stage.share_groups:
            x = _group(axes, x, size, height)
        grid = f"{sides[number]:g} x {sides[number]:g}" if spec.pooling == "2d" else f"{tokens}"
        text = f"stage {number + 1}\n{grid} tokens\n{stage.embed_dim} channels"
        _caption(axes, (start + x - BETWEEN) / 2, text)
    axes.annotate("", (x + 0.45, 0), (x - BETWEEN + 0.1, 0), arrowprops={"arrowstyle": "->"})
    axes.text(x + 0.5, 0, f"{spec.num_classes:,}\nlogits", va="center", fontsize=9, color=GREY)
    handles = [Rectangle((0, 0), 1, 1, facecolor=colour) for colour in LEGEND]
    figure.legend(handles, LEGEND.values(), loc="lower left", ncols=3, frameon=False, fontsize=9)
    costs = cost(spec)
    unit = MacsUnit.of([costs])
    title = f"{name}, pattern {spec.pattern}: {unit.value(costs):.3g} {unit.name}"
    figure.text(0.02, 0.93, f"{title}, {costs.params / 1e6:.3g} M parameters", fontsize=11)
    axes.set(xlim=(-2.5, x + 1.6), ylim=(-TALLEST / 2 - 1.9, TALLEST / 2 + 0.8), aspect="equal")
    axes.axis("off")
    return figure


def _caption(axes: Axes, x: float, text: str) -> None:
    y = -TALLEST / 2 - 0.5
    axes.text(x, y, text, ha="center", va="top", fontsize=9, color=GREY)


def _image(axes: Axes, spec: ArchSpec) -> float:
    """The image, cut into its patches. Returns where the layers begin."""
    side, left = 1.3, -2.1
    axes.add_patch(Rectangle((left, -side / 2), side, side, facecolor="#F2F2F2", edgecolor=GREY))
    for line in range(1, spec.grid_size):
        at = side * line / spec.grid_size
        axes.plot([left + at] * 2, [-side / 2, side / 2], color=GREY, linewidth=0.4)
        axes.plot([left, left + side], [at - side / 2] * 2, color=GREY, linewidth=0.4)
    text = f"image\n{spec.img_size} x {spec.img_size}\npatches of {spec.patch_size}"
    _caption(axes, left + side / 2, text)
    axes.annotate("", (-0.1, 0), (left + side + 0.05, 0), arrowprops={"arrowstyle": "->"})
    return 0.0


def _pool(axes: Axes, x: float, before: float, after: float) -> float:
    """A token pooling between two stages. Returns where the next stage begins."""
    left, right = x - BETWEEN + GAP, x - BETWEEN + GAP + 0.7
    corners = [(left, -before / 2), (left, before / 2), (right, after / 2), (right, -after / 2)]
    axes.add_patch(Polygon(corners, facecolor=POOL, edgecolor="none", alpha=0.75))
    return right + GAP


def _group(axes: Axes, x: float, size: int, height: float) -> float:
    """Layers under one attention map, with a bracket over them. Returns where the next begin."""
    for layer in range(size):
        box = FancyBboxPatch(
            (x + layer * (LAYER + GAP), -height / 2),
            LAYER,
            height,
            boxstyle="round,pad=0,rounding_size=0.1",
            facecolor=FOLLOWER if layer else LEADER,
            edgecolor="none",
        )
        axes.add_patch(box)
    right = x + size * (LAYER + GAP) - GAP
    top = height / 2 + 0.15
    if size > 1:
        ends = [x + LAYER / 2, right - LAYER / 2]
        axes.plot([ends[0], *ends, ends[1]], [top, top + 0.2, top + 0.2, top], color=LEADER)
    axes.text((x + right) / 2, top + 0.3, str(size), ha="center", fontsize=10, color=LEADER)
    return right + BETWEEN
