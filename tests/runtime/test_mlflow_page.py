"""MLflow's web page shows a search as a table and as charts, at the addresses that are printed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from mlflow import MlflowClient
from playwright.sync_api import Browser, Page, expect

from psvit_ray.report import search_page
from psvit_ray.runtime.tracking import shared_view
from psvit_ray.runtime.tracking.mlflow_tracker import Tracker
from psvit_ray.runtime.tracking.parent_page import ParentPage
from psvit_ray.runtime.tracking.parent_run import Experiment
from psvit_ray.runtime.tracking.shared_view import Links
from psvit_ray.search.record import Kind, Record, Status, best, ranking
from psvit_ray.storage.folder import Folder
from psvit_ray.training.results import RANKING
from tests.helpers.browser import CHROMIUM, chromium, opened, screenshot
from tests.helpers.mlflow_server import Server
from tests.helpers.processes import until
from tests.helpers.records import record, spec_of

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(
        not CHROMIUM.exists() and "CI" not in os.environ, reason=f"there is no {CHROMIUM}"
    ),
]
TOP1 = RANKING["top1"]
PATTERNS: list[list[tuple[int, ...]]] = [
    [(1,) * 4],
    [(2, 1), (2,)],
    [(1, 1), (1, 2)],
    [(3,), (1, 1)],
    [(1,), (2,), (2, 1)],
]


def searched() -> list[Record]:
    """Twelve configurations: one failed, one runs, three were stopped early."""
    records = []
    for number in range(12):
        groups = PATTERNS[number % len(PATTERNS)]
        status: Status = "running" if number == 11 else "completed"
        epochs = 9
        if number == 5:
            status, epochs = "failed", 0
        elif number in (2, 6, 9):
            status, epochs = "stopped", 3
        curve = [(80 + number * 7 % 13) * (1 - 0.5 / epoch) for epoch in range(1, epochs + 1)]
        spec = spec_of(
            *groups, dim=16 * (1 + number % 3), pooling="1d" if number % 5 == 0 else "2d"
        )
        kind: Kind = "baseline" if spec.is_deit else "proposal"
        records.append(record(number, curve, spec=spec, status=status, kind=kind))
    return records


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    until(server.answers)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def experiment(server: Server) -> Experiment:
    return Experiment(
        tracking_uri=server.uri,
        name="psvit/photos",
        search_id="5" * 32,
        run_name="photos-20260101-120000",
        data="/data/photos",
        data_digest="0123456789abcdef",
    )


@pytest.fixture(scope="module")
def links(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Links:
    """Addresses of a search that is written."""
    records = searched()
    tracker = Tracker(experiment)
    for each in records:
        tracker.put(each)
    assert tracker.close("completed") == 0
    page = ParentPage(experiment)
    links = page.links(TOP1, ["lr"])
    assert links
    folder = Folder(str(tmp_path_factory.mktemp("out"))) / experiment.run_name
    folder.write("leaderboard.csv", b"rank\n1\n")
    page.write(
        search_page.ended(
            records,
            best(records),
            folder,
            links.by_name,
            holdout_size=500,
            tracking_uri=experiment.tracking_uri,
        ),
        metrics=search_page.metrics(records, best(records)),
        params={"strategy": "scratch", "sampler": "TPE", "space_size": 1234},
        folder=folder,
        files=search_page.result_files(folder),
    )
    assert page.warning == ""
    return links


def run_names(page: Page) -> list[str]:
    """The names in MLflow's table, from above."""
    rows = page.locator(".ag-pinned-left-cols-container .ag-row")
    expect(rows).to_have_count(12)
    texts = {int(row.get_attribute("row-index") or 0): row.inner_text() for row in rows.all()}
    return [
        match[0] for _, text in sorted(texts.items()) if (match := re.search(r"\d{3} [^\n]+", text))
    ]


def check_table(page: Page) -> None:
    """The runs of the search and no other, by the ranking metric."""
    by_top1 = sorted(searched(), key=lambda each: -(each.top1 or 0.0))
    assert [name[:3] for name in run_names(page)] == [f"{each.number:03d}" for each in by_top1]


def test_a_first_click_on_the_experiment_leads_to_its_runs(
    browser: Browser, links: Links, server: Server
) -> None:
    """MLflow shows pages for language models first; the words that lead on are there."""
    with opened(browser, f"{server.uri}/#/experiments") as page:
        page.get_by_text("psvit/photos").first.click()
        expect(page.get_by_text("Model training").first).to_be_visible()
        screenshot(page, "1-first-click")


def test_the_first_address_opens_a_table_sorted_by_the_metric(
    browser: Browser, links: Links
) -> None:
    with opened(browser, links.table) as page:
        check_table(page)
        columns = re.findall("`(.*?)`", " ".join(shared_view.columns(TOP1)))
        cells = page.locator(".ag-header-cell").all()
        # The order in the document is that in which the cells came, not that from left to right.
        cells.sort(key=lambda cell: (cell.bounding_box() or {"x": 0.0})["x"])
        heads = [cell.inner_text() for cell in cells]
        assert [head for head in heads if head in columns] == columns
        assert "002 stopped early: 1-1|1-2" in run_names(page)
        screenshot(page, "2-table")


