"""The description of a search or training beside its records, by which its folder is known."""

from __future__ import annotations

import contextlib
import difflib
import uuid
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from psvit_ray.arch.spec import Value
from psvit_ray.search.record import RECORDS, Record, RecordStore
from psvit_ray.storage import json_files
from psvit_ray.storage.file_names import check_folder_name
from psvit_ray.storage.folder import Folder

DESCRIPTION = "search.json"


class SearchDescription(Value):
    """Content of `search.json`, which describes a search or training."""

    search_id: Annotated[str, Field(min_length=1)]
    """Id that tags the runs of this search in MLflow, so that a resume finds them."""
    identity: dict[str, Any]
    """Settings that a resume must not change."""
    data_digest: str = ""
    """Digest of the images and their splits; empty where an older version began the search."""


def write_description(
    folder: Folder, identity: dict[str, Any], data_digest: str = ""
) -> SearchDescription:
    """Writes the description that begins a search, before any record."""
    search_id = uuid.uuid4().hex
    description = SearchDescription(search_id=search_id, identity=identity, data_digest=data_digest)
    folder.write(DESCRIPTION, description.model_dump_json(indent=2).encode())
    return description


def read_description(folder: Folder) -> SearchDescription | None:
    """The description of a search, or None where none has begun.

    Raises ValueError, which says how to go on, for a file that does not describe one, and where
    records stand without any.
    """
    remedy = (
        "restore it from a copy; without one, what it was a search of is not known: begin under "
        "another --name (what is here stays)"
    )
    kind = TypeAdapter(SearchDescription)
    description = json_files.read_json(folder, DESCRIPTION, kind, "a search's description", remedy)
    if description is None and (folder / RECORDS).names():
        raise ValueError(f"{folder / DESCRIPTION} is missing beside its {RECORDS}/; {remedy}")
    return description


def check_name(storage: Folder, name: str) -> None:
    """Raises ValueError if no search or training has this name."""
    check_folder_name(name, "name")
    if read_description(storage / name) is None:
        near = difflib.get_close_matches(name, known_names(storage), n=1, cutoff=0.0)
        hint = f"; nearest is {near[0]!r}" if near else ""
        raise ValueError(f"name must exist in {storage}, got {name!r}{hint}")


def read_records(storage: Folder, name: str) -> list[Record]:
    """The records of a search or training. Raises ValueError if none has this name."""
    check_name(storage, name)
    return RecordStore(storage / name).all()


def read_training(run: Folder) -> Record:
    """The record of the training in a folder. Raises ValueError where there is none, or a
    search."""
    if read_description(run) is None:
        raise ValueError(f"run must be a folder that train_psvit wrote, got {run}")
    records = RecordStore(run).all()
    if len(records) != 1:
        raise ValueError(
            f"run must hold one training, got {len(records)} configurations in {run}; of a search, "
            "train the winner with psvit train --arch best.yaml"
        )
    return records[0]


def known_names(storage: Folder) -> list[str]:
    """Names of the searches and trainings under a storage."""
    return [name for name in storage.names() if DESCRIPTION in _file_names(storage / name)]


def _file_names(folder: Folder) -> list[str]:
    with contextlib.suppress(OSError):  # a file, or a folder that is not to be listed
        return folder.names()
    return []
