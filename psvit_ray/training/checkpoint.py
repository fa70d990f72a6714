"""The whole state of a run in a storage, so that it goes on as if nothing had happened.

A checkpoint is a folder: `run.json` (configuration, classes, preprocessing), `model.safetensors`,
`ema.safetensors` where weights are averaged, `state.pt` (optimizer, how far, curve) and, written
last, `manifest.json` with the hash of each. Nothing in it executes when read. The learning rate and
all randomness are functions of the step, so neither is stored.

A folder counts once its manifest is there. No file that a manifest names is ever written over: the
state at the end of an epoch has another name than that of the same step before its evaluation.
Folders of other names, and files of other names in these, are somebody else's and left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import pickle
import re
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
from pydantic import Field, FiniteFloat, TypeAdapter
from safetensors import SafetensorError
from torch import Tensor

from psvit_ray.arch.spec import Value
from psvit_ray.data.loading.transforms import Preprocessing
from psvit_ray.storage import json_files
from psvit_ray.storage.folder import Folder
from psvit_ray.text.secrets import without_secrets
from psvit_ray.training.config import Configuration

MANIFEST = "manifest.json"
UNFINISHED = "unfinished"  # there while a folder is written: without a manifest it never counted
FILES = (MANIFEST, "run.json", "model.safetensors", "ema.safetensors", "state.pt", UNFINISHED)
"""All that a checkpoint holds, in the order in which it is deleted."""
CHECKPOINT_NAME = re.compile(r"step-(\d{9,})(?:-epoch-(\d{4,}))?")
"""Name of a checkpoint's folder. Older versions gave no epoch."""
logger = logging.getLogger(__name__)

StrictCount = Annotated[int, Field(strict=True, ge=0)]


class FileInfo(Value):
    """What the manifest says of a file."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: StrictCount


class CheckpointManifest(Value):
    """`manifest.json` of a checkpoint."""

    step: StrictCount
    epoch: StrictCount
    top1: FiniteFloat | None = None
    """On the hold-out, in percent."""
    files: dict[Literal["run.json", "model.safetensors", "ema.safetensors", "state.pt"], FileInfo]


_MANIFEST = TypeAdapter(CheckpointManifest)


class BrokenCheckpoint(ValueError):
    """A checkpoint that is not what was written."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written."""


class RunInfo(Value):
    """What of a run does not change while it runs."""

    configuration: Configuration
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    data_digest: str = ""
    """Names the images of the data, as in `SplitFile.digest`; empty in a run of before it was
    kept."""


@dataclass(frozen=True)
class Checkpoint:
    run: RunInfo
    epoch: int
    """Epochs that are done, evaluation included."""
    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    curve: list[dict[str, Any]]
    """What was reported up to here: of a report that nobody took down, this is the copy."""
    progress: dict[str, Any]
    """Of the epoch that is under way."""

    @property
    def name(self) -> str:
        return f"step-{self.step:09d}-epoch-{self.epoch:04d}"

    @property
    def evaluated(self) -> dict[str, Tensor]:
        """The weights that metrics speak of: the averaged ones where there are any."""
        return self.model if self.ema is None else self.ema

    def save(self, folder: Folder, *, top1: float | None = None) -> None:
        """Replaces what stands in the folder; it counts once it is whole. `top1` on the hold-out,
        in percent. Raises CheckpointError, with the folder and the bytes, where it cannot be
        written."""
        size = 0
        try:
            folder.write(UNFINISHED, b"")
            folder.delete(MANIFEST)
            hashes = {}
            for name, content in self._files():
                size += len(content)
                folder.write(name, content)
                hashes[name] = {"sha256": _sha256(content), "bytes": len(content)}
            manifest = {"step": self.step, "epoch": self.epoch, "top1": top1, "files": hashes}
            # Synced after all the others, and before an older checkpoint is deleted.
            folder.write(MANIFEST, json.dumps(manifest, indent=1).encode())
            folder.delete(UNFINISHED)
        except OSError as error:
            with contextlib.suppress(OSError):
                folder.delete_files(FILES)
            reason = error.strerror or without_secrets(str(error))
            raise CheckpointError(
                f"checkpoint cannot be written to {folder}: {reason} (after {size:,} bytes)"
            ) from error

    def _files(self) -> Any:
        """Names and contents, one after the other: they are large."""
        yield "run.json", self.run.model_dump_json(indent=1).encode()
        yield "model.safetensors", safetensors.torch.save(self.model)
        if self.ema is not None:
            yield "ema.safetensors", safetensors.torch.save(self.ema)
        state = io.BytesIO()
        fields = ("epoch", "step", "optimizer", "curve", "progress")
        torch.save({name: getattr(self, name) for name in fields}, state)
        yield "state.pt", state.getvalue()


