"""PSViT: vision transformers with searched token pooling and attention sharing, on Ray."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

__all__ = ["__version__", "load"]

__version__ = "0.1.0"


def load(folder: str | Path) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
    """The model of an exported folder, in evaluation mode, and its transform: any picture of Pillow
    to normalised float32 (C, S, S). The folder may be a URI such as `s3://bucket/model`.

    Raises ValueError where there is none, or it is not as it was written.
    """
    from psvit_ray.export import model_folder

    exported = model_folder.load_model_folder(folder)
    return exported.model, exported.transform
