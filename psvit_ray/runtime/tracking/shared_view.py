"""Addresses of MLflow's web page at which the runs of a search are compared: a table sorted by the
ranking metric, and charts.

Columns, order and charts of that page are a state that MLflow keeps in a tag of the experiment, in
a form of its own that no documentation describes. Nothing outside this module knows it, and
`tests/runtime/test_mlflow_page.py` opens the page in a browser. For a version of MLflow with which
that was not tried, the addresses ask for filter and order alone.
"""

from __future__ import annotations

import base64
import importlib.metadata
import json
import re
import zlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlencode

from requests import RequestException, get

from psvit_ray.arch.spec import Value
from psvit_ray.runtime.tracking.configuration_run import KIND, MMACS, PARAMS_M, STATUS
from psvit_ray.runtime.tracking.store_uri import SERVERS
from psvit_ray.text.secrets import without_secrets
from psvit_ray.training.results import RankingMetric

FIRST_KNOWN, FIRST_UNKNOWN = (3, 12), (3, 18)
"""Versions of MLflow that read the state: from the one on, below the other."""
TAG = "mlflow.sharedViewState."
MAX_TAG = 5_000
"""Characters that MLflow's databases take as the value of an experiment's tag."""
LOCAL_PAGE = "http://127.0.0.1:5000"
"""Where `mlflow ui` shows a store that is no server."""
AXES = ("num_pools", "pools_after", "shared_fraction", "depth", "width_last", "pool_op")
"""Parameters of the compact set, as axes of the chart of parallel coordinates."""


class Links(Value):
    """Addresses of the web page for a search."""

    table: str
    charts: str
    run: str
    """Page of the parent run."""

    @property
    def by_name(self) -> dict[str, str]:
        """The addresses at which runs are compared, by what they show."""
        return {"Table of all configurations": self.table, "Charts": self.charts}


def reads_state(tracking_uri: str) -> bool:
    """Whether the MLflow of a store is one of those that are known to read the state."""
    version = importlib.metadata.version("mlflow")
    if tracking_uri.startswith(SERVERS):
        try:
            version = get(f"{tracking_uri.rstrip('/')}/version", timeout=5).text
        except (RequestException, ValueError):
            return False
    if not (numbers := re.match(r"(\d+)\.(\d+)", version)):
        return False
    return FIRST_KNOWN <= (int(numbers[1]), int(numbers[2])) < FIRST_UNKNOWN


def tag_name(search_id: str) -> str:
    """The experiment's tag that holds the state for a search."""
    return TAG + search_id


def columns(metric: RankingMetric) -> list[str]:
    """The columns of the table, beside the names of the runs."""
    return [
        "params.`pattern`",
        f"metrics.`{metric.key}`",
        f"metrics.`{MMACS}`",
        f"metrics.`{PARAMS_M}`",
        "metrics.`epoch`",
        f"tags.`{KIND}`",
        f"tags.`{STATUS}`",
    ]


def tag_value(
    name: str, search_id: str, metric: RankingMetric, searched: Sequence[str], created_ms: int
) -> str | None:
    """The state for a search, which the page lists under its name; None if MLflow would not take
    so long a tag.

    Args:
        searched: Training settings that are searched, as parameters of the runs.
    """
    state = _state(search_id, metric, [*AXES, *searched])
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode(), 9)).decode()
    # From 3.17 on MLflow reads the packed state and shows the name; before, the fields beside them.
    listed = {
        "name": name,
        "createdAt": created_ms,
        "updatedAt": created_ms,
        "state": f"deflate;{packed}",
    }
    value = json.dumps(state | listed, separators=(",", ":"))
    return value if len(value) <= MAX_TAG else None


def links(
    tracking_uri: str,
    experiment_id: str,
    run_id: str,
    search_id: str,
    metric: RankingMetric,
    *,
    shared: bool,
) -> Links:
    """Addresses for a search. `shared`: the experiment has its tag, and MLflow reads it."""
    server = without_secrets(tracking_uri).rstrip("/")
    page = server if tracking_uri.startswith(SERVERS) else LOCAL_PAGE
    experiment = f"{page}/#/experiments/{experiment_id}/runs"
    # Without it MLflow shows pages for language models.
    query = {"workflowType": "machine_learning"}
    facets = {"viewStateShareKey": search_id} if shared else _facets(search_id, metric)
    charts = {"compareRunsMode": "CHART"}
    return Links(
        table=f"{experiment}?{_encoded(query | facets)}",
        charts=f"{experiment}?{_encoded(query | charts | facets)}",
        run=f"{experiment}/{run_id}?{_encoded(query)}",
    )


def _encoded(query: dict[str, str]) -> str:
    """The query, without a character that would end a link in Markdown or in a terminal."""
    return urlencode(query, quote_via=quote, safe="")


def _facets(search_id: str, metric: RankingMetric) -> dict[str, str]:
    """Filter and order, as the address has them: the best first."""
    of_search = f"tags.`psvit.search_id` = '{search_id}'"
    return {
        "searchFilter": f"{of_search} and tags.`psvit.role` = 'configuration'",
        "orderByKey": f"metrics.`{metric.key}`",
        "orderByAsc": "false" if metric.sign > 0 else "true",
    }


def _state(search_id: str, metric: RankingMetric, axes: Sequence[str]) -> dict[str, Any]:
    return {
        **_facets(search_id, metric),
        "orderByAsc": metric.sign < 0,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": columns(metric),
        "columnOrder": ["attributes.`Run Name`", *columns(metric)],
        "columnWidths": {
            "attributes.`Run Name`": 240,
            "params.`pattern`": 160,
            f"tags.`{STATUS}`": 120,
        },
        "runsHiddenMode": "SHOW_ALL",  # of 10 runs, charts would say little
        "isAccordionReordered": True,  # else sections are sorted by name
        "compareRunSections": [
            _section("choices", "What was chosen, and the result", columns=1),
            _section("results", "Result against cost, and by epoch", columns=2),
        ],
        "compareRunCharts": [
            _chart(
                "PARALLEL",
                "choices",
                selectedParams=axes,
                selectedMetrics=[metric.key],
                showAllRuns=True,
            ),
            _chart(
                "SCATTER",
                "results",
                xaxis={"key": MMACS, "type": "METRIC"},
                yaxis={"key": metric.key, "type": "METRIC"},
            ),
            _chart(
                "LINE",
                "results",
                metricKey=metric.key,
                selectedMetricKeys=[metric.key],
                xAxisKey="metric",
                selectedXAxisMetricKey="epoch",
                useGlobalXaxisKey=False,
            ),
        ],
    }


def _section(key: str, name: str, *, columns: int) -> dict[str, Any]:
    return {"uuid": key, "name": name, "display": True, "isReordered": True, "columns": columns}


def _chart(kind: str, section: str, **fields: Any) -> dict[str, Any]:
    chart = {"uuid": kind.lower(), "type": kind, "metricSectionId": section}
    return chart | {"deleted": False, "isGenerated": False, "runsCountToCompare": 500} | fields
