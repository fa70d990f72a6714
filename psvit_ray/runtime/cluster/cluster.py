"""Joining or starting a Ray cluster, and what it can hold."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import ray

from psvit_ray.data.tables import ImageTable
from psvit_ray.runtime.cluster import ray_private
from psvit_ray.runtime.cluster.autoscaler import Resources, max_of_new_workers
from psvit_ray.runtime.cluster.config import WorkerResources
from psvit_ray.runtime.cluster.host_calls import HEAD, alive_hosts, call_on_hosts
from psvit_ray.storage.folder import Folder
from psvit_ray.text.secrets import without_secrets
from psvit_ray.training.config import TrainConfig

MAX_SOCKET_BYTES = 107  # of the address of a Unix socket
ANSWER_S = 180.0  # of a host that must fetch the job's files first
ADDRESS_S = 20.0  # for a host to take a connection, and as long again for its first bytes
HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\x04" + bytes(5)
# A short run on one machine would else wait for checks made for long runs on many.
LOCAL_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
}
QUIET_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def amounts_per_worker(resources: WorkerResources) -> dict[str, float]:
    """Amounts of CPU and GPU that one worker asks Ray for; those that are 0 are left out."""
    gpus = resources.gpus_per_worker
    if gpus is None:
        gpus = int(max_of_hosts(lambda host: host.get("GPU", 0)) > 0)
    asked: dict[str, float] = {"CPU": resources.cpus_per_worker, "GPU": gpus}
    return {name: amount for name, amount in asked.items() if amount}


def gpu_settings_note(train: TrainConfig, per_worker: dict[str, float]) -> str:
    """Note that amp or compile are off because workers have no GPU; empty where nothing is off."""
    off = [name for name in ("amp", "compile") if getattr(train, name)]
    if per_worker.get("GPU") or not off:
        return ""
    return f"{' and '.join(off)}: off, as workers have no GPU"


def join(*, verbose: bool = False) -> None:
    """Joins the cluster that RAY_ADDRESS names (a submitted job's own), or starts Ray on this host.

    Raises ValueError where RAY_ADDRESS does not answer.
    """
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    settings = {} if address else LOCAL_SETTINGS
    for name, value in (settings | ({} if verbose else QUIET_SETTINGS)).items():
        os.environ.setdefault(name, value)
    logs: dict[str, Any] = {
        "log_to_driver": verbose,
        "logging_level": logging.INFO if verbose else logging.ERROR,
    }
    if address:
        check_answers(address)
        ray.init(address, **logs)
    else:
        start_ray(**logs)


def check_answers(address: str) -> None:
    """Raises ValueError where no gRPC server answers at RAY_ADDRESS: `ray.init` would wait for
    minutes, or end the process.

    `auto`, `local` and addresses with TLS are left to Ray.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal() or os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=ADDRESS_S) as server:
            server.sendall(HTTP2_HELLO)
            answer = server.recv(9)  # the head of a frame, of which gRPC's first has the type 4
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    else:
        if answer[3:4] == b"\x04":
            return
        reason = "what listens there is no Ray"
    raise ValueError(
        f"RAY_ADDRESS must be that of a running cluster, got {address}: {reason}; unset it to "
        "start Ray on this machine"
    )


def start_ray(**options: Any) -> None:
    """Starts Ray on this host.

    Its processes get its address as environment variables: the helper of Ray Train that gives back
    what a stopped trial held would else ask the Ray that was started last on this host, or that
    died here.
    """
    check_socket_paths()
    make_token_private()
    here = ray.util.get_node_ip_address()
    with socket.socket() as free:
        free.bind((here, 0))
        port = free.getsockname()[1]
    variables = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"{here}:{port}"}
    os.environ.update(variables)
    try:
        ray_private.init_local(here, **options)
    finally:
        for name in variables:
            del os.environ[name]


def check_socket_paths() -> None:
    """Raises ValueError where Ray's folder for temporary files is too deep for its sockets."""
    name = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
    folder = os.environ.get(name, "/tmp")
    session = f"session_{datetime.now():%Y-%m-%d_%H-%M-%S_%f}_{os.getpid():07}"
    longest = len(os.fsencode(os.path.join(folder, "ray", session, "sockets", "plasma_store.0")))
    if longest > MAX_SOCKET_BYTES:
        max_length = len(os.fsencode(folder)) - (longest - MAX_SOCKET_BYTES)
        raise ValueError(
            f"{name} must be at most {max_length} bytes long, as Ray puts sockets there, got "
            f"{folder!r}; set RAY_TMPDIR=/tmp"
        )


