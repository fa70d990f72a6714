"""The network of a search's winner as a model: a folder in the search's, and in MLflow."""

from __future__ import annotations

import tempfile
from contextlib import closing
from pathlib import Path

from psvit_ray.export import model_folder
from psvit_ray.export.model_files import CONFIG
from psvit_ray.runtime.oneshot.finalists import MODEL, export_to
from psvit_ray.runtime.session.session import Session
from psvit_ray.runtime.tracking import registry
from psvit_ray.runtime.train.trainer import CHECKPOINTS
from psvit_ray.search.record import Record
from psvit_ray.text.secrets import without_secrets
from psvit_ray.training.checkpoint import CheckpointManager


def publish(session: Session, winner: Record, register_as: str) -> list[str]:
    """Exports the winner's last checkpoint to `model/`, logs it as a model of the winner's run and
    makes it a version of `register_as`, where that is given; what a search before a resume did of
    this stays. Returns lines for the terminal, which also say what failed: no search is lost by
    it."""
    folder, checkpoints = session.folder / MODEL, session.folder / CHECKPOINTS / winner.key
    try:
        if not _is_exported(session, winner):
            with closing(CheckpointManager(checkpoints)) as kept:
                checkpoint = kept.newest()
            if checkpoint is None:
                raise ValueError(f"it has no checkpoint in {checkpoints}")
            known = {"run_id": winner.run_id, "test_top1": winner.test_top1}
            export_to(folder, checkpoint, session, **known)
        lines = [f"The winner as a model: {folder}"]
        if winner.run_id:
            lines += _log(session, winner, register_as)
        return lines
    except (ValueError, OSError) as error:
        return [f"The winner is no model yet: {without_secrets(str(error))}"]


def _is_exported(session: Session, winner: Record) -> bool:
    folder = session.folder / MODEL
    if folder.read(CONFIG) is None:
        return False
    config = model_folder.load_model_folder(folder.uri).config
    return (config.spec, config.training.run_id) == (winner.configuration.spec, winner.run_id)


def _log(session: Session, winner: Record, register_as: str) -> list[str]:
    uri, folder = session.experiment.tracking_uri, session.folder / MODEL
    logged = registry.logged_model(uri, winner.run_id)
    with tempfile.TemporaryDirectory() as work:
        if logged is None:
            for name in folder.names():
                Path(work, name).write_bytes(folder.read(name) or b"")
            exported = model_folder.load_model_folder(work)
            logged = registry.log_model(exported, Path(work), tracking_uri=uri)
    if not register_as or registry.is_registered(uri, logged, register_as):
        return []
    version = registry.add_version(logged, tracking_uri=uri, name=register_as, alias="")
    return [f"registered: {register_as}, version {version}"]
