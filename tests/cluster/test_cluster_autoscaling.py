"""A search on a cluster that has no worker: all hosts are asked for in one step, and go when they
are idle. Hosts are those of Ray's fake provider. `make cluster-test` runs it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from psvit_ray.search.record import RecordStore
from psvit_ray.storage.folder import Folder
from tests.helpers.hosts import HEAD, PORT, Hosts
from tests.helpers.jobs import SEARCH_RECIPE
from tests.helpers.processes import PATIENCE_S

pytestmark = pytest.mark.cluster
WORKERS = 3
HEAD_ID = "f" * 51 + "00000"
VARIABLES = {
    **{"RAY_enable_autoscaler_v2": "1", "RAY_FAKE_CLUSTER": "1"},
    **{"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID},
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
CONFIG: dict[str, Any] = {
    "cluster_name": "fake",
    "max_workers": WORKERS,
    "upscaling_speed": 100,
    "idle_timeout_minutes": 0.1,
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        **{"launch_multiple": True, "head_node_id": HEAD_ID, "use_node_id_as_ip": True},
        **{"disable_node_updaters": True, "disable_launch_config_check": True},
        "gcs_address": f"10.77.0.{HEAD}:{PORT}",
    },
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "spot": {
            "resources": {"CPU": 1, "object_store_memory": 100_000_000},
            **{"node_config": {}, "min_workers": 0, "max_workers": WORKERS},
        },
    },
    **{key: {} for key in ("auth", "file_mounts", "head_node", "worker_nodes")},
    **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
    **{f"{key}_commands": [] for key in ("setup", "head_setup", "worker_setup", "initialization")},
    **{f"{key}_start_ray_commands": [] for key in ("head", "worker")},
    "file_mounts_sync_continuously": False,
}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """A head alone, which trains nothing, and an autoscaler."""
    file = tmp_path_factory.mktemp("autoscaler") / "config.json"
    file.write_text(json.dumps(CONFIG))
    head = [f"--autoscaling-config={file}"]
    with Hosts(1, cpus=0, variables=VARIABLES, head=head) as alone:
        yield alone


def done_by_autoscaler(hosts: Hosts) -> list[tuple[str, int]]:
    """What it did, to how many hosts, in order."""
    events = hosts.ray_logs(HEAD) / "events" / "event_AUTOSCALER.log"
    text = events.read_text() if events.exists() else ""
    found = re.findall(r'"message": "(Adding|Removing) (\d+) node', text)
    return [(what, int(number)) for what, number in found]


def words(folder: Path, *flags: str) -> list[str]:
    recipe = folder / "small.yaml"
    recipe.write_text(yaml.safe_dump(SEARCH_RECIPE))
    job = ["python", "jobs/tune_psvit.py", "--recipe", str(recipe), "--epochs", "2"]
    return [*job, "--storage", str(folder / "out"), "--name", "a", *flags]


def test_a_search_gets_all_hosts_at_once_and_leaves_none(hosts: Hosts, tmp_path: Path) -> None:
    code, said = hosts.run(HEAD, words(tmp_path, "--num-trials", "5"))
    assert code == 0, said
    found = RecordStore(Folder(str(tmp_path / "out" / "a"))).all()
    assert [record.status in ("completed", "stopped") for record in found] == [True] * 5
    patience = time.monotonic() + PATIENCE_S
    while sum(number for what, number in done_by_autoscaler(hosts) if what == "Removing") < WORKERS:
        assert time.monotonic() < patience
        time.sleep(0.5)
    assert [one for one in done_by_autoscaler(hosts) if one[0] == "Adding"] == [("Adding", WORKERS)]


def test_a_trial_that_the_cluster_can_never_hold_is_refused(hosts: Hosts, tmp_path: Path) -> None:
    code, said = hosts.run(HEAD, words(tmp_path, "--workers-per-trial", "4"))
    assert (code, said.splitlines()[-1]) == (
        2,
        "error: workers must be at most 3, which is what the cluster can ever hold of 1 CPU each, "
        "got 4",
    )
    assert not list((tmp_path / "out").rglob("*"))
