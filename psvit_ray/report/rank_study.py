"""How well the weights of supernets rank architectures, as a table, a file and a picture."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from psvit_ray.arch.cost import count_macs, count_params
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data.storage import Folder
from psvit_ray.report.ranks import agreement, tau
from psvit_ray.report.table import aligned
from psvit_ray.search.record import Record
from psvit_ray.search.scores import Score

MOST_SPLITS = 35  # of the seeds in two halves: all there are of up to eight


def write(
    specs: Sequence[ArchSpec],
    supernets: Sequence[Sequence[Score]],
    records: Sequence[Record],
    folder: Folder,
) -> str:
    """`ranks.json` and `ranks.png` in the folder; returns the table for the terminal. Only
    architectures count that were trained in full with every seed."""
    found: dict[ArchSpec, list[float]] = {}
    for record in sorted(records, key=lambda one: one.configuration.train.seed):
        if record.ranks:
            found.setdefault(record.configuration.spec, []).append(record.top1 or 0.0)
    seeds = max(map(len, found.values()), default=0)
    whole = [spec for spec in specs if len(found.get(spec, ())) == seeds]
    if len(whole) < 3:
        return "fewer than three architectures are trained with every seed: go on with --resume"
    scratch = np.array([found[spec] for spec in whole])  # (specs, seeds)
    truth = scratch.mean(axis=1)
    by_spec = [{score.spec: score for score in scores} for scores in supernets]
    top1 = np.array([[scores[spec].top1 for scores in by_spec] for spec in whole])
    loss = np.array([[scores[spec].loss for scores in by_spec] for spec in whole])
    columns = {
        **{f"supernet {i}, top-1": top1[:, i] for i in range(top1.shape[1])},
        "all supernets, top-1": top1.mean(axis=1),
        **{f"supernet {i}, loss": -loss[:, i] for i in range(loss.shape[1])},
        "all supernets, loss": -loss.mean(axis=1),
        "one scratch seed": scratch[:, 0],
        "MACs": np.array([count_macs(spec) for spec in whole]),
        "parameters": np.array([count_params(spec) for spec in whole]),
    }
    ceiling = between_halves(scratch)
    lines = [["ranked by", "tau", "rho", "best quarter"]]
    written: dict[str, object] = {}
    for name, scores in columns.items():
        # A seed that is part of the truth would be compared with itself.
        against = scratch[:, 1:].mean(axis=1) if name == "one scratch seed" else truth
        try:
            agreed = agreement(scores, against)
        except ValueError:  # all alike
            lines.append([name, "-", "-", "-"])
            continue
        written[name] = agreed.model_dump()
        lines.append([name, str(agreed.tau), str(agreed.rho), str(agreed.top)])
    lines.append(["half of the seeds, by the other", f"{ceiling:.2f}", "", ""])
    between, within = truth.std(ddof=1), float(np.sqrt(scratch.var(axis=1, ddof=1).mean()))
    content = {
        "n": len(whole),
        "seeds": seeds,
        "ceiling": ceiling,
        "deviation_between": between,
        "deviation_within": within,
        "agreement": written,
        "architectures": [
            {
                "pattern": spec.pattern,
                "spec": spec.model_dump(mode="json"),
                "scratch": each.tolist(),
            }
            | {"supernet_top1": a.tolist(), "supernet_loss": b.tolist()}
            for spec, each, a, b in zip(whole, scratch, top1, loss, strict=True)
        ],
    }
    folder.write("ranks.json", json.dumps(content, indent=1).encode())
    folder.write("ranks.png", _picture(truth, scratch, top1, whole))
    return (
        f"{len(whole)} architectures, {seeds} seeds each: mean {truth.mean():.2f} % top-1; "
        f"deviation between architectures {between:.2f}, between seeds {within:.2f} points\n"
        f"95 % intervals are over architectures\n\n{aligned(lines)}\n\n{folder}/ranks.png"
    )


def between_halves(scratch: np.ndarray) -> float:
    """Mean tau between the means of one half of the seeds and of the other, over the ways to halve
    them."""
    seeds = range(scratch.shape[1])
    taus = []
    for half in itertools.islice(itertools.combinations(seeds, len(seeds) // 2), MOST_SPLITS):
        rest = [seed for seed in seeds if seed not in half]
        taus.append(tau(scratch[:, half].mean(axis=1), scratch[:, rest].mean(axis=1)))
    return float(np.mean(taus))


def _picture(
    truth: np.ndarray, scratch: np.ndarray, top1: np.ndarray, specs: Sequence[ArchSpec]
) -> bytes:
    figure = Figure(figsize=(7, 5.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    cost = np.log10([count_macs(spec) for spec in specs])
    axes.errorbar(
        top1.mean(axis=1),
        truth,
        xerr=top1.std(axis=1, ddof=1) if top1.shape[1] > 1 else None,
        yerr=scratch.std(axis=1, ddof=1),
        fmt="none",
        ecolor="0.75",
        linewidth=0.8,
    )
    dots = axes.scatter(top1.mean(axis=1), truth, c=cost, cmap="viridis", s=40, zorder=3)
    figure.colorbar(dots, label="MACs, power of 10")
    axes.set_xlabel("hold-out top-1 with a supernet's weights, %")
    axes.set_ylabel("hold-out top-1 trained from scratch, %")
    axes.set_title(
        f"{len(specs)} architectures: mean and deviation over {top1.shape[1]} supernets and "
        f"{scratch.shape[1]} seeds",
        loc="left",
        fontsize=10,
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()
