"""Checks that the doctor (`doctor.py`) runs on hosts: small functions that are Ray tasks there.

The module imports what is light, so that a host answers soon, and says itself what it lacks.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import ray
import requests

from psvit_ray.data.tables import ImageTable
from psvit_ray.runtime.cluster.cluster import read_error
from psvit_ray.runtime.tracking import store_uri
from psvit_ray.storage.folder import Folder
from psvit_ray.storage.outputs import writable

PACKAGES = ("ray", "torch", "timm", "pyarrow", "mlflow")
FULL = 0.95
"""Fraction of a disk in use beyond which Ray makes no objects there (its
local_fs_capacity_threshold)."""
SHM = Path("/dev/shm")


class CheckResult(NamedTuple):
    """Result of a check. `advice` says what to do where it is not `ok`."""

    ok: bool
    message: str
    advice: str = ""


def now() -> float:
    """Seconds since 1970 by the host's clock."""
    return time.time()


def versions() -> dict[str, str]:
    """Versions of the packages that must be the same everywhere; a build's own mark (+cu128) may
    differ."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            installed[name] = "missing"
    code = hashlib.sha256()
    package = Path(__file__).parents[2]
    for file in sorted(package.rglob("*.py")):
        code.update(str(file.relative_to(package)).encode() + file.read_bytes())
    return installed | {"psvit_ray": code.hexdigest()[:8]}


def gpus(counted: int) -> CheckResult:
    """Checks that torch sees `counted` GPUs, and that each multiplies correctly."""
    import torch  # here, as no other check needs it

    seen = torch.cuda.device_count()
    if seen < counted:
        message = f"Ray counts {counted}, torch {torch.__version__} sees {seen}"
        return CheckResult(
            False, message, "install NVIDIA's driver, and a torch built for its CUDA"
        )
    for number in range(counted):
        ones = torch.ones(256, 256, device=f"cuda:{number}")
        if (got := float((ones @ ones).mean())) != 256:
            message = f"GPU {number} multiplies wrongly: 256 ones make {got:g}"
            return CheckResult(False, message, "take it out of the cluster")
    names = Counter(torch.cuda.get_device_name(number) for number in range(counted))
    message = ", ".join(f"{times} {name}" for name, times in names.items())
    return CheckResult(True, f"{message}, driver {_driver() or 'unknown'}")


def _driver() -> str:
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.partition("\n")[0]
    return ""


def write(uri: str, mark: str) -> list[str]:
    """Writes a file to the storage. Returns the folders that were made for it, the innermost first.
    Raises ValueError or OSError."""
    folder = writable(uri, "storage")
    path = Path(folder.uri)
    above = (path, *path.parents) if folder.is_local else ()
    made = [str(parent) for parent in above if not parent.exists()]
    folder.write(file_of(mark, ray.get_runtime_context().get_node_id()), b"", durable=False)
    return made


def file_of(mark: str, node: str) -> str:
    """Name of the file that a node writes to the storage."""
    return f".{mark}-{node}"


def present(uri: str, names: Sequence[str]) -> set[str]:
    """Names of the files that this host sees, among `names`."""
    return {name for name in names if Folder(uri).read(name) is not None}


def clear(uri: str, names: Sequence[str], made: Mapping[str, Sequence[str]]) -> None:
    """Deletes the files, and the folders that were made for them: `made` has those of each node."""
    for name in names:
        Folder(uri).delete(name)
    with suppress(OSError):  # another host has been here before, or has something there
        for folder in made.get(ray.get_runtime_context().get_node_id(), ()):
            Path(folder).rmdir()


def read(table: ImageTable) -> CheckResult:
    """Checks that the first image of a table can be read."""
    if reason := read_error(table):
        message = f"cannot read {' '.join(table.place(0))}: {reason}"
        return CheckResult(
            False, message, "mount the data there on this host, or use a URI such as s3://"
        )
    return CheckResult(True, "read")


def mlflow(uri: str) -> CheckResult:
    """Checks that the store at `uri` is reached."""
    try:
        store_uri.check(uri)
    except ValueError as error:
        advice = "start the server, let this host reach its port, or correct --tracking-uri"
        return CheckResult(False, str(error), advice)
    return CheckResult(True, "reached")


def disk() -> CheckResult:
    """Checks that the disk of Ray's temporary files has room."""
    folder = ray.get_runtime_context().get_temp_dir()
    total, _, free = shutil.disk_usage(folder)
    if 1 - free / total < FULL:
        return CheckResult(True, f"{size(free)} free")
    message = (
        f"{folder} has {size(free)} of {size(total)} free: Ray makes no objects on such a disk"
    )
    advice = f"keep {size(total * (1 - FULL))} free, or `ray start --temp-dir` on another disk"
    return CheckResult(False, message, advice)


def shm(store: int, batches: int) -> CheckResult:
    """Checks the size of /dev/shm: Ray puts its object store on the disk where it does not fit
    there, and a loader's process that finds no room for a batch dies."""
    if not SHM.is_dir():
        return CheckResult(True, "none")
    total, _, free = shutil.disk_usage(SHM)
    advice = "give the container more (--shm-size; an emptyDir of medium Memory at /dev/shm)"
    if total < store:
        message = f"{SHM} has {size(total)}, Ray's object store {size(store)}: it is on the disk"
        return CheckResult(False, message, f"{advice}, or `ray start --object-store-memory`")
    if free < batches:
        message = f"{SHM} has {size(free)} free, the loaders hold {size(batches)} of batches"
        return CheckResult(False, message, f"{advice}, or fewer --num-loaders")
    return CheckResult(True, f"{size(free)} free")


def token(url: str) -> CheckResult:
    """Checks that the dashboard at `url` refuses a request without a token."""
    advice = "start every host with RAY_AUTH_MODE=token and the same RAY_AUTH_TOKEN"
    try:
        code = requests.get(f"http://{url}/api/jobs/", timeout=5).status_code
    except requests.RequestException as error:
        message = f"the dashboard at {url} does not say: {type(error).__name__}"
        return CheckResult(False, message, f"start the head with its dashboard; {advice}")
    if code == requests.codes.unauthorized:
        return CheckResult(True, "asked for")
    message = (
        f"who asks {url}/api/jobs/ without a token gets HTTP {code}: anybody may run code here"
    )
    return CheckResult(False, message, advice)


def size(num_bytes: float) -> str:
    """Bytes as text."""
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.3g} MB"
