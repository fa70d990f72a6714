"""The presets in timm's registry: `timm.create_model("psvit_2d_tiny", ...)`."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from psvit_ray.arch.presets import PRESETS
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.model.psvit import PSViT

PRESET_NAMES = [name for name in PRESETS if name.startswith("psvit_")]

# As timm's DeiT, but with `fixed_input_size`, as a spec has one image size.
default_cfgs = generate_default_cfgs(
    {
        name: {
            "url": "",
            "num_classes": PRESETS[name].num_classes,
            "input_size": (PRESETS[name].in_chans, PRESETS[name].img_size, PRESETS[name].img_size),
            "pool_size": None,
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "fixed_input_size": True,
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        for name in PRESET_NAMES
    }
)


def _create(name: str, pretrained: bool = False, **kwargs: Any) -> Any:
    if pretrained:
        raise ValueError(
            f"no pretrained weights are published for {name}; use pretrained=False (your own "
            "weights: checkpoint_path=...)"
        )
    spec = PRESETS[name]
    # Features of all stages by default; after a 1-D pool there is no grid to return.
    features = {
        "feature_cls": "getter",
        "out_indices": kwargs.pop("out_indices", len(spec.stages)),
        "output_fmt": kwargs.pop("output_fmt", "NLC" if spec.pooling == "1d" else "NCHW"),
    }
    return build_model_with_cfg(
        partial(_build, spec), name, pretrained, feature_cfg=features, **kwargs
    )


def _build(
    spec: ArchSpec,
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    global_pool: str | None = None,
    **kwargs: Any,
) -> PSViT:
    """The network of `spec` with the changes that timm's `create_model` allows: size of image and
    patch, channels, classes."""
    sides = {img_size} if isinstance(img_size, int) else set(img_size)
    if len(sides) != 1:
        raise ValueError(f"img_size must be one side of a square image, got {img_size}")
    changes: dict[str, Any] = {"img_size": sides.pop()}
    changes |= {k: kwargs.pop(k) for k in ("in_chans", "patch_size") if k in kwargs}
    if num_classes > 0:
        changes["num_classes"] = num_classes
    model = PSViT(ArchSpec.model_validate({**dict(spec), **changes}), **kwargs)
    if num_classes == 0 or global_pool is not None:
        model.reset_classifier(num_classes, global_pool)
    return model


def _register(name: str) -> None:
    def entry_point(pretrained: bool = False, **kwargs: Any) -> Any:
        return _create(name, pretrained, **kwargs)

    # timm registers a function under its own name.
    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = f"{name}: {PRESETS[name].pattern}"
    globals()[name] = register_model(entry_point)


for _name in PRESET_NAMES:
    _register(_name)
