"""How well the weights of supernets rank architectures, as a table, a file and a picture."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from psvit_ray.arch.cost import count_macs, count_params
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.report.rank_correlation import RankAgreement, agreement, tau
from psvit_ray.report.summary import aligned
from psvit_ray.search.oneshot.scores import Score
from psvit_ray.search.record import Record
from psvit_ray.storage.folder import Folder

MIN_SPECS = 6  # of which the better half can be ranked
MAX_SPLITS = 35  # of the seeds in two halves: all there are of up to eight


@dataclass(frozen=True)
class Trainings:
    """Architectures that were trained in full with every seed. Top-1 is on the hold-out, in
    percent."""

    specs: list[ArchSpec]
    top1: np.ndarray
    """Top-1 of each training, (specs, seeds)."""
    seconds: np.ndarray
    """Seconds of each training, (specs, seeds)."""
    missing: int = 0
    """Trainings that other architectures lack, which are left out."""

    @classmethod
    def of(cls, records: Iterable[Record]) -> Trainings:
        """The trainings of these records; an architecture without a seed that another has is left
        out."""
        by_seed: dict[ArchSpec, dict[int, Record]] = {}
        for record in records:
            if record.ranks:
                configuration = record.configuration
                by_seed.setdefault(configuration.spec, {})[configuration.train.seed] = record
        seeds = sorted({seed for runs in by_seed.values() for seed in runs})
        complete = {spec: runs for spec, runs in by_seed.items() if len(runs) == len(seeds)}
        rows = [[runs[seed] for seed in seeds] for runs in complete.values()]
        shape = len(rows), len(seeds)
        return cls(
            list(complete),
            np.reshape([run.top1 for row in rows for run in row], shape),
            np.reshape([run.seconds for row in rows for run in row], shape),
            sum(len(seeds) - len(runs) for runs in by_seed.values()),
        )

    @property
    def means(self) -> np.ndarray:
        """Mean top-1 of each architecture over its seeds, (specs,)."""
        return np.asarray(self.top1.mean(axis=1))

    @property
    def between(self) -> float:
        """Deviation between the means of architectures, in points."""
        return float(self.means.std(ddof=1))

    @property
    def within(self) -> float:
        """Deviation between the seeds of one architecture, in points."""
        return float(np.sqrt(self.top1.var(axis=1, ddof=1).mean()))

    @property
    def better_half(self) -> np.ndarray:
        """Rows of the better half of the architectures by their means, the best first: among them a
        search decides in the end."""
        return np.argsort(-self.means, kind="stable")[: (len(self.specs) + 1) // 2]

    def take(self, rows: np.ndarray) -> Trainings:
        """The trainings of some of the architectures, in this order."""
        return Trainings([self.specs[row] for row in rows], self.top1[rows], self.seconds[rows])


@dataclass(frozen=True)
class RankStudyData:
    """Scores and trainings of the same architectures. Top-1 is in percent."""

    trainings: Trainings
    """Trainings from scratch, whose means are the truth."""
    top1: np.ndarray
    """Top-1 with a supernet's weights, (specs, supernets)."""
    loss: np.ndarray
    """Loss with a supernet's weights, (specs, supernets)."""

    @classmethod
    def of(cls, supernets: Sequence[Sequence[Score]], records: Sequence[Record]) -> RankStudyData:
        """The study of the architectures that were trained in full with every seed."""
        trainings = Trainings.of(records)
        by_spec = [{score.spec: score for score in scores} for scores in supernets]
        return cls(
            trainings,
            np.array([[scores[spec].top1 for scores in by_spec] for spec in trainings.specs]),
            np.array([[scores[spec].loss for scores in by_spec] for spec in trainings.specs]),
        )

    @property
    def better_half(self) -> RankStudyData:
        """The study of the better half of the architectures."""
        rows = self.trainings.better_half
        return RankStudyData(self.trainings.take(rows), self.top1[rows], self.loss[rows])

    def agreements(self) -> dict[str, RankAgreement | None]:
        """Agreement of each way to rank with the truth; None where it finds all architectures
        alike."""
        specs, scratch = self.trainings.specs, self.trainings.top1
        ways = {
            **{f"supernet {i}, top-1": column for i, column in enumerate(self.top1.T)},
            "all supernets, top-1": self.top1.mean(axis=1),
            **{f"supernet {i}, loss": -column for i, column in enumerate(self.loss.T)},
            "all supernets, loss": -self.loss.mean(axis=1),
            "one scratch seed": scratch[:, 0],
            "MACs": np.array([count_macs(spec) for spec in specs]),
            "parameters": np.array([count_params(spec) for spec in specs]),
        }
        agreements: dict[str, RankAgreement | None] = {}
        for name, scores in ways.items():
            # A seed that is part of the truth would be compared with itself.
            rest = scratch[:, 1:] if name == "one scratch seed" else scratch
            try:
                agreements[name] = agreement(scores, rest.mean(axis=1))
            except ValueError:
                agreements[name] = None
        return agreements


