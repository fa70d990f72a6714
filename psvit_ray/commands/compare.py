"""The winner of a search and DeiT side by side: several seeds, test images, costs, speed.

    psvit compare --search digits-20260101-120000
    psvit compare --search NAME --baseline-search NAME-OF-A-DEIT-SEARCH --seeds 5

The baseline is the best DeiT of its search; the winner is the best PSViT that has no more MACs
than it or, where a budget is given, each is the best within it. Both train from scratch with the
settings that they were found with, on the images that the search had: what was added since then is
left out.
"""

from __future__ import annotations

from psvit_ray.commands.options import CompareJob
from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.splits import split_file
from psvit_ray.report import comparison
from psvit_ray.runtime.tune.tuner import train_each
from psvit_ray.search.description import read_records
from psvit_ray.storage.folder import Folder
from psvit_ray.training.config import Configuration
from psvit_ray.training.source import load_source


def work(job: CompareJob) -> int:
    storage = Folder.at(job.launch.storage)
    pair = comparison.pair(
        read_records(storage, job.search),
        read_records(storage, job.baseline_search or job.search),
        max_macs=None if job.budget_gmacs is None else 1e9 * job.budget_gmacs,
    )
    configurations = {
        name: [seeded(record.configuration, seed) for seed in range(job.seeds)]
        for name, record in pair.items()
    }
    source, notes = source_for(pair["DeiT"].configuration, storage / job.search)
    if source.test is None:
        raise ValueError("search must be on data with test images; a test split is needed")
    if notes:
        print("\n".join(notes))
    with train_each(
        job.launch,
        configurations,
        source,
        job.trials,
        default_name=f"{job.search}-compare",
        test=True,
    ) as (session, outcome):
        print(comparison.write(configurations, outcome.records, session.folder))
        if outcome.exit_code:
            print(f"goes on with: {job.resume_command(session.name)}")
    return outcome.exit_code


def source_for(configuration: Configuration, search: Folder) -> tuple[Source, list[str]]:
    """The data, split as in the search, without the images that were added since, and notes to the
    user on these."""
    known = split_file.read_split_file(search)
    source = load_source(configuration)
    if known is None or source.images is None or known.digest == source.digest:
        return source, []
    notes = split_file.left_out(known, source.images)
    source = load_source(configuration, known)
    if not len(source.holdout):
        raise ValueError(f"data must have images that {search} held out: {notes[0]}")
    held = f"{len(source.holdout):,} of {len(known.indices('holdout')):,}"
    return source, [f"hold-out: {held} images that the search held out", *notes]


def seeded(configuration: Configuration, seed: int) -> Configuration:
    train = configuration.train.model_copy(update={"seed": seed})
    return configuration.model_copy(update={"train": train})
