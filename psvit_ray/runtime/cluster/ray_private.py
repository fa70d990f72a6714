"""Parts of Ray without a public name that the product uses: this module and `ray_train_private` are
the only ones that know them, so that a new version of Ray is looked at here alone."""

from __future__ import annotations

from typing import Any

import ray
from ray._private import worker
from ray._private.state import available_resources_per_node
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient
from ray.experimental import internal_kv


def init_local(node_ip_address: str, **options: Any) -> None:
    """Starts Ray on this host under one of its addresses; `options` are those of `ray.init`."""
    ray.init(address="local", _node_ip_address=node_ip_address, **options)


def dashboard_address() -> str:
    """Host and port of the cluster's dashboard."""
    node: Any = worker._global_node
    return str(node.webui_url)


def available_resources() -> dict[str, dict[str, float]]:
    """Resources of each node that nothing holds now, by the node's id."""
    return available_resources_per_node()


def kuberay_config(namespace: str, cluster: str) -> dict[str, Any] | None:
    """Configuration of KubeRay's autoscaler for a cluster; None where it has no autoscaler.

    Raises requests.RequestException where Kubernetes does not answer.
    """
    resource = KubernetesHttpApiClient(namespace).get(f"rayclusters/{cluster}")
    if not resource["spec"].get("enableInTreeAutoscaling"):
        return None
    return dict(_derive_autoscaling_config_from_ray_cr(resource))


def kv_put(key: str, value: str, namespace: str) -> None:
    """Writes a value to the key-value store of Ray's head."""
    internal_kv._internal_kv_put(key, value, namespace=namespace)


def kv_get(key: str, namespace: str) -> str:
    """The value of a key in the store of Ray's head; empty where there is none."""
    value = internal_kv._internal_kv_get(key, namespace=namespace)
    return value.decode() if value else ""


def kv_keys(prefix: str, namespace: str) -> list[str]:
    """Keys in the store of Ray's head that begin with `prefix`."""
    return [key.decode() for key in internal_kv._internal_kv_list(prefix, namespace=namespace)]


def kv_delete(prefix: str, namespace: str) -> None:
    """Deletes the keys in the store of Ray's head that begin with `prefix`."""
    internal_kv._internal_kv_del(prefix, del_by_prefix=True, namespace=namespace)
