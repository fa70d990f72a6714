"""Picture of the similarity of layers and tokens."""

from __future__ import annotations

import io
import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from psvit_ray.arch.spec import parse_pattern
from psvit_ray.model.attention_similarity import Redundancy

MAX_LAYERS_NUMBERED = 16
"""Largest number of layers whose numbers fit into the cells."""
COLOUR = "#0072B2"
GROUP_COLOUR = "#D55E00"


def redundancy_png(measured: Redundancy, pattern: str, title: str) -> bytes:
    """Picture of the similarity of each pair of layers, with the groups of `pattern` outlined, and
    beside it that of the tokens of each layer, as PNG. Layers of different grids have no
    similarity: grey."""
    similarity = np.array(measured.similarity)
    depth = len(similarity)
    side = min(3.2 + 0.4 * depth, 11)
    figure = Figure(figsize=(side + 3.2, side), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes, beside = figure.subplots(1, 2, width_ratios=(side, 2.2), sharey=True)
    axes.set_facecolor("0.9")
    edges = np.arange(depth + 1) + 0.5
    least = min(math.floor(10 * np.nanmin(similarity)) / 10, 0.9)  # most are far from 0
    image = axes.pcolormesh(edges, edges, similarity, cmap="Blues", vmin=least, vmax=1)
    axes.set_aspect("equal")
    if depth <= MAX_LAYERS_NUMBERED:
        _number_cells(axes, similarity, white_from=(least + 1.2) / 2)
    first = 0.5
    for size in (size for groups in parse_pattern(pattern) for size in groups):
        if size > 1:
            outline = Rectangle(
                (first, first), size, size, fill=False, edgecolor=GROUP_COLOUR, linewidth=2.5
            )
            axes.add_patch(outline)
        first += size
    figure.colorbar(image, ax=axes, label="similarity of attention maps", fraction=0.05, pad=0.01)
    axes.set_ylim(depth + 0.5, 0.5)
    step = math.ceil(depth / MAX_LAYERS_NUMBERED)
    axes.set_xticks(range(1, depth + 1, step))
    axes.set_yticks(range(1, depth + 1, step))
    axes.set_xlabel("layer")
    axes.set_ylabel("layer")
    axes.set_title(f"{title}\nsharing proposed: {pattern}", loc="left", fontsize=11)
    beside.barh(range(1, depth + 1), measured.token_similarity, color=COLOUR, height=0.8)
    beside.set_xlim(min(0.0, *measured.token_similarity), 1)
    beside.set_xlabel("similarity of tokens")
    beside.spines[["top", "right"]].set_visible(False)
    image_file = io.BytesIO()
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a dollar in the name of a model
    figure.savefig(image_file, format="png")
    return image_file.getvalue()


def _number_cells(axes: Axes, similarity: np.ndarray, white_from: float) -> None:
    for (row, column), value in np.ndenumerate(similarity):
        if not math.isnan(value):
            colour = "white" if value > white_from else "black"
            label = f"{value:.2f}".lstrip("0")
            axes.text(
                column + 1, row + 1, label, ha="center", va="center", color=colour, fontsize=7
            )