def test_the_second_address_opens_the_charts(browser: Browser, links: Links) -> None:
    with opened(browser, links.charts) as page:
        for title in ("Parallel Coordinates", "cost/mmacs vs. holdout/top1"):
            expect(page.get_by_text(title, exact=True).first).to_be_visible()
        for axis in ("pools_after", "shared_fraction", "L3"):
            expect(page.locator("text", has_text=axis).first).to_be_visible()
        for section in ("What was chosen, and the result", "Result against cost, and by epoch"):
            expect(page.get_by_text(section).first).to_be_visible()
        screenshot(page, "3-charts")


def test_five_runs_are_compared_by_what_was_searched_and_the_accuracy(
    browser: Browser, links: Links, experiment: Experiment
) -> None:
    client = MlflowClient(experiment.tracking_uri)
    (run_id,) = re.findall("runs/([0-9a-f]+)", links.run)
    experiment_id = client.get_run(run_id).info.experiment_id
    five = {each.key for each in ranking(searched())[:5]}
    ids = [
        run.info.run_id
        for run in client.search_runs([experiment_id])
        if run.data.tags.get("psvit.key") in five
    ]
    query = f"runs={quote(json.dumps(ids))}&experiments={quote(json.dumps([experiment_id]))}"
    with opened(browser, f"{experiment.tracking_uri}/#/compare-runs?{query}") as page:
        expect(page.get_by_text("Comparing 5 Runs")).to_be_visible()
        chosen = page.locator("[class*=select-selection-item-content]")
        expect(chosen).to_have_text(["depth", "is_deit", "num_pools", "holdout/top1"])
        screenshot(page, "4-compare-five")


def test_the_page_of_the_search_tells_it_and_leads_to_the_table(
    browser: Browser, links: Links
) -> None:
    with opened(browser, links.run) as page:
        expect(page.get_by_text("hold-out images").first).to_be_visible()
        expect(page.get_by_text("photos (0123456789abcdef)")).to_be_visible()
        expect(page.get_by_text("space_size")).to_be_visible()
        screenshot(page, "5-search")
        address = page.get_by_role("link", name="Table of all configurations")
        page.goto(address.get_attribute("href") or "")
        check_table(page)


def test_an_address_without_the_state_has_the_same_runs_in_the_same_order(
    browser: Browser, links: Links, experiment: Experiment
) -> None:
    """What is printed for a version of MLflow with which the state was not tried."""
    experiment_id, run_id = re.findall("/([0-9a-f]+)", links.run.partition("#")[2])[-2:]
    plain = shared_view.links(
        experiment.tracking_uri, experiment_id, run_id, experiment.search_id, TOP1, shared=False
    )
    with opened(browser, plain.table) as page:
        check_table(page)


@pytest.mark.parametrize(
    ("version", "known"),
    [("3.12.0", True), ("3.17.2", True), ("3.18.0", False), ("nightly", False)],
)
def test_only_versions_of_mlflow_that_were_tried_get_the_state(
    version: str, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _: version)
    assert shared_view.reads_state("sqlite:////data/mlflow.db") is known


def test_a_state_that_is_too_long_for_a_tag_is_left_out() -> None:
    assert shared_view.tag_value("a", "b", TOP1, ["train.lr"], 0)
    assert shared_view.tag_value("a" * shared_view.MAX_TAG, "b", TOP1, [], 0) is None


def test_the_state_is_short_enough_for_the_longest_names() -> None:
    settings = [f"train.{'x' * 20}{number}" for number in range(8)]
    assert shared_view.tag_value("n" * 200, "5" * 32, TOP1, settings, 10**13)


def test_a_metric_of_which_less_is_better_is_sorted_upwards() -> None:
    given = {"tracking_uri": "http://a:1", "experiment_id": "1", "run_id": "2", "search_id": "3"}
    for metric, ascending in ((RANKING["loss"], "true"), (RANKING["auroc"], "false")):
        table = shared_view.links(**given, metric=metric, shared=False).table
        assert f"orderByKey=metrics.%60holdout%2F{metric.name}%60" in table
        assert f"orderByAsc={ascending}" in table


def test_no_password_stands_in_an_address() -> None:
    links = shared_view.links("http://me:hunter2@host:5000", "1", "2", "3", TOP1, shared=True)
    assert links.table.startswith("http://host:5000/#/experiments/1/runs?")


def test_a_store_that_is_no_server_is_seen_where_mlflow_ui_shows_it(tmp_path: Path) -> None:
    links = shared_view.links(f"sqlite:///{tmp_path}/mlflow.db", "1", "2", "3", TOP1, shared=False)
    assert links.charts.startswith(f"{shared_view.LOCAL_PAGE}/#/experiments/1/runs?")
