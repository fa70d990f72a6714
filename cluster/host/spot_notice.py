"""Waits until the cloud says that it takes this spot host away, then becomes the command given.

    python spot_notice.py aws ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION ...

AWS says so 2 minutes before, Google 30 seconds before; neither tells Ray. A drained host gets no
new work, its workers write a checkpoint, and the loss counts as no failure. Asks the metadata
service of the host itself, which METADATA_URL replaces.
"""

from __future__ import annotations

import os
import sys
import time
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

SERVICES = {"aws": "http://169.254.169.254", "gcp": "http://metadata.google.internal"}
SECONDS = float(os.environ.get("NOTICE_SECONDS", 5))


def is_given(cloud: str, service: str) -> bool:
    """Whether the notice is there. A service that does not answer has given none."""
    try:
        if cloud == "aws":  # the path exists from the notice on
            seconds = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
            token = _ask(f"{service}/latest/api/token", seconds, method="PUT")
            header = {"X-aws-ec2-metadata-token": token}
            return bool(_ask(f"{service}/latest/meta-data/spot/instance-action", header))
        header = {"Metadata-Flavor": "Google"}
        return _ask(f"{service}/computeMetadata/v1/instance/preempted", header) == "TRUE"
    except (HTTPError, URLError, TimeoutError):
        return False


def _ask(url: str, headers: dict[str, str], method: str = "GET") -> str:
    with urlopen(Request(url, headers=headers, method=method), timeout=SECONDS) as answer:
        return str(answer.read().decode().strip())


if __name__ == "__main__":
    cloud, *command = sys.argv[1:]
    service = os.environ.get("METADATA_URL", SERVICES[cloud])
    while not is_given(cloud, service):
        time.sleep(SECONDS)
    os.execvp(command[0], command)
