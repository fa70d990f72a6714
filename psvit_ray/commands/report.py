"""Tables and pictures again from the record; no run is needed. Several searches beside each other.

psvit report --name digits-20260101-120000
psvit report --storage s3://bucket/psvit --name one --name two
"""

from __future__ import annotations

from psvit_ray.commands.options import ReportJob
from psvit_ray.report import leaderboard
from psvit_ray.runtime.tracking import store_uri
from psvit_ray.search.description import read_records
from psvit_ray.storage.folder import Folder


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
