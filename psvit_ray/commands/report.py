"""Tables, pictures and a page again from the record; no run is needed. Several searches beside each
other.

psvit report --name digits-20260101-120000 --open
psvit report --storage s3://bucket/psvit --name one --name two
"""

from __future__ import annotations

import webbrowser
from pathlib import Path

from psvit_ray.commands.options import ReportJob
from psvit_ray.data.splits.split_file import read_split_file
from psvit_ray.report import leaderboard
from psvit_ray.report.html_page import HTML
from psvit_ray.report.oneshot import oneshot_files
from psvit_ray.runtime.oneshot.phases import SUPERNET
from psvit_ray.runtime.tracking import store_uri
from psvit_ray.search.description import read_records
from psvit_ray.search.oneshot.scores import ScoreStore
from psvit_ray.search.record import Record, RecordStore
from psvit_ray.storage.folder import Folder


def work(job: ReportJob) -> int:
    storage = Folder.at(job.storage)
    uri = store_uri.resolve_uri(job.tracking_uri, storage)
    searches = {name: read_records(storage, name) for name in job.name}
    texts = [write(storage / name, name, records, uri) for name, records in searches.items()]
    if len(texts) == 1:
        print(texts[0])
    else:
        written = leaderboard.write_side_by_side(searches, storage)
        print(leaderboard.side_by_side(searches))
        print("\n".join(written))
    if job.open:
        for name in searches:
            webbrowser.open(Path((storage / name / HTML).uri).as_uri())
    return 0


def write(folder: Folder, name: str, records: list[Record], tracking_uri: str) -> str:
    """Writes the report of a search, of either strategy. Returns the text for the terminal."""
    scores, splits = ScoreStore(folder).all(), read_split_file(folder)
    if not scores or splits is None:
        text = leaderboard.summary(records, folder, tracking_uri)
        leaderboard.write(records, folder, title=name, text=text)
        return text
    text = oneshot_files.summary(
        scores,
        records,
        folder,
        tracking_uri,
        supernet_seconds=sum(record.seconds for record in RecordStore(folder / SUPERNET).all()),
        holdout_size=len(splits.indices("holdout")),
    )
    oneshot_files.write(scores, records, folder, title=name, text=text)
    return text
