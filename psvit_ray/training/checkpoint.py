"""Checkpoints: the whole state of a run, from which it resumes bit for bit.

A checkpoint is a folder: `run.json` (configuration, classes, preprocessing), `model.safetensors`,
`ema.safetensors` if weights are averaged, `state.pt` (optimizer, position, curve) and, written
last, `manifest.json` with the hash of each. Nothing in it executes when read. The learning rate and
all randomness are functions of the step, so neither is stored.

A folder is a checkpoint once its manifest is written. No file that a manifest names is ever written
over: the state at the end of an epoch has another name than that of the same step before its
evaluation. Folders with other names, and other files in these, belong to somebody else and stay.
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
UNFINISHED = "unfinished"  # marks a folder that is being written and is no checkpoint yet
FILES = (MANIFEST, "run.json", "model.safetensors", "ema.safetensors", "state.pt", UNFINISHED)
"""All files of a checkpoint, in the order in which they are deleted."""
CHECKPOINT_NAME = re.compile(r"step-(\d{9,})(?:-epoch-(\d{4,}))?")
"""Names of checkpoint folders. Older versions wrote no epoch."""
logger = logging.getLogger(__name__)

StrictCount = Annotated[int, Field(strict=True, ge=0)]


class FileInfo(Value):
    """A file's entry in the manifest."""

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    bytes: StrictCount


class CheckpointManifest(Value):
    """The content of a checkpoint's `manifest.json`."""

    step: StrictCount
    """Completed optimizer steps."""
    epoch: StrictCount
    """Completed epochs."""
    score: FiniteFloat | None = None
    """Ranking metric on the hold-out, higher where it is better; None if it was not measured."""
    files: dict[Literal["run.json", "model.safetensors", "ema.safetensors", "state.pt"], FileInfo]
    """The checkpoint's other files."""


_MANIFEST = TypeAdapter(CheckpointManifest)


class BrokenCheckpoint(ValueError):
    """A checkpoint's files are missing or were changed."""


class CheckpointError(RuntimeError):
    """A checkpoint could not be written."""


class RunInfo(Value):
    """The content of `run.json`: what stays the same during a run."""

    configuration: Configuration
    class_names: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    preprocessing: Preprocessing
    data_digest: str = ""
    """Digest of the images of the data, as `SplitFile.digest`; empty in runs of older versions."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a step, in host memory."""

    run: RunInfo
    epoch: int
    """Completed epochs, evaluation included."""
    step: int
    """Completed optimizer steps."""
    model: dict[str, Tensor]
    """State dict of the network."""
    ema: dict[str, Tensor] | None
    """State dict of the averaged weights; None if weights are not averaged."""
    optimizer: dict[str, Any]
    """State dict of the optimizer."""
    curve: list[dict[str, Any]]
    """Reports of all completed epochs, in case one was not recorded before a crash."""
    progress: dict[str, Any]
    """Fields of `Progress` for the unfinished epoch."""

    @property
    def name(self) -> str:
        """Name of the checkpoint's folder."""
        return f"step-{self.step:09d}-epoch-{self.epoch:04d}"

    @property
    def evaluated(self) -> dict[str, Tensor]:
        """The weights that are evaluated: the averaged ones, if there are any."""
        return self.model if self.ema is None else self.ema

    def save(self, folder: Folder, *, score: float | None = None) -> None:
        """Writes the checkpoint to `folder`, in place of one that is there. `score` is that of
        `CheckpointManifest`.

        Raises CheckpointError, with the folder and the bytes written, if it cannot be written.
        """
        size = 0
        try:
            folder.write(UNFINISHED, b"")
            folder.delete(MANIFEST)
            hashes = {}
            for name, content in self._files():
                size += len(content)
                folder.write(name, content)
                hashes[name] = {"sha256": _sha256(content), "bytes": len(content)}
            manifest = {"step": self.step, "epoch": self.epoch, "score": score, "files": hashes}
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
        """Yields names and contents one at a time, as they are large."""
        yield "run.json", self.run.model_dump_json(indent=1).encode()
        yield "model.safetensors", safetensors.torch.save(self.model)
        if self.ema is not None:
            yield "ema.safetensors", safetensors.torch.save(self.ema)
        state = io.BytesIO()
        fields = ("epoch", "step", "optimizer", "curve", "progress")
        torch.save({name: getattr(self, name) for name in fields}, state)
        yield "state.pt", state.getvalue()


