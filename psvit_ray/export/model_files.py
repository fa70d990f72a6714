"""The files of an exported folder by their names. Importing this loads no torch."""

from __future__ import annotations

from psvit_ray.storage import files
from psvit_ray.storage.folder import Folder

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
CARD = "README.md"
ONNX = "model.onnx"
TORCH_EXPORT = "model.pt2"


def read_config(folder: Folder) -> bytes:
    """The content of `config.json`. Raises ValueError where there is no exported model."""
    content = read_file(folder, CONFIG)
    if content is None:
        hint = "; psvit export makes one of a run" if read_file(folder, "search.json") else ""
        raise ValueError(f"model must be an exported folder, got {folder}, without {CONFIG}{hint}")
    return content


def read_file(folder: Folder, name: str) -> bytes | None:
    """The content of a file; None if there is none. Raises ValueError where it cannot be read."""
    try:
        return folder.read(name)
    except OSError as error:
        raise ValueError(
            f"model must be readable, got {folder}: {files.error_text(error)}"
        ) from None
