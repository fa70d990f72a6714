"""What an autoscaler may add to a cluster. Ray tells no driver (its own call for it answers None
everywhere but in its vendor's clusters), so it is read where the autoscaler itself has it from: on
the head, where a job's driver runs."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient
from requests import RequestException

Resources = Mapping[str, float]
FLAG = "--autoscaling-config="
KUBERNETES = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
logger = logging.getLogger(__name__)


def max_of_new_workers(count: Callable[[Resources], float]) -> float:
    """The most that workers to come may add up to, of what `count` says of a host; 0 where no
    autoscaler is seen."""
    try:
        config = _ray_up_config() or _kuberay_config()
    except (OSError, RequestException) as error:
        logger.warning("what the cluster may grow to is unknown: %s", error)
        return 0
    return max_by_config(config, count) if config else 0


def max_by_config(config: dict[str, Any], count: Callable[[Resources], float]) -> float:
    """By an autoscaler's configuration: as many hosts of each kind as may be, the best first."""
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
    """Of `ray start --autoscaling-config`, which `ray up` does: Ray's monitor was told the file."""
    for process in psutil.process_iter(["cmdline"]):
        for word in process.info["cmdline"] or ():
            if word.startswith(FLAG):
                file = Path(word.removeprefix(FLAG)).expanduser()
                return dict(yaml.safe_load(file.read_text()))
    return None


def _kuberay_config() -> dict[str, Any] | None:
    name = os.environ.get("RAY_CLUSTER_NAME")  # KubeRay's, in every pod
    if not name or not KUBERNETES.exists():
        return None
    cluster = KubernetesHttpApiClient(KUBERNETES.read_text()).get(f"rayclusters/{name}")
    if not cluster["spec"].get("enableInTreeAutoscaling"):
        return None
    return dict(_derive_autoscaling_config_from_ray_cr(cluster))