def make_token_private() -> None:
    """Makes Ray's authentication token readable by its owner alone.

    Ray writes the token of the clusters that it starts so that all users of the host can read it,
    and run what they like with it. So a private one is written first, and an older one is closed.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "token").lower()
    if mode != "token" or {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    path = Path.home() / ".ray" / "auth_token"
    with contextlib.suppress(OSError):  # of a home that cannot be written, Ray says so itself
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            path.chmod(0o600)
            return
        with os.fdopen(file, "w") as token:
            token.write(secrets.token_hex(32))


def max_of_hosts(count: Callable[[Resources], float]) -> float:
    """Largest sum, over the hosts that the cluster may have at the same time, of what `count` says
    of a host's resources: the hosts of now or, with an autoscaler, the head and those to come."""
    hosts = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    heads = [resources for resources in hosts if HEAD in resources]
    return max(sum(map(count, hosts)), sum(map(count, heads)) + max_of_new_workers(count))


def workers_that_fit(per_worker: dict[str, float]) -> int:
    """Number of such workers that the cluster could ever hold at the same time."""
    return int(
        max_of_hosts(
            lambda host: min(host.get(name, 0) // of_one for name, of_one in per_worker.items())
        )
    )


def check_workers(num_workers: int, per_worker: dict[str, float]) -> None:
    """Raises ValueError if the cluster can never hold so many workers together."""
    fit = workers_that_fit(per_worker)
    if num_workers > fit:
        resources = ", ".join(f"{amount:g} {name}" for name, amount in per_worker.items())
        raise ValueError(
            f"workers must be at most {fit}, which is what the cluster can ever hold of "
            f"{resources} each, got {num_workers}"
        )


def check_shared(storage: Folder, field: str = "storage") -> None:
    """Raises ValueError, naming `field`, if a host of the cluster does not see what is written to
    `storage`, or cannot write there itself."""
    if num_hosts() == 1:
        return
    marker = f".shared-{uuid.uuid4().hex[:8]}"
    storage.write(marker, b"", durable=False)
    try:
        answers = call_on_hosts(
            alive_hosts(), _sharing_error, storage.uri, marker, limit_s=ANSWER_S
        )
    finally:
        storage.delete(marker)
    if not (blind := {host.name: reason for host, reason in answers.items() if reason}):
        return
    reasons = "; ".join(f"{name}: {reason}" for name, reason in blind.items())
    path = "the local path " if storage.is_local else ""
    hint = "; use a shared path or a URI such as s3://bucket/prefix" if storage.is_local else ""
    raise ValueError(f"{field} must be seen by every host, got {path}{storage}; {reasons}{hint}")


def check_readable(table: ImageTable, data: str) -> None:
    """Raises ValueError if a host of the cluster cannot read images of `data` that this one can:
    all that it would be given to read would count as bad."""
    first_image = table.take(np.arange(1))
    if num_hosts() == 1 or read_error(first_image):
        return
    for host, reason in call_on_hosts(
        alive_hosts(), read_error, first_image, limit_s=ANSWER_S
    ).items():
        if reason:
            raise ValueError(
                f"data must be seen by every host, got {data}, of which {host.name} cannot read "
                f"{' '.join(first_image.place(0))}: {reason}"
            )


def num_hosts() -> int:
    """Number of hosts that are alive."""
    return len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]})


def _sharing_error(uri: str, marker: str) -> str:
    """Why this host does not see the marker file in the storage, or cannot write there; empty where
    it can."""
    storage = Folder(uri)
    try:
        if storage.read(marker) is None:
            return "what another host wrote is not there"
        storage.check_writable()
    except (OSError, ValueError) as error:
        return without_secrets(str(error))
    return ""


def read_error(table: ImageTable) -> str:
    """Why the first image of a table cannot be read on this host; empty where it can."""
    try:
        table.read(0)
    except (OSError, ValueError) as error:
        return without_secrets(str(error))
    return ""
