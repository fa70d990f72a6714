"""Searches token pooling and attention sharing: Ray Tune tries configurations, MLflow has them all.

psvit tune --recipe digits --num-trials 18 --max-gmacs 0.002
ray job submit --working-dir . -- python jobs/tune_psvit.py --storage s3://bucket/psvit --name a
"""

from __future__ import annotations

import yaml

from psvit_ray.commands.command_line import read_recipe
from psvit_ray.commands.fitting import fitted
from psvit_ray.commands.open_recipes import leaves_space_open
from psvit_ray.commands.options import TuneJob
from psvit_ray.commands.shorter import shorter_note
from psvit_ray.data.sources.load_data import load_data
from psvit_ray.text.secrets import without_secrets_in
from psvit_ray.training.config import Configuration
from psvit_ray.training.source import check_fits


def work(job: TuneJob) -> int:
    # What is wrong is said before torch, Ray and MLflow are imported, which takes many seconds.
    sections = read_recipe(job.recipe)
    if not leaves_space_open(sections):
        check(job)
    source = load_data(job.train)
    job, notes = fitted(job, source)
    check(job)
    search, train = job.search, job.train
    check_fits(Configuration(spec=search.space.smallest()[0], train=train), source)
    notes = [note for note in [shorter_note(sections, job), *notes] if note]
    if job.dry_run:
        from psvit_ray.commands.estimate import describe

        settings = without_secrets_in(job.model_dump(mode="json"))
        print(yaml.safe_dump(settings, sort_keys=False), *source.notes, *notes, sep="\n")
        print(describe(job, source))
        return 0
    from psvit_ray.commands import strategies

    print(*notes, sep="\n", end="\n" * bool(notes))
    return strategies.run(job, source)


def check(job: TuneJob) -> None:
    """Raises ValueError for settings that cannot work."""
    job.search.check(job.train)
    if job.strategy == "oneshot":
        from psvit_ray.search.oneshot.plan import check_oneshot

        check_oneshot(job.oneshot, job.search, job.train)
