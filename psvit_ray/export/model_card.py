"""The model card (README.md) of an exported model, written from its `config.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from psvit_ray.export.config import ExportConfig, TrainingInfo
from psvit_ray.export.formats import OPSET, TOLERANCE
from psvit_ray.export.model_files import ONNX, TORCH_EXPORT
from psvit_ray.text.markdown import code, text

MAX_LISTED_CLASSES = 20
"""Most class names in the card; `config.json` has all."""


def model_card(config: ExportConfig, default_settings: Mapping[str, Any]) -> str:
    """The card in Markdown, with the front matter that model hubs read. It lists the settings of
    the training that differ from `default_settings`."""
    spec, training = config.spec, config.training
    kind = "DeiT" if spec.is_deit else f"PSViT-{spec.pooling.upper()}"
    front = {
        "library_name": "psvit_ray",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "vision-transformer", kind.lower(), "pytorch"],
        "metrics": ["accuracy"],
    }
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {kind} {spec.pattern}",
        _what(config),
        _use(config),
        "## Architecture\n\n" + _architecture(config),
        "## Results\n\n" + _results(training),
        "## Training\n\n" + _training(training, default_settings),
        "## Limits\n\n" + _limits(config),
        "## Licence\n\nNone is stated: add one before this is published.",
    ]
    return "\n\n".join(parts) + "\n"


def _what(config: ExportConfig) -> str:
    spec, training = config.spec, config.training
    names = ", ".join(map(text, config.class_names[:MAX_LISTED_CLASSES]))
    rest = len(config.class_names) - MAX_LISTED_CLASSES
    more = f" and {rest:,} more, all in `config.json`" if rest > 0 else ""
    giga = training.macs >= 1e8  # as papers say, but for networks of tiny images
    macs = f"{training.macs / 1e9:.3g} GMACs" if giga else f"{training.macs / 1e6:.3g} MMACs"
    colours = "colour" if spec.in_chans == 3 else "grey"
    return (
        f"Sorts {colours} images of {spec.img_size} x {spec.img_size} pixels into "
        f"{spec.num_classes:,} classes: {names}{more}. "
        f"{training.params / 1e6:.3g} M parameters, {macs} an image."
    )


def _use(config: ExportConfig) -> str:
    lines = [
        "```python",
        "import psvit_ray",
        'model, transform = psvit_ray.load("this folder")',
        "logits = model(transform(image)[None])  # image: of Pillow, any size and mode",
        "```",
        "",
        "As a model of timm's, with its functions and scripts:",
        "",
        "```python",
        "import timm",
        "import psvit_ray.model  # registers the architecture with timm",
        'model = timm.create_model("local-dir:this folder", pretrained=True)',
        "```",
    ]
    if ONNX in config.sha256:
        lines += [
            "",
            f"`{ONNX}` (opset {OPSET}): input `images` (batch, {config.spec.in_chans}, "
            f"{config.spec.img_size}, {config.spec.img_size}) float32 as `transform` gives it, "
            "output `logits`. Its metadata has `class_names` and `preprocessing`, as JSON.",
        ]
    if TORCH_EXPORT in config.sha256:
        lines += [
            "",
            f'`torch.export.load("{TORCH_EXPORT}").module()` takes the same images, without '
            "psvit_ray. Unlike the weights, such a file can run code when it is read: load it only "
            "from whom you trust.",
        ]
    if len(config.sha256) > 1:
        lines += [
            "",
            "Any number of images at once. Each was checked against the network when it was "
            f"written: logits equal to {TOLERANCE:g}.",
        ]
    return "\n".join(lines)


def _architecture(config: ExportConfig) -> str:
    spec, given = config.spec, config.preprocessing
    stages = [
        (number, tokens, stage.depth, groups, stage.embed_dim, stage.num_heads, stage.hidden_dim)
        for number, (stage, tokens, groups) in enumerate(
            zip(spec.stages, spec.num_tokens, spec.pattern.split("|"), strict=True), start=1
        )
    ]
    heading = ("stage", "tokens", "layers", "share groups", "width", "heads", "hidden")
    pooled = f", pooled by {spec.pool_op}" if len(spec.stages) > 1 else ""
    return (
        f"{_markdown_table(heading, stages)}\n\n"
        f"Pattern `{spec.pattern}` (`|` pools tokens, a number is so many layers under one "
        f"attention map), {spec.pooling}{pooled}, patches of {spec.patch_size} pixels, "
        f"spec `{spec.spec_id}`.\n\n"
        f"Images are resized so that {given.crop_pct:.4g} of the shorter side is "
        f"{given.img_size} pixels ({given.interpolation}), cut in the middle, and normalised with "
        f"mean {_numbers(given.mean)} and standard deviation {_numbers(given.std)}."
    )


def _results(training: TrainingInfo) -> str:
    measured = [
        ("hold-out", _percent(training.holdout_top1)),
        ("test", _percent(training.test_top1)),
    ]
    chosen = {
        "best": "The checkpoint was chosen by the hold-out, whose figure therefore flatters a "
        "little; the test images had no say.",
        "last": "The weights are the last ones.",
    }
    missing = (
        "" if training.test_top1 is not None else " `psvit evaluate` measures what is missing."
    )
    return f"{_markdown_table(('split', 'top-1 %'), measured)}\n\n{chosen[training.which]}{missing}"


def _percent(top1: float | None) -> str:
    return "not measured" if top1 is None else f"{top1:.2f}"


def _training(training: TrainingInfo, default_settings: Mapping[str, Any]) -> str:
    summary = {
        "data": training.data,
        "epochs": f"{training.epoch} of {training.epochs}",
        "steps": f"{training.step:,}",
        "seed": training.seed,
        "run": training.name or "-",
        "MLflow run": training.run_id or "-",
    }
    settings = {
        name: value
        for name, value in training.settings.items()
        if name not in summary and value != default_settings.get(name)
    }
    rows = [(f"`{name}`", code(value)) for name, value in settings.items()]
    others = _markdown_table(("setting", "value"), rows) if rows else "None."
    return (
        f"{_markdown_table(('', ''), [(name, code(value)) for name, value in summary.items()])}\n\n"
        f"Settings that are not the usual ones of psvit_ray (`config.json` has all):\n\n{others}"
    )


def _limits(config: ExportConfig) -> str:
    return (
        f"- It answers with one of its {config.spec.num_classes:,} classes, also for an image of "
        "none of them.\n"
        "- The figures are of images drawn as those it was trained on; on others it may do worse.\n"
        "- Probabilities are not calibrated: `psvit evaluate` says how far off they are.\n"
        "- One training run with one seed."
    )


def _markdown_table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, whose cells are Markdown."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