def load_checkpoint(folder: Folder) -> Checkpoint:
    """Raises BrokenCheckpoint, with the reason, for one that is not as it was written."""
    files = _checked_files(folder)
    try:
        ema = files.get("ema.safetensors")
        return Checkpoint(
            run=RunInfo.model_validate_json(files["run.json"]),
            model=safetensors.torch.load(files["model.safetensors"]),
            ema=None if ema is None else safetensors.torch.load(ema),
            **torch.load(io.BytesIO(files["state.pt"]), map_location="cpu", weights_only=True),
        )
    except (
        *(KeyError, TypeError, ValueError, RuntimeError, EOFError),
        *(SafetensorError, pickle.UnpicklingError),
    ) as error:
        reason = str(error).partition("\n")[0]
        raise BrokenCheckpoint(f"{folder} is no checkpoint of this version: {reason}") from error


def _checked_files(folder: Folder) -> dict[str, bytes]:
    """The files that the manifest names, as it has them."""
    files: dict[str, bytes] = {}
    for name, entry in _manifest(folder).files.items():
        content = _content(folder, name)
        if content is None:
            raise BrokenCheckpoint(f"{folder} is broken: {name} is missing")
        if len(content) != entry.bytes:
            raise BrokenCheckpoint(
                f"{folder} is broken: {name} has {len(content):,} of {entry.bytes:,} bytes"
            )
        if _sha256(content) != entry.sha256:
            raise BrokenCheckpoint(
                f"{folder} is broken: {name} has another sha256 than was written"
            )
        files[name] = content
    return files


def _manifest(folder: Folder) -> CheckpointManifest:
    try:
        manifest = json_files.read_json(folder, MANIFEST, _MANIFEST, "that of a checkpoint")
    except json_files.UnreadableFile as error:
        raise BrokenCheckpoint(f"{folder} is broken: {error}") from None
    if manifest is None:
        raise BrokenCheckpoint(f"{folder} is broken: {MANIFEST} is missing")
    return manifest


def _content(folder: Folder, name: str) -> bytes | None:
    try:
        return json_files.content_of(folder, name)
    except json_files.UnreadableFile as error:
        raise BrokenCheckpoint(f"{folder} is broken: {error}") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def checkpoint_names(folder: Folder) -> list[str]:
    """Names of the checkpoints in a folder, in the order of their steps. Broken ones are among
    them; what a writer that died has left is not, nor is what somebody else has put there."""
    names = [name for name in folder.names() if CHECKPOINT_NAME.fullmatch(name)]
    return sorted((name for name in names if _is_finished(folder, name)), key=_step_and_epoch)


def _is_finished(folder: Folder, name: str) -> bool:
    try:
        files = {*(folder / name).names()}.intersection(FILES)
    except NotADirectoryError:
        return False
    if MANIFEST in files:
        return not _is_copy(folder, name)
    return bool(files) and UNFINISHED not in files  # then its manifest was lost


def _is_copy(folder: Folder, name: str) -> bool:
    """Whether somebody gave a checkpoint another's name."""
    try:
        manifest = _manifest(folder / name)
    except BrokenCheckpoint:
        return False
    step, epoch = _step_and_epoch(name)
    return step != manifest.step or epoch not in (0, manifest.epoch)


