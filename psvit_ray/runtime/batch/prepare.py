"""Writing shards in parallel Ray tasks, so that a run that was killed goes on."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from pydantic import TypeAdapter

from psvit_ray.data import quarantine
from psvit_ray.data.shards import plan, shard_file
from psvit_ray.data.shards.plan import Shard
from psvit_ray.data.shards.settings import ShardSettings
from psvit_ray.data.shards.shard_file import WrittenShard
from psvit_ray.data.sources.image_source import Source
from psvit_ray.data.sources.shard_manifest import (
    PLAN,
    PROGRESS,
    SHARD_MANIFEST,
    ShardFile,
    ShardManifest,
    SplitManifest,
    read_manifest,
)
from psvit_ray.runtime.session.config import Resume
from psvit_ray.runtime.session.signals import StopSignal, catch_stop_signals
from psvit_ray.search.record import differences
from psvit_ray.storage import json_files
from psvit_ray.storage.folder import Folder
from psvit_ray.text.durations import time_left
from psvit_ray.text.secrets import without_secrets

SAY_EVERY_S = 5.0
LISTEN_EVERY_S = 0.5


class PrepareInterrupted(Exception):
    """A signal interrupted the run; the message says how far it came. What is written stays."""

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


def check_out(out: Folder, identity: dict[str, Any], resume: Resume) -> ShardManifest | None:
    """The manifest of shards that are complete already; None otherwise. Raises ValueError where
    `out` holds something other than a part of these shards, or anything at all without `resume`."""
    there = out.names()
    remedy = f"delete {out} to begin anew"
    plan = TypeAdapter(dict[str, Any])
    begun = json_files.read_json(out / PROGRESS, PLAN, plan, "the plan of shards", remedy)
    ended = read_manifest(out) if SHARD_MANIFEST in there else None
    if resume == "never" and there:
        hint = "; add --resume to go on with it" if begun or ended else ""
        raise ValueError(f"out must be new or empty, got {out}, which holds {there[0]!r}{hint}")
    if ended:
        earlier = ended.identity
    elif begun is not None:
        earlier = begun
    elif resume == "must" or there:
        raise ValueError(f"out must hold shards to go on with, got {out}")
    else:
        return None
    if changed := differences(earlier, json.loads(json.dumps(identity))):
        raise ValueError(f"resume must not change what {out} is: {'; '.join(changed)}")
    return ended


def prepare(
    source: Source,
    out: Folder,
    identity: dict[str, Any],
    settings: ShardSettings,
    *,
    workers: int = 0,
    max_bad_fraction: float,
    say: Callable[[str], None] = print,
) -> ShardManifest:
    """Writes the shards that are not there yet, `workers` at a time, and the manifest last.

    With 0 workers as many run as the cluster has CPUs. Raises ValueError where more than
    `max_bad_fraction` of the images are bad, and where the data cannot be read or the shards not be
    written; what is there stays. Raises PrepareInterrupted after a signal.
    """
    try:
        planned = _answer(_plan.remote(source, settings))
        (out / PROGRESS).write(PLAN, json.dumps(identity, indent=2).encode())
        written = shard_file.finished_shards(out, (shard.name for shard in planned))
        todo = [shard for shard in planned if shard.name not in written]
        progress = _Progress(planned, todo, say)
        _check_bad(planned, written, max_bad_fraction, out)
        with catch_stop_signals() as stop_signal:
            for shard, result in _write_all(source, out, settings, todo, workers, stop_signal):
                written[shard.name] = result
                progress.step(shard)
                _check_bad(planned, written, max_bad_fraction, out)
        if stop_signal.number and len(written) < len(planned):
            message = f"{stop_signal.name}: {len(written)} of {len(planned)} shards are written"
            raise PrepareInterrupted(message, stop_signal.number)
        return _finish(source, out, identity, planned, written)
    except OSError as error:
        raise ValueError(
            f"data cannot be read, or out not be written: {without_secrets(str(error))}; "
            "--resume goes on"
        ) from None


def _write_all(
    source: Source,
    out: Folder,
    settings: ShardSettings,
    todo: Sequence[Shard],
    workers: int,
    stop_signal: StopSignal,
) -> Iterator[tuple[Shard, WrittenShard]]:
    """Writes shards, and yields each as it is done, until a signal comes.

    A task gets the part of a table that it writes. No more tasks wait than keep the workers busy:
    what they are given lies in Ray's memory.
    """
    table_of = source.tables
    waiting = deque(todo)
    running: dict[Any, Shard] = {}
    while (waiting or running) and not stop_signal.number:
        while waiting and len(running) < (workers or 2 * _num_cpus()):
            shard = waiting.popleft()
            table = table_of[shard.split].take(shard.indices)
            ref = _write.remote(out, shard.name, table, source.class_names, settings)
            running[ref] = shard
        done, _ = ray.wait(list(running), timeout=LISTEN_EVERY_S)
        for ref in done:
            yield running.pop(ref), _answer(ref)


def _num_cpus() -> int:
    """Number of CPUs that the cluster has now: with an autoscaler it grows by what waits."""
    return max(1, int(ray.cluster_resources().get("CPU", 0)))


def _task(function: Callable[..., Any]) -> Any:
    """A Ray task that returns an error as its result, as Ray prints at length what is raised.

    The process that runs it imports what `function` needs, not what this module does.
    """

    def answer(*args: Any) -> Any:
        try:
            return function(*args)
        except (OSError, ValueError) as error:
            return error

    return ray.remote(num_cpus=1)(answer)


_plan, _write = _task(plan.plan), _task(shard_file.write_shard)


def _answer(ref: Any) -> Any:
    answer = ray.get(ref)
    if isinstance(answer, Exception):
        raise answer
    return answer


def _check_bad(
    planned: Sequence[Shard], written: dict[str, WrittenShard], max_bad_fraction: float, out: Folder
) -> None:
    images = sum(len(shard.indices) for shard in planned)
    bad = _bad_images(written)
    if len(bad) > max_bad_fraction * images:
        seen = sum(len(shard.bad) + shard.rows for shard in written.values())
        quarantine.add_to_quarantine(out, bad)
        raise ValueError(
            f"data has {len(bad):,} images that cannot be used among the first {seen:,} of "
            f"{images:,}, more than max_bad_fraction={max_bad_fraction:g}; "
            f"{out / quarantine.QUARANTINE} names them"
        )


def _bad_images(written: dict[str, WrittenShard]) -> list[quarantine.BadImageRow]:
    return [row for shard in written.values() for row in shard.bad]


def _finish(
    source: Source,
    out: Folder,
    identity: dict[str, Any],
    planned: Sequence[Shard],
    written: dict[str, WrittenShard],
) -> ShardManifest:
    manifest = ShardManifest(
        identity=identity,
        class_names=source.class_names,
        splits={
            split: _split_manifest(
                {s.name: written[s.name] for s in planned if s.split == split}, source.class_names
            )
            for split in source.tables
        },
    )
    quarantine.add_to_quarantine(out, _bad_images(written))
    out.delete_leftovers([*written, SHARD_MANIFEST, quarantine.QUARANTINE])
    out.write(SHARD_MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=2).encode())
    (out / PROGRESS).delete_files([*map(shard_file.note_name, written), PLAN])
    return manifest


def _split_manifest(written: dict[str, WrittenShard], class_names: Sequence[str]) -> SplitManifest:
    counts = zip(*(shard.classes for shard in written.values()), strict=True)
    return SplitManifest(
        rows=sum(shard.rows for shard in written.values()),
        bytes=sum(shard.bytes for shard in written.values()),
        bad_images=sum(len(shard.bad) for shard in written.values()),
        classes=dict(zip(class_names, map(sum, counts), strict=True)),
        files={
            name: ShardFile(rows=shard.rows, bytes=shard.bytes, sha256=shard.sha256)
            for name, shard in written.items()
        },
    )


class _Progress:
    """Prints a line about progress every few seconds."""

    def __init__(
        self, planned: Sequence[Shard], todo: Sequence[Shard], say: Callable[[str], None]
    ) -> None:
        self._total, self._left = len(planned), len(todo)
        self._images_left = sum(len(shard.indices) for shard in todo)
        self._images, self._say = 0, say
        self._began = self._last_line_at = time.monotonic()
        if done := self._total - self._left:
            say(f"{done} of {self._total} shards are there already")

    def step(self, shard: Shard) -> None:
        """Counts a shard that is written."""
        self._left -= 1
        self._images += len(shard.indices)
        self._images_left -= len(shard.indices)
        now = time.monotonic()
        if now - self._last_line_at < SAY_EVERY_S and self._left:
            return
        self._last_line_at = now
        elapsed_s = now - self._began
        left = time_left(elapsed_s, done=self._images, remaining=self._images_left)
        self._say(
            f"{self._total - self._left} of {self._total} shards, "
            f"{self._images / elapsed_s:,.0f} images/s, {left}"
        )
