"""Writes any source of images as Parquet shards, mixed and checked, for training at full speed.

    psvit prepare --data photos/ --out shards/ --resize-longer 512
    psvit prepare --out shards/ --verify

Ray writes shards in parallel. Killed, it goes on with --resume; the files are the same, byte for
byte, as those of an undisturbed run. Images that cannot be used are left out and named in
quarantine.csv. --verify compares the files with manifest.json and ends with 1 where they differ.
"""

from __future__ import annotations

import sys
from functools import partial

from psvit_ray.commands.options import PrepareJob
from psvit_ray.data.shards import plan
from psvit_ray.data.sources.load_data import read_data
from psvit_ray.data.sources.shard_manifest import (
    SHARD_MANIFEST,
    ShardManifest,
    faults,
    read_manifest,
)
from psvit_ray.data.sources.survey import survey
from psvit_ray.runtime.batch.prepare import PrepareInterrupted, check_out, prepare
from psvit_ray.runtime.cluster import cluster
from psvit_ray.runtime.session.session import exit_code
from psvit_ray.storage.folder import Folder
from psvit_ray.text.printable import printable


def work(job: PrepareJob) -> int:
    if job.verify:
        return verify(Folder.at(job.out))
    if not job.data:
        raise ValueError("--data must be given")
    out = Folder.at(job.out)
    source = read_data(job.data, job)
    identity = plan.identity(source, job.settings)
    manifest = check_out(out, identity, job.resume)
    for note in [*source.notes, *(f"{kind}: kept" for kind in survey(source.train).kinds)]:
        print(printable(note))
    if manifest is None:
        cluster.join(verbose=job.verbose)
        cluster.check_shared(out, "out")
        cluster.check_readable(source.train, source.name)
        try:
            manifest = prepare(
                source,
                out,
                identity,
                job.settings,
                workers=job.workers,
                max_bad_fraction=job.max_bad_fraction,
                say=partial(print, flush=True),
            )
        except PrepareInterrupted as stopped:
            print(f"{stopped}; --resume goes on", file=sys.stderr)
            return exit_code(stopped.signal)
    print(summary(out, manifest))
    return 0


def verify(out: Folder) -> int:
    manifest = read_manifest(out)
    if manifest is None:
        raise ValueError(f"out must hold a {SHARD_MANIFEST}, got {out}")
    differing = faults(out, manifest)
    if differing:
        print("\n".join(differing))
        print(f"{out}: {len(differing)} faults")
        return 1
    print(summary(out, manifest))
    print(f"all is as {SHARD_MANIFEST} says")
    return 0


def summary(out: Folder, manifest: ShardManifest) -> str:
    lines = [f"{out}: {len(manifest.class_names)} classes"]
    for name, split in manifest.splits.items():
        bad = f"; bad images left out: {split.bad_images:,}" if split.bad_images else ""
        lines.append(
            f"{name}: {split.rows:,} images, {split.bytes / 1e6:,.1f} MB, "
            f"shards: {len(split.files):,}{bad}"
        )
    return "\n".join(lines)
