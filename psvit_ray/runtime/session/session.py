"""What every job does before its work: all checks first, then Ray, the lease on the name, the
record and MLflow."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.sources.load_data import DriverData
from psvit_ray.data.splits import split_file
from psvit_ray.runtime.cluster import cluster
from psvit_ray.runtime.session.config import Resume, SessionConfig
from psvit_ray.runtime.session.lease import Lease
from psvit_ray.runtime.tracking import parent_run, store_uri
from psvit_ray.search.description import (
    DESCRIPTION,
    SearchDescription,
    known_names,
    read_description,
    write_description,
)
from psvit_ray.search.record import Record, RecordStore, differences
from psvit_ray.storage import files
from psvit_ray.storage.fence import Fence
from psvit_ray.storage.file_names import check_folder_name
from psvit_ray.storage.folder import Folder
from psvit_ray.storage.outputs import writable
from psvit_ray.text.markdown import code


@dataclass(frozen=True)
class Session:
    """An open search or training: its folder, which only this driver writes while it holds the
    lease, its records and its MLflow experiment."""

    name: str
    folder: Folder
    store: RecordStore
    records: list[Record]
    fence: Fence
    """Token of the lease, checked before other writes for the name; `folder` and `store` check it
    themselves."""
    data: DriverData
    """The images that everything under this name is trained on."""
    experiment: parent_run.Experiment


def resolve_folder(launch: SessionConfig, *, default_name: str) -> tuple[Folder, str]:
    """The storage and the name of a session. Raises ValueError where they cannot be used."""
    storage = writable(launch.storage, "storage")
    name = launch.name
    if name is None:
        if launch.resume != "never":
            raise ValueError("resume needs the name to go on with: add --name")
        name = f"{default_name}-{datetime.now():%Y%m%d-%H%M%S}"
    check_folder_name(name, "name")
    return storage, name


@contextlib.contextmanager
def open_session(
    launch: SessionConfig,
    *,
    default_name: str,
    identity: dict[str, Any],
    source: Source,
    num_workers: int,
    resources: cluster.WorkerResources,
    role: parent_run.Role = "search",
) -> Iterator[Session]:
    """Opens a session: makes all checks, joins Ray, takes the lease, opens the run in MLflow.

    Args:
        default_name: Beginning of the name where the user gave none.
        identity: Settings that a resume must not change, as JSON values.
        num_workers: Workers that the cluster must be able to hold together.
        role: What MLflow calls the run.

    Raises ValueError for anything that cannot work, before anything is written.
    """
    storage, name = resolve_folder(launch, default_name=default_name)
    folder = storage / name
    check_resume(launch.resume, folder, name, read_description(folder), identity, source)
    lease = Lease(folder, wait=launch.resume == "auto")
    lease.check()
    uri = store_uri.resolve_uri(launch.tracking_uri, storage)
    store_uri.check(uri)

    if not launch.verbose:
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # errors are told in one line
    cluster.join(verbose=launch.verbose)
    cluster.check_workers(num_workers, cluster.amounts_per_worker(resources))
    cluster.check_shared(storage)
    cluster.check_readable(source.train, source.name)
    store_uri.check_shared(uri, num_hosts=cluster.num_hosts())
    with lease as fence:
        folder = fence.over(folder.uri)
        # Another driver may have begun, and ended, while this one was on its way here.
        begun = read_description(folder)
        check_resume(launch.resume, folder, name, begun, identity, source)
        if begun is None and source.images:
            folder.write(split_file.SPLITS_FILE, source.images.to_bytes())
        description = begun or write_description(folder, identity, source.digest)
        experiment = parent_run.Experiment(
            tracking_uri=uri,
            name=parent_run.experiment_name(source.name),
            search_id=description.search_id,
            run_name=name,
            role=role,
            description=f"{code(name)} in {code(str(storage))}",
            data=source.name,
            data_digest=source.digest,
        )
        try:
            parent_run.open_run(experiment, fence)
        except ValueError:
            if begun is None:  # the name is as new as it was
                folder.delete(DESCRIPTION)
                folder.delete(split_file.SPLITS_FILE)
            raise
        store = RecordStore(folder)
        yield Session(
            name=name,
            folder=folder,
            store=store,
            records=store.all(),
            fence=fence,
            data=DriverData.of(source, folder),
            experiment=experiment,
        )


def check_resume(
    resume: Resume,
    folder: Folder,
    name: str,
    description: SearchDescription | Mapping[str, Any] | None,
    identity: dict[str, Any],
    source: Source | None = None,
) -> None:
    """Raises ValueError if the name exists, or does not, against what `resume` asks for, or if it
    is of other data than `source`.

    `description` is the description under the name, or its fields.
    """
    if isinstance(description, Mapping):
        description = SearchDescription.model_construct(**description)
    if description is None:
        if resume == "must":
            names = known_names(files.parent(folder)[0])
            there = f"; there are {', '.join(names)}" if names else ""
            raise ValueError(f"name must exist to be resumed, got {name!r}{there}")
        return
    if resume == "never":
        raise ValueError(
            f"name must be new, got {name!r}, which stands in {folder}; add --resume to go on with "
            "it, or choose another --name"
        )
    old, new = description.identity, json.loads(json.dumps(identity))
    known = split_file.read_split_file(folder) if source else None
    if source and description.data_digest != source.digest and _data(old) == _data(new):
        # Said first, as settings that are derived from the images change with them.
        source.check_unchanged(description.data_digest, known)
    if changed := differences(old, new):
        raise ValueError(f"resume must not change what {name!r} is: {'; '.join(changed)}")
    if source:
        source.check_unchanged(description.data_digest, known)


def _data(identity: Mapping[str, Any]) -> Any:
    """The name of the data in an identity, if it has one."""
    return identity.get("train", {}).get("data")


def exit_code(signal: int | None) -> int:
    """Exit code of a process that a signal ended, by the shell's convention; 0 without a signal."""
    return 128 + signal if signal else os.EX_OK
