"""Where a job writes and how it goes on, as configuration."""

from __future__ import annotations

from typing import Literal

from psvit_ray.arch.spec import Value

Resume = Literal["never", "must", "auto"]


class SessionConfig(Value):
    """Where a job writes its results, and whether it resumes an earlier one."""

    storage: str = "outputs"
    """Folder or URI (s3://, gs://) under which each name has its own folder."""
    name: str | None = None
    """Name of this search or training; by default the recipe's name and the time."""
    resume: Resume = "never"
    """Whether to go on with an earlier run of this name: `--resume` needs one, `--resume auto`
    starts it if there is none."""
    tracking_uri: str | None = None
    """MLflow server; by default that of MLFLOW_TRACKING_URI, or a SQLite file under the storage."""
    verbose: bool = False
    """Show the logs of Ray and MLflow."""
