"""Draws the rooms of the package, and four walks through them, for the page on architecture.

python docs/draw_walks.py docs/images
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

Step = tuple[str, str]
"""A file of the package, and what happens there."""

WALKS: dict[str, list[Step]] = {
    "image": [
        ("data/sources/load_data.py", "opens the data that\na name tells"),
        ("data/sources/image_folder.py", "files in class folders\nto tables"),
        ("data/splits/split_folders.py", "which folders are splits"),
        ("data/tables.py", "images and labels of a split\nby position"),
        ("data/sources/image_source.py", "classes; tables for training,\nhold-out and test"),
        ("data/splits/splits.py", "which images are held out,\nby a hash of their names"),
        ("data/splits/split_file.py", "the list of all images, and\nits digest"),
        ("runtime/train/worker.py", "each Ray Train worker\nopens the data"),
        ("training/engine.py", "a generator of reports"),
        ("training/steps.py", "batch on the device, Mixup:\n(B, C, S, S)"),
        ("data/loading/loader.py", "which images a step sees, by\nseed, epoch and step"),
        ("data/images/file_bytes.py", "bytes of the file"),
        ("data/images/limits.py", "refuses what would fill\nthe memory"),
        ("data/images/decode.py", "bytes to a picture, or to\na row of quarantine.csv"),
        ("data/loading/transforms.py", "crop, augmentation:\n(C, S, S)"),
        ("model/psvit.py", "patches, stages and poolings:\n(B, N, C) to (B, num_classes)"),
        ("model/layers.py", "a group of layers shares\none attention map"),
    ],
    "spec": [
        ("commands/train.py", "psvit train"),
        ("commands/command_line.py", "--arch and the recipe"),
        ("arch/parts.py", "a pattern to share groups"),
        ("arch/spec.py", "ArchSpec: checked when made,\nspec_id is its hash"),
        ("training/config.py", "Configuration: the spec and\nhow it is trained"),
        ("runtime/train/trainer.py", "the task of its workers,\nas primitives"),
        ("runtime/train/worker.py", "each Ray Train worker reads it\nfrom primitives"),
        ("training/engine.py", "a generator of reports"),
        ("training/state.py", "the model, optimizer and\nschedule of it"),
        ("model/psvit.py", "PSViT(spec)"),
        ("training/checkpoint.py", "written with the weights"),
        ("commands/export.py", "psvit export reads\nthe checkpoint"),
        ("training/exporting.py", "what an export tells\nof the training"),
        ("export/config.py", "config.json of the folder"),
        ("export/model_folder.py", "the exported folder; load()\ngives the same ArchSpec"),
    ],
    "metric": [
        ("training/evaluation.py", "each worker sums over its\nhold-out images in float64"),
        ("training/distributed.py", "one all-reduce"),
        ("export/measures.py", "top-1 and the other measures,\nfrom the sums"),
        ("training/engine.py", "Report of the epoch,\nequal on every rank"),
        ("training/results.py", "EpochResult, as Ray carries it"),
        ("runtime/train/worker.py", "ray.train.report, on\nevery rank"),
        ("runtime/train/callbacks.py", "Ray Train's controller\nwrites the record"),
        ("search/record.py", "record/KEY.json, replaced\nas a whole"),
        ("runtime/train/trainer.py", "the driver sees the record\ngrow"),
        ("runtime/tracking/mlflow_tracker.py", "a queue and one thread\nwrite it to MLflow"),
    ],
    "trial": [
        ("search/proposals.py", "asks Optuna; refuses what is\nover budget or known"),
        ("search/candidates.py", "what may be proposed"),
        ("search/tpe.py", "TPE: better scores, fewer MACs"),
        ("arch/space.py", "parameters to an ArchSpec"),
        ("arch/choices.py", "the choices of a stage"),
        ("arch/cost.py", "MACs and parameters"),
        ("runtime/tune/tuner.py", "hands it to Ray Tune\nas a trial"),
        ("runtime/tune/recorder.py", "the only writer of the\nsearch's records"),
        ("search/record.py", "record/KEY.json"),
        ("runtime/train/worker.py", "the task of a run,\nas primitives"),
        ("runtime/tune/trial.py", "trains it, in its process or\nwith Ray Train workers"),
        ("training/engine.py", "a generator of reports"),
        ("training/results.py", "EpochResult, as Ray carries it"),
        ("runtime/tune/asha.py", "stops the weak early"),
        ("commands/strategies.py", "the search has ended"),
        ("report/leaderboard.py", "tables and best.yaml, from\nthe records"),
        ("search/rows.py", "columns and files"),
    ],
}
"""Every file on the way: those with a function that takes the thing, or what holds it, and hands it
on. Beside these are `text`, `storage`, and values that are read on the way."""
ROOMS = [
    [("commands", "psvit tune, train, ...: parse,\none call, print")],
    [
        ("report", "tables and pictures,\nfrom the record"),
        ("runtime", "where a run happens: the only\nroom with Ray and MLflow"),
    ],
    [("search", "which configurations to try,\nwhat came of them")],
    [("training", "one run, plain PyTorch:\na generator of reports")],
    [("export", "a trained network for others:\nfolder, ONNX, model card")],
    [
        ("data", "images and labels,\nto batches"),
        ("model", "the network, in timm's words"),
    ],
    [
        ("storage", "one door to disks\nand object stores"),
        ("arch", "what a PSViT is, as a value:\nspec, space, cost"),
    ],
    [("text", "messages, YAML, CSV\nand what a terminal shows")],
]
"""From top to bottom: a room imports from rooms below it."""
COLOURS = {
    "commands": "#F6D5C3",
    "report": "#E9DDF2",
    "runtime": "#FBE7B5",
    "search": "#D9EBD3",
    "training": "#CFE3F5",
    "export": "#F3D3E3",
    "data": "#D3EDEA",
    "model": "#DDE0F7",
    "arch": "#E6E6E6",
    "storage": "#EFE9DC",
    "text": "#F2F2F2",
}
WIDTH, HEIGHT, ROW = 2.5, 0.85, 1.2


def walk(steps: list[Step]) -> Figure:
    """The steps from top to bottom, each in the column of its room."""
    rooms = list(dict.fromkeys(path.split("/")[0] for path, _ in steps))
    figure, axes = _canvas(len(rooms) * (WIDTH + 0.3), len(steps) * ROW + 0.6)
    for column, room in enumerate(rooms):
        x = column * (WIDTH + 0.3)
        axes.text(x + WIDTH / 2, 0.45, room, ha="center", fontsize=11, weight="bold")
        axes.plot([x + WIDTH / 2] * 2, [0.3, -len(steps) * ROW + 0.4], color="#DDDDDD", zorder=0)
    before = None
    for row, (path, what) in enumerate(steps):
        room, _, name = path.partition("/")
        x, y = rooms.index(room) * (WIDTH + 0.3), -row * ROW
        _box(axes, x, y, name, what, COLOURS[room])
        if before is not None:
            _arrow(axes, (before + WIDTH / 2, y + ROW - HEIGHT), (x + WIDTH / 2, y))
        before = x
    return figure


def rooms() -> Figure:
    """The rooms, one floor over the other."""
    figure, axes = _canvas(2 * (WIDTH + 0.3), len(ROOMS) * ROW)
    for row, floor in enumerate(ROOMS):
        for column, (name, what) in enumerate(floor):
            x = (column + (2 - len(floor)) / 2) * (WIDTH + 0.3)
            _box(axes, x, -row * ROW + 0.4, name, what, COLOURS[name])
    for row in range(len(ROOMS) - 1):
        middle, y = WIDTH + 0.15, -row * ROW + 0.4 - HEIGHT
        _arrow(axes, (middle, y), (middle, y - ROW + HEIGHT))
    return figure


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    FigureCanvasSVG(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-0.15, width - 0.15), ylim=(0.7 - height, 0.7))
    axes.axis("off")
    return figure, axes


def _box(axes: Axes, x: float, y: float, name: str, what: str, colour: str) -> None:
    """A box whose upper left corner is (x, y)."""
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(
        FancyBboxPatch(
            (x, y - HEIGHT), WIDTH, HEIGHT, boxstyle=style, facecolor=colour, edgecolor="#777777"
        )
    )
    axes.text(x + WIDTH / 2, y - 0.1, name, ha="center", va="top", fontsize=9, weight="bold")
    axes.text(x + WIDTH / 2, y - 0.33, what, ha="center", va="top", fontsize=8.5)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "#444444"})


def main() -> None:
    folder = Path(sys.argv[1])
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "walks"})
    figures = {"rooms": rooms()} | {f"walk_{name}": walk(steps) for name, steps in WALKS.items()}
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
