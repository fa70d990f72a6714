"""Conversion of a network to ONNX and torch.export, each checked against the network itself.

Both take any batch size, and neither file holds paths of the machine that made it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from psvit_ray.model.psvit import PSViT

OPSET = 20
TOLERANCE = 1e-4
"""Largest absolute and relative difference of a logit."""
CHECKED_BATCHES = (1, 3)
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Logits = Callable[[Tensor], Tensor]


class ConversionError(RuntimeError):
    """A converted network gives other logits than the network."""


def check_onnx_installed() -> None:
    """Raises ValueError if a package that the export to ONNX needs is not installed."""
    for package in ONNX_PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError:
            raise ValueError(
                f"onnx needs {package}, which is not installed: pip install 'psvit-ray[onnx]'"
            ) from None


def write_onnx(model: PSViT, path: Path, metadata: Mapping[str, str]) -> None:
    """Writes ONNX: input `images` (batch, C, S, S), normalised float32; output `logits` (batch,
    num_classes). `metadata` is kept in the file by its keys.

    Raises ConversionError if its logits differ, and ValueError if ONNX is not installed.
    """
    check_onnx_installed()
    import onnxruntime

    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with torch.no_grad():
        program = torch.onnx.export(
            model,
            (random_images(model, 2),),
            dynamo=True,
            dynamic_shapes=({0: "batch"},),
            input_names=["images"],
            output_names=["logits"],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces
    program.model.metadata_props.update(metadata)
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    check_agreement(
        model,
        lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]),
        path.name,
    )


def write_torch_export(model: PSViT, path: Path) -> None:
    """Writes a program for `torch.export.load(path).module()`. Raises ConversionError if its logits
    differ."""
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        program = torch.export.export(
            model, (random_images(model, 2),), dynamic_shapes=({0: batch},)
        )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    torch.export.save(program, path)
    check_agreement(model, torch.export.load(path).module(), path.name)


def check_agreement(model: PSViT, converted: Logits, name: str) -> None:
    """Raises ConversionError, naming `name`, if logits differ by more than TOLERANCE."""
    for size in CHECKED_BATCHES:
        images = random_images(model, size)
        with torch.inference_mode():
            expected, got = model(images), converted(images)
        if not torch.allclose(got, expected, rtol=TOLERANCE, atol=TOLERANCE):
            raise ConversionError(
                f"{name} must answer as the network does to {TOLERANCE:g}, differs by "
                f"{(got - expected).abs().max():.3g} for {size} images"
            )


def random_images(model: PSViT, size: int) -> Tensor:
    """Random images (size, C, S, S) for `model`, always the same."""
    spec = model.spec
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, spec.in_chans, spec.img_size, spec.img_size, generator=generator)
