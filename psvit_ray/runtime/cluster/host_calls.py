"""Calls of functions on hosts of the cluster, with a time limit: a host that does not answer keeps
nobody waiting."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

HEAD = "node:__internal_head__"
"""Resource that the head alone has, as Ray names it."""


@dataclass(frozen=True, eq=False)
class Host:
    """A node of the cluster."""

    name: str
    node: str
    resources: Mapping[str, float]

    @property
    def gpus(self) -> float:
        return self.resources.get("GPU", 0)

    @property
    def is_head(self) -> bool:
        return HEAD in self.resources

    def holds(self, per_worker: Mapping[str, float]) -> bool:
        """Whether the host has the resources of one worker, in use or not."""
        return all(self.resources.get(name, 0) >= n for name, n in per_worker.items())


def alive_hosts() -> tuple[Host, ...]:
    """All hosts that are alive, the host of this process first. Hosts with the same name get a
    suffix each."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    times = Counter(node["NodeManagerHostname"] for node in nodes)
    hosts = []
    for node in nodes:
        name, ident = node["NodeManagerHostname"], node["NodeID"]
        hosts.append(
            Host(name if times[name] == 1 else f"{name}-{ident[:6]}", ident, node["Resources"])
        )
    here = ray.get_runtime_context().get_node_id()
    return tuple(sorted(hosts, key=lambda host: (host.node != here, host.name)))


def call_on_hosts(
    hosts: Iterable[Host],
    function: Callable[..., Any],
    *args: Any,
    limit_s: float,
    num_gpus: float = 0,
) -> dict[Host, Any]:
    """Calls a function as a Ray task on each host. Returns its result there, or the exception
    instead.

    Args:
        limit_s: Seconds to wait for all results; a host without a result gets a TimeoutError.
        num_gpus: GPUs that the task holds while it runs.
    """
    task: Any = ray.remote(function)
    refs = {
        host: task.options(
            num_cpus=0,
            num_gpus=num_gpus,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(host.node, soft=False),
        ).remote(*args)
        for host in hosts
    }
    if not refs:
        return {}
    done, _ = ray.wait([*refs.values()], num_returns=len(refs), timeout=limit_s)
    return {host: _answer(ref, ref in done, limit_s) for host, ref in refs.items()}


def _answer(ref: Any, done: bool, limit_s: float) -> Any:
    if not done:
        ray.cancel(ref, force=True)
        return TimeoutError(f"no answer within {limit_s:g} s")
    try:
        return ray.get(ref)
    except Exception as error:  # the function's own, or that the host has died
        return getattr(error, "cause", None) or error
