"""jobs/train_psvit.py, with a note of every step that a worker has taken.

python -m tests.helpers.noted_training FILE [flags of the job]
"""

from __future__ import annotations

import functools
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from psvit_ray.commands import command_line
from psvit_ray.commands.train import TrainJob, work
from psvit_ray.runtime.cluster.network import UseRayInterface
from psvit_ray.runtime.train import control_channel, trainer
from psvit_ray.training.steps import Steps

LOST_S = 25.0  # a minute is long for a test


class Taken(NamedTuple):
    host: str
    pid: int
    """As the host counts its processes: another in each attempt."""
    step: int
    moment: float


class NotesSteps(UseRayInterface):
    def __init__(self, file: str, pause_s: float) -> None:
        self._file, self._pause_s = file, pause_s

    def after_init_train_context(self) -> None:
        super().after_init_train_context()
        control_channel.LOST_S = LOST_S
        take, file, pause_s = Steps._take, self._file, self._pause_s

        def noting(steps: Steps, *batch: Any) -> None:
            take(steps, *batch)
            time.sleep(pause_s)
            taken = (socket.gethostname(), os.getpid(), steps._state.step, time.time())
            with open(file, "a") as notes:
                notes.write(" ".join(map(str, taken)) + "\n")

        Steps._take = noting  # type: ignore[method-assign, assignment]


def noted(file: Path) -> list[Taken]:
    if not file.exists():
        return []
    lines = [line.split() for line in file.read_text().splitlines()]
    return [Taken(host, int(pid), int(step), float(at)) for host, pid, step, at in lines]


def main() -> None:
    file = sys.argv.pop(1)
    noting: Any = functools.partial(NotesSteps, file, float(os.environ.get("STEP_S", "0")))
    trainer.UseRayInterface = noting  # type: ignore[misc]
    trainer.RESIZE_EVERY_S = 3.0  # so is one for each host that comes
    command_line.run(TrainJob, work)


if __name__ == "__main__":
    # By its own name, workers find it too.
    from tests.helpers import noted_training

    noted_training.main()
