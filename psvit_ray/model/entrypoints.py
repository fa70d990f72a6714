"""PSViTs in timm's registry: any by its spec, `timm.create_model("psvit", spec=...)`, and the
presets by their names."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor

from psvit_ray.arch.presets import PRESETS, preset
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.model.psvit import PSViT, square_side

PRESET_NAMES = [name for name in PRESETS if name.startswith("psvit_")]


def image_config(spec: ArchSpec) -> dict[str, Any]:
    """What timm's `pretrained_cfg` says of the images and classes of a spec."""
    return {
        "input_size": (spec.in_chans, spec.img_size, spec.img_size),
        "num_classes": spec.num_classes,
    }


# As timm's DeiT, but with `fixed_input_size`, as a spec has one image size.
CONFIG: dict[str, Any] = {
    "pool_size": None,
    "crop_pct": 0.9,
    "interpolation": "bicubic",
    "fixed_input_size": True,
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "patch_embed.proj",
    "classifier": "head",
}
_configs: dict[str, dict[str, Any] | PretrainedCfg] = {
    name: {**CONFIG, **image_config(PRESETS[name])} for name in PRESET_NAMES
}
# Images and classes are those of the spec, which only the entry point knows.
_configs["psvit"] = {**CONFIG, "input_size": None, "num_classes": None}
default_cfgs = generate_default_cfgs(_configs)


@register_model
def psvit(
    pretrained: bool = False,
    *,
    spec: ArchSpec | dict[str, Any] | str = "psvit_2d_tiny",
    pattern: str | None = None,
    pretrained_cfg: PretrainedCfg | dict[str, Any] | str | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Any PSViT: `timm.create_model("psvit", spec=...)`.

    Args:
        pretrained: Load the weights that `pretrained_cfg` names.
        spec: Architecture, as a value, its JSON as text or as a dict, or the name of a preset.
        pattern: Pooling and sharing in place of the spec's, such as `2-2|2-1-2|2`.
        pretrained_cfg: timm's description of the weights and their images.
        pretrained_cfg_overlay: Entries in place of those of `pretrained_cfg`.
        kwargs: Other fields of the spec, and arguments of `PSViT`.

    Raises ValueError for what no spec describes.
    """
    arch = _read_spec(spec)
    if pattern is not None:
        arch = arch.with_pattern(pattern)
    if isinstance(pretrained_cfg, PretrainedCfg):
        pretrained_cfg = pretrained_cfg.to_dict()
    described = pretrained_cfg if isinstance(pretrained_cfg, dict) else {}
    images = {name: x for name, x in image_config(arch).items() if name not in described}
    # timm would take what is not given from `pretrained_cfg`, which may be of another spec.
    for name in ("img_size", "in_chans", "num_classes"):
        kwargs.setdefault(name, getattr(arch, name))
    return _create(
        "psvit",
        arch,
        pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay=images | (pretrained_cfg_overlay or {}),
        **kwargs,
    )


def _read_spec(spec: ArchSpec | dict[str, Any] | str) -> ArchSpec:
    if isinstance(spec, str):
        return ArchSpec.from_json(spec) if spec.lstrip().startswith("{") else preset(spec)
    return ArchSpec.model_validate(spec)


def _create(name: str, spec: ArchSpec, pretrained: bool, **kwargs: Any) -> Any:
    # Features of all stages by default; after a 1-D pool there is no grid to return.
    features = {
        "feature_cls": "getter",
        "out_indices": kwargs.pop("out_indices", len(spec.stages)),
        "output_fmt": kwargs.pop("output_fmt", "NLC" if spec.pooling == "1d" else "NCHW"),
    }
    return build_model_with_cfg(
        partial(_build, spec),
        name,
        pretrained,
        feature_cfg=features,
        pretrained_filter_fn=checkpoint_filter_fn,
        **kwargs,
    )


def _build(
    spec: ArchSpec,
    *,
    img_size: int | tuple[int, int] = 224,
    num_classes: int = 1000,
    global_pool: str | None = None,
    **kwargs: Any,
) -> PSViT:
    """The network of `spec` with the changes that timm's `create_model` allows: any field but the
    stages, and no classes."""
    changes: dict[str, Any] = {"img_size": square_side("img_size", img_size)}
    fields = ArchSpec.model_fields.keys() - {"stages"}
    changes |= {name: kwargs.pop(name) for name in fields & kwargs.keys()}
    if num_classes > 0:
        changes["num_classes"] = num_classes
    model = PSViT(ArchSpec.model_validate({**dict(spec), **changes}), **kwargs)
    if num_classes == 0 or global_pool is not None:
        model.reset_classifier(num_classes, global_pool)
    return model


def checkpoint_filter_fn(weights: dict[str, Tensor], model: PSViT) -> dict[str, Tensor]:
    """Weights of a PSViT, with positions and patch kernel resized to those of `model` as timm
    resizes its ViT's."""
    resized = dict(weights)
    kernel, positions = (resized.get(name) for name in ("patch_embed.proj.weight", "pos_embed"))
    size = model.patch_embed.proj.weight.shape[-2:]
    if kernel is not None and kernel.shape[-2:] != size:
        resized["patch_embed.proj.weight"] = resample_patch_embed(kernel, list(size))
    if positions is not None and positions.shape[1] != model.pos_embed.shape[1]:
        resized["pos_embed"] = resample_abs_pos_embed(
            positions,
            new_size=list(model.patch_embed.grid_size),
            num_prefix_tokens=model.num_prefix_tokens,
        )
    return resized


def _register(name: str) -> None:
    def entry_point(pretrained: bool = False, **kwargs: Any) -> Any:
        return _create(name, PRESETS[name], pretrained, **kwargs)

    # timm registers a function under its own name.
    entry_point.__name__ = entry_point.__qualname__ = name
    entry_point.__doc__ = f"{name}: {PRESETS[name].pattern}"
    globals()[name] = register_model(entry_point)


for _name in PRESET_NAMES:
    _register(_name)
