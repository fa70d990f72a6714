"""Tables and pictures again from the record; no run is needed. Several searches beside each other.

python jobs/report.py --name digits-20260101-120000
python jobs/report.py --storage s3://bucket/psvit --name one --name two
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, NoReturn

import tyro
from pydantic import Field

from psvit_ray.arch.spec import Value
from psvit_ray.commands import command_line
from psvit_ray.report import leaderboard
from psvit_ray.runtime.session.session import read_records
from psvit_ray.runtime.tracking import store_uri
from psvit_ray.storage.folder import Folder


class ReportJob(Value):
    """Show searches again, from their records."""

    name: Annotated[tuple[str, ...], Field(min_length=1), tyro.conf.UseAppendAction]
    """Search to show; give it again for more beside each other."""
    storage: str = "outputs"
    """Folder or URI under which the searches are."""
    tracking_uri: str | None = None
    """MLflow server, for the command that opens it; by default the SQLite file of the storage."""


def work(job: ReportJob) -> int:
    storage = Folder.at(job.storage)
    searches = {name: read_records(storage, name) for name in job.name}
    for name, records in searches.items():
        leaderboard.write(records, storage / name, title=name)
    if len(searches) == 1:
        ((name, records),) = searches.items()
        uri = store_uri.resolve_uri(job.tracking_uri, storage)
        print(leaderboard.summary(records, storage / name, uri))
    else:
        written = leaderboard.write_side_by_side(searches, storage)
        print(leaderboard.side_by_side(searches))
        print("\n".join(written))
    return 0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs `psvit report` with these arguments, by default those of the process, and exits."""
    command_line.run(ReportJob, work, argv)
