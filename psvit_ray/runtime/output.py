"""Where a job may write."""

from __future__ import annotations

from psvit_ray.data.storage import Folder


def writable(uri: str, field: str) -> Folder:
    """The folder, which need not exist. Raises ValueError, naming `field`, where nothing that is
    written to it would stay."""
    folder = Folder.at(uri)
    job_package = "/runtime_resources/working_dir_files/"
    if folder.is_local and job_package in folder.uri:
        raise ValueError(
            f"{field} must be an absolute path or a URI in a submitted job, got {uri!r}: the job's "
            "own folder is a copy that Ray deletes"
        )
    folder.check_writable(field)
    return folder
