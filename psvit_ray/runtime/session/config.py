"""Where a job writes and how it goes on, as configuration."""

from __future__ import annotations

from typing import Literal

from psvit_ray.arch.spec import Value

Resume = Literal["never", "must", "auto"]


class SessionConfig(Value):
    """Where a job writes, and how it is found again."""

    storage: str = "outputs"
    """Folder or URI (s3://, gs://) under which each name has its own folder."""
    name: str | None = None
    """Of this search or training; by default the recipe and the time."""
    resume: Resume = "never"
    """`--resume` goes on with a name that must exist, `--resume auto` goes on or starts."""
    tracking_uri: str | None = None
    """MLflow server; by default that of MLFLOW_TRACKING_URI, or a SQLite file under the storage."""
    verbose: bool = False
    """Show what Ray and MLflow log."""
