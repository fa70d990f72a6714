"""Searches token pooling and attention sharing: Ray Tune tries configurations, MLflow has them all.

psvit tune --recipe digits --num-trials 18 --max-gmacs 0.002
ray job submit --working-dir . -- python jobs/tune_psvit.py --storage s3://bucket/psvit --name a
"""

from __future__ import annotations

import yaml

from psvit_ray.commands.command_line import read_recipe
from psvit_ray.commands.options import TuneJob
from psvit_ray.commands.shorter import shorter_note
from psvit_ray.text.secrets import without_secrets_in
from psvit_ray.training.config import Configuration
from psvit_ray.training.source import load_source


def work(job: TuneJob) -> int:
    # What is wrong is said before torch, Ray and MLflow are imported, which takes many seconds.
    search, train = job.search, job.train
    search.check(train)
    if job.strategy == "oneshot":
        from psvit_ray.search.oneshot.plan import check_oneshot

        check_oneshot(job.oneshot, search, train)
    source = load_source(Configuration(spec=search.space.smallest()[0], train=train))
    notes = [note for note in [shorter_note(read_recipe(job.recipe), job)] if note]
    if job.dry_run:
        from psvit_ray.commands.estimate import describe

        settings = without_secrets_in(job.model_dump(mode="json"))
        print(yaml.safe_dump(settings, sort_keys=False), *notes, sep="\n")
        oneshot = job.oneshot if job.strategy == "oneshot" else None
        print(describe(search, train, oneshot, concurrency=job.trials.max_concurrent))
        return 0
    from psvit_ray.commands import strategies

    print(*notes, sep="\n", end="\n" * bool(notes))
    return strategies.run(job, source)
