"""The network interface over which the workers of a run talk to each other."""

from __future__ import annotations

import os

import psutil
import ray

from psvit_ray.runtime.cluster.ray_train_private import WorkerCallback

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class UseRayInterface(WorkerCallback):
    """Has gloo and NCCL use the network interface that Ray uses.

    By default gloo takes the interface that the host's name stands for, which may be the loopback,
    and NCCL the first that it likes. Ray has found the interface on which hosts reach each other.
    What the user has set stays.
    """

    def after_init_train_context(self) -> None:  # before torch's process group is made
        if interface := interface_of(ray.util.get_node_ip_address()):
            for name in VARIABLES:
                os.environ.setdefault(name, interface)


def interface_of(address: str) -> str:
    """The network interface that has this IP address; empty where none has."""
    for interface, addresses in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in addresses):
            return interface
    return ""