def load_checkpoint(folder: Folder) -> Checkpoint:
    """The checkpoint in a folder. Raises BrokenCheckpoint, with the reason, if it is incomplete or
    was changed."""
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
    """Contents of the files that the manifest names. Raises BrokenCheckpoint if one differs from
    it."""
    files: dict[str, bytes] = {}
    for name, entry in _manifest(folder).files.items():
        content = _read_file(folder, name)
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


def _read_file(folder: Folder, name: str) -> bytes | None:
    try:
        return json_files.content_of(folder, name)
    except json_files.UnreadableFile as error:
        raise BrokenCheckpoint(f"{folder} is broken: {error}") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def checkpoint_names(folder: Folder) -> list[str]:
    """Names of the checkpoints in a folder, in the order of their steps, also of broken ones; not
    those that were never completed, and not other folders."""
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
    """Whether somebody copied a checkpoint to another's name."""
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
    """The checkpoints of one run, of which the newest `keep` and the best are kept. A thread writes
    them one at a time; close the manager to wait for it."""

    def __init__(self, folder: Folder, *, keep: int = 2) -> None:
        self._folder, self._keep = folder, keep
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] = Future()
        self._writing.set_result(None)
        self._broken: set[str] = set()
        self._last = (-1, -1)

    def put(self, checkpoint: Checkpoint, *, score: float | None = None) -> Future[None]:
        """Starts to write a checkpoint, once the one before is written, and returns a future of
        that; a checkpoint that is written already is not written again. `score` is that of
        `CheckpointManifest`.

        Raises CheckpointError if the checkpoint before could not be written; the future raises it
        for this one.
        """
        self._writing.result()
        if (checkpoint.step, checkpoint.epoch) == self._last:
            written: Future[None] = Future()
            written.set_result(None)
            return written
        self._last = checkpoint.step, checkpoint.epoch
        self._writing = self._writer.submit(self._write, checkpoint, score)
        return self._writing

    def close(self) -> None:
        """Waits for the last checkpoint. Raises CheckpointError if it could not be written."""
        try:
            self._writing.result()
        finally:
            self._writer.shutdown()

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that can be read, with a warning about broken ones; None if there
        are no checkpoints.

        Raises BrokenCheckpoint if there are some and none can be read.
        """
        reasons = []
        for name in reversed(checkpoint_names(self._folder)):
            try:
                checkpoint = load_checkpoint(self._folder / name)
            except BrokenCheckpoint as error:
                self._broken.add(name)
                reasons.append(str(error))
                continue
            self._last = checkpoint.step, checkpoint.epoch
            if reasons:
                logger.warning("%s; going on from %s", "; ".join(reasons), name)
            return checkpoint
        if reasons:
            raise BrokenCheckpoint(
                f"no checkpoint can be read: {'; '.join(reasons)}; restore one from a copy, or "
                f"delete {self._folder} to begin anew"
            )
        return None

    def best(self) -> Checkpoint | None:
        """The checkpoint of the best score on the hold-out; None if none was evaluated. Raises
        BrokenCheckpoint."""
        name = self._best(checkpoint_names(self._folder))
        return load_checkpoint(self._folder / name) if name else None

    def named(self, name: str) -> Checkpoint:
        """The checkpoint called `name`. Raises BrokenCheckpoint."""
        return load_checkpoint(self._folder / name)

    def _best(self, names: list[str]) -> str | None:
        scores = {}
        for position, name in enumerate(names):
            with contextlib.suppress(BrokenCheckpoint):
                if (score := _manifest(self._folder / name).score) is not None:
                    scores[name] = (score, position)
        return max(scores, key=lambda name: scores[name], default=None)

    def _write(self, checkpoint: Checkpoint, score: float | None) -> None:
        checkpoint.save(self._folder / checkpoint.name, score=score)
        self._broken.discard(checkpoint.name)
        names = [name for name in checkpoint_names(self._folder) if name not in self._broken]
        # Of two checkpoints of one step the later holds all that the earlier does.
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
    """The last checkpoint of a run that has ended, in its folder of checkpoints."""
    with contextlib.closing(CheckpointManager(folder)) as manager:
        checkpoint = manager.newest()
    assert checkpoint, f"a training that has ended has a checkpoint in {folder}"
    return checkpoint
