"""The columns of the doctor's table."""

from __future__ import annotations

CHECKS = [
    *("answers", "versions", "gpu", "storage", "data", "mlflow"),
    *("clock", "disk", "shm", "network", "token"),
]
