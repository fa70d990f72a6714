"""Searches token pooling and attention sharing: Ray Tune tries configurations, MLflow has them all.

psvit tune --recipe digits --num-trials 18 --max-gmacs 0.002
ray job submit --working-dir . -- python jobs/tune_psvit.py --storage s3://bucket/psvit --name a
"""

from __future__ import annotations

import yaml

from psvit_ray.commands.options import TuneJob
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
    if job.dry_run:
        from psvit_ray.commands.estimate import describe

        print(yaml.safe_dump(without_secrets_in(job.model_dump(mode="json")), sort_keys=False))
        oneshot = job.oneshot if job.strategy == "oneshot" else None
        print(describe(search, train, oneshot, concurrency=job.trials.max_concurrent))
        return 0
    from psvit_ray.commands import strategies

    return strategies.run(job, source)
