"""An S3 store on this machine."""

from __future__ import annotations

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

ACCESS_KEY, SECRET_KEY = "planted-key", "planted-secret"
BUCKET = "bucket"


@dataclass(frozen=True)
class Store:
    address: str
    """host:port"""
    client: Any

    def uri(self, path: str, credentials: str = "") -> str:
        return f"s3://{credentials}{BUCKET}/{path}?endpoint_override={self.address}&scheme=http"

    def upload(self, folder: Path, prefix: str) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.client.upload_file(str(path), BUCKET, f"{prefix}/{path.relative_to(folder)}")


@contextmanager
def object_store() -> Iterator[Store]:
    """With one bucket, and with the environment in which it is reached."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            # All servers of a process share what was ever stored.
            urllib.request.urlopen(f"http://{host}:{port}/moto-api/reset", data=b"")
            client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
            client.create_bucket(Bucket=BUCKET)
            yield Store(f"{host}:{port}", client)
        finally:
            server.stop()
