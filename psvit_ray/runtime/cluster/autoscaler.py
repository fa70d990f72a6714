"""What an autoscaler may add to a cluster.

Ray tells no driver (its own call for it answers None everywhere but in its vendor's clusters), so
the configuration is read where the autoscaler itself has it from: on the head, where a job's driver
runs.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml
from requests import RequestException

from psvit_ray.runtime.cluster import ray_private

Resources = Mapping[str, float]
FLAG = "--autoscaling-config="
KUBERNETES = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
logger = logging.getLogger(__name__)


def max_of_new_workers(count: Callable[[Resources], float]) -> float:
    """Largest sum, over the workers that the autoscaler may still add, of what `count` says of a
    host's resources; 0 where no autoscaler is seen."""
    try:
        config = _ray_up_config() or _kuberay_config()
    except (OSError, RequestException) as error:
        logger.warning("what the cluster may grow to is unknown: %s", error)
        return 0
    return max_by_config(config, count) if config else 0


def max_by_config(config: dict[str, Any], count: Callable[[Resources], float]) -> float:
    """Largest sum of `count` over the workers that an autoscaler's configuration allows: as many
    hosts of each type as may be, the best first."""
    left = max_workers = config.get("max_workers", 0)
    kinds = [
        (count(kind["resources"]), kind.get("max_workers", max_workers))
        for name, kind in config["available_node_types"].items()
        if name != config["head_node_type"]
    ]
    total = 0.0
    for each, number in sorted(kinds, reverse=True):
        hosts = min(number, left)
        total += hosts * each
        left -= hosts
    return total


def _ray_up_config() -> dict[str, Any] | None:
    """The configuration of `ray up`, which starts Ray's monitor with `--autoscaling-config`; None
    without such a process."""
    for process in psutil.process_iter(["cmdline"]):
        for word in process.info["cmdline"] or ():
            if word.startswith(FLAG):
                file = Path(word.removeprefix(FLAG)).expanduser()
                return dict(yaml.safe_load(file.read_text()))
    return None


def _kuberay_config() -> dict[str, Any] | None:
    """The configuration of KubeRay's autoscaler; None outside KubeRay or without an autoscaler."""
    name = os.environ.get("RAY_CLUSTER_NAME")  # KubeRay's, in every pod
    if not name or not KUBERNETES.exists():
        return None
    return ray_private.kuberay_config(KUBERNETES.read_text(), name)
