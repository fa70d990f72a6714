"""A network in other formats, each checked against the network itself before it counts.

Both take any number of images, and neither holds paths of the machine that made it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from psvit_ray.model.psvit import PSViT

OPSET = 20
TOLERANCE = 1e-4
"""Most that a logit may differ, plus so much of its size."""
CHECKED_BATCHES = (1, 3)
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Logits = Callable[[Tensor], Tensor]


class ConversionError(RuntimeError):
    """A converted network does not answer as the network does."""


def check_onnx_installed() -> None:
    """Raises ValueError where something that ONNX needs is not there."""
    for package in ONNX_PACKAGES:
        try:
            importlib.import_module(package)
        except ImportError:
            raise ValueError(
                f"onnx needs {package}, which is not installed: pip install 'psvit-ray[onnx]'"
            ) from None


def write_onnx(model: PSViT, path: Path) -> None:
    """Input `images` (batch, C, S, S) float32, normalised; output `logits` (batch, num_classes).

    Raises ConversionError, and ValueError where ONNX is not installed.
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
    program.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    check_agreement(
        model,
        lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0]),
        path.name,
    )


def write_torch_export(model: PSViT, path: Path) -> None:
    """As `torch.export.load(path).module()` takes it. Raises ConversionError."""
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
    """Raises ConversionError where logits differ by more than TOLERANCE."""
    for size in CHECKED_BATCHES:
        images = random_images(model, size)
        with torch.inference_mode():
            expected, found = model(images), converted(images)
        if not torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
            raise ConversionError(
                f"{name} must answer as the network does to {TOLERANCE:g}, differs by "
                f"{(found - expected).abs().max():.3g} for {size} images"
            )


def random_images(model: PSViT, size: int) -> Tensor:
    """(size, C, S, S), always the same."""
    spec = model.spec
    generator = torch.Generator().manual_seed(size)
    return torch.randn(size, spec.in_chans, spec.img_size, spec.img_size, generator=generator)
