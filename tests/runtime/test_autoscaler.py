"""What a cluster may grow to, by what its autoscaler was told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from psvit_ray.runtime.cluster.autoscaler import FLAG, Resources, max_by_config, max_of_new_workers

CONFIG: dict[str, Any] = {
    "max_workers": 10,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 100}, "max_workers": 0},
        "one": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 8},
        "four": {"resources": {"CPU": 48, "GPU": 4}, "max_workers": 3},
    },
}


def gpus(host: Resources) -> float:
    return host.get("GPU", 0)


def sixteen_cpus(host: Resources) -> float:
    return host["CPU"] // 16


@pytest.mark.parametrize(
    ("hosts", "count", "expected"),
    [(10, gpus, 3 * 4 + 7), (2, gpus, 8), (10, sixteen_cpus, 3 * 3), (0, gpus, 0)],
)
def test_the_best_hosts_are_counted_first_and_what_spans_two_is_not(
    hosts: int, count: Any, expected: int
) -> None:
    assert max_by_config({**CONFIG, "max_workers": hosts}, count) == expected


@pytest.mark.processes
def test_the_file_is_the_one_that_rays_monitor_was_given(tmp_path: Path) -> None:
    assert max_of_new_workers(gpus) == 0
    file = tmp_path / "bootstrap.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    waits = "import sys; sys.stdin.read()"
    monitor = [sys.executable, "-c", waits, f"{FLAG}{file}"]
    with subprocess.Popen(monitor, stdin=subprocess.PIPE) as process:
        assert max_of_new_workers(gpus) == 19
        process.communicate()
