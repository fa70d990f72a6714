"""The page of a search in MLflow, from the first second to its end."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from psvit_ray.commands.options import TuneJob
from psvit_ray.data.sources.image_source import Source
from psvit_ray.report import search_page
from psvit_ray.report.summary import aligned
from psvit_ray.runtime.session.session import Session
from psvit_ray.runtime.tracking.parent_page import ParentPage
from psvit_ray.search.oneshot import finalists
from psvit_ray.search.record import FINAL_STATUSES, Record, best
from psvit_ray.text.secrets import without_secrets_in
from psvit_ray.training.results import RANKING

RECIPE = "recipe.yaml"


class SearchPage:
    """Writes the page when it is made, as that of a search under way, and when it is finished."""

    def __init__(self, job: TuneJob, session: Session, source: Source) -> None:
        self._job, self._session, self._source = job, session, source
        self._page = ParentPage(session.experiment, session.fence)
        links = self._page.links(RANKING[job.train.metric], list(job.search.overrides))
        self._links = links.by_name if links else {}
        self._page.write(
            search_page.begun(session.folder, self._links),
            params=_params(job, source),
            metrics=_budget(job),
            texts={RECIPE: _recipe(job)},
        )

    def winner(self, records: Sequence[Record]) -> Record | None:
        """The best configuration, if one was trained in full."""
        return best(records) if self._job.strategy == "scratch" else finalists.winner(records)

    def finish(self, records: Sequence[Record]) -> str:
        """Writes the results. Returns lines for the terminal: the addresses in MLflow, or why the
        page could not be written."""
        folder = self._session.folder
        winner = self.winner(records)
        self._page.write(
            search_page.ended(
                records,
                winner,
                folder,
                self._links,
                holdout_size=len(self._source.holdout),
                tracking_uri=self._session.experiment.tracking_uri,
            ),
            metrics=search_page.metrics(records, winner),
            step=sum(record.status in FINAL_STATUSES for record in records),
            folder=folder,
            files=search_page.result_files(folder),
        )
        if self._page.warning:
            return f"MLflow did not take the page of the search: {self._page.warning}"
        return aligned([(f"{name}:", address) for name, address in self._links.items()])


def _params(job: TuneJob, source: Source) -> dict[str, object]:
    """What a resume cannot change, as MLflow's parameters never change."""
    search, train = job.search, job.train
    size = search.space.size(search.limits)
    return {
        "strategy": job.strategy,
        "sampler": "TPE" if job.strategy == "scratch" else "NSGA-II",
        "search_seed": search.search_seed,
        "seed": train.seed,
        "split_seed": train.split_seed,
        "metric": train.metric,
        "epochs": train.epochs,
        "space_size": size.count,
        "space_size_is_exact": size.exact,
        "max_mmacs": _limit(search.max_gmacs, 1e3),
        "max_params_m": _limit(search.max_params_m, 1),
        "baselines": search.baselines,
        "grace_epochs": search.grace_epochs,
        "reduction_factor": search.reduction_factor or "none stopped early",
        "searched_settings": ", ".join(search.overrides) or "none",
        "classes": len(source.class_names),
        "images_train": len(source.train),
        "images_holdout": len(source.holdout),
        "images_test": "none" if source.test is None else len(source.test),
    }


def _limit(limit: float | None, unit: float) -> object:
    return "no limit" if limit is None else f"{limit * unit:g}"


def _budget(job: TuneJob) -> dict[str, float]:
    """How much may be tried, which a resume may change."""
    search = job.search
    budget = {
        "budget/configurations": search.num_trials,
        "budget/hours": search.max_hours,
        "budget/gpu_hours": search.max_gpu_hours,
    }
    if job.strategy == "oneshot":
        budget["budget/configurations"] = job.oneshot.candidates
    return {name: float(value) for name, value in budget.items() if value is not None}


def _recipe(job: TuneJob) -> str:
    """The settings as a recipe, which `--recipe` takes."""
    sections = job.model_dump(mode="json", include={"train", "search", "oneshot", "trials"})
    return yaml.safe_dump(without_secrets_in(sections), sort_keys=False)
