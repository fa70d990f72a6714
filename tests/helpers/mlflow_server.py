"""A tracking server of MLflow on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from psvit_ray.runtime.tracking.store_uri import check
from tests.helpers.mlflow_store import put_store
from tests.helpers.processes import free_port


class Server:
    """A real tracking server that can be down."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        put_store(self.folder, "server.db")
        database = f"sqlite:///{self.folder}/server.db"
        command = ["-m", "mlflow", "server", "--workers", "1", "--backend-store-uri", database]
        self.process = subprocess.Popen(
            [sys.executable, *command, "--host", "127.0.0.1", "--port", str(self.port)],
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            start_new_session=True,
        )

    def answers(self) -> bool:
        try:
            check(self.uri)
        except ValueError:
            return False
        return True

    def stop(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)  # its workers too: the session is its own
            self.process.wait()