def _step_and_epoch(name: str) -> tuple[int, int]:
    match = CHECKPOINT_NAME.fullmatch(name)
    assert match
    return int(match[1]), int(match[2] or 0)


class CheckpointManager:
    """The checkpoints of one run: the newest `keep` and the best stay. Written by a thread of its
    own, one at a time; close it."""

    def __init__(self, folder: Folder, *, keep: int = 2) -> None:
        self._folder, self._keep = folder, keep
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] = Future()
        self._writing.set_result(None)
        self._broken: set[str] = set()
        self._last = (-1, -1)

    def put(self, checkpoint: Checkpoint, *, top1: float | None = None) -> Future[None]:
        """Returns at once if the one before is written, or if this one is there already; what it
        returns is done when this one is written, or has failed. Raises CheckpointError if the one
        before failed."""
        self._writing.result()
        if (checkpoint.step, checkpoint.epoch) == self._last:
            there: Future[None] = Future()
            there.set_result(None)
            return there
        self._last = checkpoint.step, checkpoint.epoch
        self._writing = self._writer.submit(self._write, checkpoint, top1)
        return self._writing

    def close(self) -> None:
        """Waits for the last. Raises CheckpointError if it failed."""
        try:
            self._writing.result()
        finally:
            self._writer.shutdown()

    def newest(self) -> Checkpoint | None:
        """None if there is none. One that is broken is passed over with a warning.

        Raises BrokenCheckpoint if there are some, and none can be read.
        """
        reasons = []
        for name in reversed(checkpoint_names(self._folder)):
            try:
                found = load_checkpoint(self._folder / name)
            except BrokenCheckpoint as error:
                self._broken.add(name)
                reasons.append(str(error))
                continue
            self._last = found.step, found.epoch
            if reasons:
                logger.warning("%s; going on from %s", "; ".join(reasons), name)
            return found
        if reasons:
            raise BrokenCheckpoint(
                f"no checkpoint can be read: {'; '.join(reasons)}; restore one from a copy, or "
                f"delete {self._folder} to begin anew"
            )
        return None

    def best(self) -> Checkpoint | None:
        """By top-1 on the hold-out; None if none has one. Raises BrokenCheckpoint."""
        name = self._best(checkpoint_names(self._folder))
        return load_checkpoint(self._folder / name) if name else None

    def named(self, name: str) -> Checkpoint:
        """Raises BrokenCheckpoint."""
        return load_checkpoint(self._folder / name)

    def _best(self, names: list[str]) -> str | None:
        scores = {}
        for place, name in enumerate(names):
            with contextlib.suppress(BrokenCheckpoint):
                if (top1 := _manifest(self._folder / name).top1) is not None:
                    scores[name] = (top1, place)
        return max(scores, key=lambda name: scores[name], default=None)

    def _write(self, checkpoint: Checkpoint, top1: float | None) -> None:
        checkpoint.save(self._folder / checkpoint.name, top1=top1)
        self._broken.discard(checkpoint.name)
        names = [name for name in checkpoint_names(self._folder) if name not in self._broken]
        # Of a step that was saved twice the later one has all that the earlier has.
        newest = {_step_and_epoch(name)[0]: name for name in names}
        kept = {*[*newest.values()][-self._keep :], self._best(names)}
        for name in self._folder.names():
            if (
                name not in kept
                and CHECKPOINT_NAME.fullmatch(name)
                and not _is_copy(self._folder, name)
            ):
                try:
                    (self._folder / name).delete_files(FILES)
                except OSError as error:  # the new one is saved all the same
                    logger.warning("%s is not needed, but stays: %s", self._folder / name, error)


def last_checkpoint(folder: Folder) -> Checkpoint:
    """Of a training that has ended."""
    with contextlib.closing(CheckpointManager(folder)) as kept:
        found = kept.newest()
    assert found, f"a training that has ended has a checkpoint in {folder}"
    return found
