"""A network to deploy, as a folder: `config.json` (architecture, preprocessing, classes, training
run), `model.safetensors`, a model card, and other formats on request.

`load_model_folder` reads `config.json` and `model.safetensors` only, and executes nothing in them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import timm
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from psvit_ray.arch.cost import count_macs, count_params
from psvit_ray.data.loading.transforms import Preprocessing
from psvit_ray.data.splits import split_file
from psvit_ray.data.splits.split_file import SplitFile
from psvit_ray.export import formats
from psvit_ray.export.config import ExportConfig
from psvit_ray.export.model_card import model_card
from psvit_ray.export.model_files import (
    CARD,
    CONFIG,
    ONNX,
    TORCH_EXPORT,
    WEIGHTS,
    read_config,
    read_file,
)
from psvit_ray.export.timm_config import pretrained_cfg, timm_fields
from psvit_ray.model.psvit import PSViT
from psvit_ray.storage.folder import Folder


class Transform:
    """The transform of evaluation: a Pillow image of any kind to the network's input. It can be
    pickled to the workers of a DataLoader."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self._transform = preprocessing.transform()

    def __call__(self, image: Image.Image) -> Tensor:
        """A normalised float32 image (C, S, S). Raises BadImage if `image` cannot be used."""
        pixels = self._transform(self.preprocessing.picture(image))
        return self.preprocessing.normalize(pixels[None])[0]


@dataclass(frozen=True)
class ExportedModel:
    """A network of an exported folder, in evaluation mode, with its `config.json`."""

    model: PSViT
    config: ExportConfig

    @property
    def preprocessing(self) -> Preprocessing:
        """Preprocessing of images in evaluation."""
        return self.config.preprocessing

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the logits."""
        return self.config.class_names

    @property
    def transform(self) -> Transform:
        """Transform of a Pillow image to the network's input."""
        return Transform(self.preprocessing)


def write_model_folder(
    folder: Path,
    config: ExportConfig,
    weights: Mapping[str, Tensor],
    *,
    default_settings: Mapping[str, Any],
    splits: SplitFile | None = None,
    onnx: bool = False,
    torch_export: bool = False,
) -> ExportedModel:
    """Writes an exported folder; weights become float32.

    Args:
        folder: An empty folder.
        config: Content of `config.json`; the hashes of the files are added here.
        weights: State dict of `PSViT(config.spec)`.
        default_settings: Defaults of the training configuration; the model card lists the
            settings that differ.
        splits: Split of the images that the network was trained on.
        onnx: Write `model.onnx` too.
        torch_export: Write `model.pt2` too.

    Raises ConversionError if another format gives other logits, and ValueError if a package that
    it needs is not installed.
    """
    weights = {
        name: tensor.float().contiguous() if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }
    model = _network(config, weights)
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(weights, {"format": "pt"}))
    if splits:
        (folder / split_file.SPLITS_FILE).write_bytes(splits.to_bytes())
    if onnx:
        metadata = {
            "class_names": json.dumps(config.class_names),
            "preprocessing": config.preprocessing.model_dump_json(),
        }
        formats.write_onnx(model, folder / ONNX, metadata)
    if torch_export:
        formats.write_torch_export(model, folder / TORCH_EXPORT)
    sha256 = {path.name: _sha256(path.read_bytes()) for path in sorted(folder.iterdir())}
    config = config.model_copy(update={"sha256": sha256})
    content = config.model_dump(mode="json") | timm_fields(config)
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (folder / CARD).write_text(model_card(config, default_settings), encoding="utf-8")
    return ExportedModel(model, config)


def load_model_folder(folder: str | Path) -> ExportedModel:
    """The exported model in a folder, given as a path or a URI such as `s3://bucket/model`.

    Raises ValueError if there is no exported model, or if its files were changed.
    """
    there = Folder.at(str(folder))
    config, content = read_config(there), read_file(there, WEIGHTS)
    try:
        checked = ExportConfig.model_validate_json(config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "it"
        raise ValueError(
            f"model folder {there} has a {CONFIG} that this version does not read: {where}: "
            f"{first['msg']}"
        ) from None
    if faults := checked.faults():
        raise ValueError(
            f"model folder {there} has a {CONFIG} that contradicts itself: {'; '.join(faults)}"
        )
    if content is None:
        raise ValueError(f"model folder was changed: {WEIGHTS} is missing in {there}")
    if _sha256(content) != checked.sha256.get(WEIGHTS):
        raise ValueError(
            f"model folder was changed: {WEIGHTS} has another sha256 than {CONFIG} says in {there}"
        )
    try:
        model = _network(checked, safetensors.torch.load(content))
    except (SafetensorError, RuntimeError):
        raise ValueError(
            f"model folder was changed: spec in {CONFIG} is not that of {WEIGHTS} in {there}"
        ) from None
    for name, count in (("params", count_params), ("macs", count_macs)):
        if (got := getattr(checked.training, name)) != (expected := count(checked.spec)):
            raise ValueError(
                f"model folder was changed: training.{name} in {CONFIG} must be {expected} as of "
                f"spec, got {got}, in {there}"
            )
    return ExportedModel(model, checked)


def read_splits(folder: str | Path, exported: ExportedModel) -> SplitFile | None:
    """The split of the images that the model in a folder was trained on; None in folders of older
    versions, which do not have it.

    Raises ValueError if the file was changed.
    """
    there = Folder.at(str(folder))
    sha256 = exported.config.sha256.get(split_file.SPLITS_FILE)
    content = read_file(there, split_file.SPLITS_FILE)
    if sha256 is None:
        return None
    if content is None or _sha256(content) != sha256:
        what = "is missing" if content is None else f"has another sha256 than {CONFIG} says"
        raise ValueError(f"model folder was changed: {split_file.SPLITS_FILE} {what} in {there}")
    return SplitFile.from_bytes(content, str(there / split_file.SPLITS_FILE))


def _network(config: ExportConfig, weights: dict[str, Tensor]) -> PSViT:
    """A network with these weights, in evaluation mode, as timm's factory makes it. No initial
    weights are drawn, so that no random generator is touched."""
    described = pretrained_cfg(config) | {"label_names": config.class_names}
    with torch.device("meta"):
        model = cast(PSViT, timm.create_model("psvit", spec=config.spec, pretrained_cfg=described))
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