def write(supernets: Sequence[Sequence[Score]], records: Sequence[Record], folder: Folder) -> str:
    """Writes `ranks.json` and `ranks.png` to the folder. Returns the table for the terminal."""
    study = RankStudyData.of(supernets, records)
    num_specs, num_seeds = study.trainings.top1.shape
    if num_specs < MIN_SPECS or num_seeds < 2:
        return (
            f"fewer than {MIN_SPECS} architectures are trained with every seed: go on with --resume"
        )
    folder.write("ranks.json", json.dumps(_content(study), indent=1).encode())
    folder.write("ranks.png", _picture(study))
    return (
        f"{_table(study, 'all')}\n\n{_table(study.better_half, 'the better half')}\n\n"
        f"95 % intervals are over architectures. {folder}/ranks.png"
    )


def _table(study: RankStudyData, which: str) -> str:
    lines = [["ranked by", "tau", "rho", "best quarter"]]
    for name, result in study.agreements().items():
        values = [result.tau, result.rho, result.top] if result else ["-"] * 3
        lines.append([name, *map(str, values)])
    trainings = study.trainings
    ceiling = between_halves(trainings.top1)
    ceiling_text = "-" if ceiling is None else f"{ceiling:.2f}"
    lines.append(["half of the seeds, by the other", ceiling_text, "", ""])
    num_specs, num_seeds = trainings.top1.shape
    return (
        f"{num_specs} architectures ({which}), {num_seeds} seeds each: mean "
        f"{trainings.top1.mean():.2f} % top-1; deviation between architectures "
        f"{trainings.between:.2f}, between seeds {trainings.within:.2f} points\n\n{aligned(lines)}"
    )


def _content(study: RankStudyData) -> dict[str, Any]:
    def figures(study: RankStudyData) -> dict[str, Any]:
        return {
            "n": len(study.trainings.specs),
            "ceiling": between_halves(study.trainings.top1),
            "deviation_between": study.trainings.between,
            "deviation_within": study.trainings.within,
            "agreement": {
                name: result.model_dump() for name, result in study.agreements().items() if result
            },
        }

    specs, scratch = study.trainings.specs, study.trainings.top1
    rows = zip(specs, scratch, study.top1, study.loss, strict=True)
    return {
        **figures(study),
        "seeds": scratch.shape[1],
        "better_half": figures(study.better_half),
        "architectures": [
            {
                "pattern": spec.pattern,
                "spec": spec.model_dump(mode="json"),
                "scratch": of_seeds.tolist(),
                "supernet_top1": top1.tolist(),
                "supernet_loss": loss.tolist(),
            }
            for spec, of_seeds, top1, loss in rows
        ],
    }


def between_halves(scratch: np.ndarray) -> float | None:
    """Mean tau between the means of one half of the seeds and of the other, over the ways to halve
    them. None where a half finds all alike."""
    seeds = range(scratch.shape[1])
    taus = []
    for half in itertools.islice(itertools.combinations(seeds, len(seeds) // 2), MAX_SPLITS):
        rest = [seed for seed in seeds if seed not in half]
        with contextlib.suppress(ValueError):
            taus.append(tau(scratch[:, half].mean(axis=1), scratch[:, rest].mean(axis=1)))
    return float(np.mean(taus)) if taus else None


def _picture(study: RankStudyData) -> bytes:
    specs, scratch, truth = study.trainings.specs, study.trainings.top1, study.trainings.means
    top1 = study.top1
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
