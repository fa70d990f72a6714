"""The fields of `config.json` that timm reads, so that an exported folder is also one of timm's:
`timm.create_model("local-dir:FOLDER", pretrained=True)` after `import psvit_ray.model`.
"""

from __future__ import annotations

from typing import Any

from psvit_ray.export.config import ExportConfig
from psvit_ray.model import entrypoints


def timm_fields(config: ExportConfig) -> dict[str, Any]:
    """timm's description of an exported model, as its `save_for_hf` writes it."""
    spec = config.spec
    return {
        "architecture": "psvit",
        "num_classes": spec.num_classes,
        "num_features": spec.stages[-1].embed_dim,
        "global_pool": "token" if spec.pooling == "1d" else "avg",
        "label_names": config.class_names,
        "model_args": {"spec": spec.model_dump(mode="json", exclude_defaults=True)},
        "pretrained_cfg": pretrained_cfg(config),
    }


def pretrained_cfg(config: ExportConfig) -> dict[str, Any]:
    """timm's description of the weights and of their images."""
    given = config.preprocessing
    return {
        **entrypoints.CONFIG,
        **entrypoints.image_config(config.spec),
        "interpolation": given.interpolation,
        "crop_pct": given.crop_pct,
        "crop_mode": "center",
        "mean": given.mean,
        "std": given.std,
    }
