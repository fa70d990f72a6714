"""An exported folder is one of timm's too, and timm answers as we do."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_dataset, create_loader, create_transform, resolve_input_data_config
from timm.models import resolve_model_input_args, save_for_hf

import psvit_ray
from psvit_ray.arch.spec import Pooling
from psvit_ray.data.sources.unlabelled import read_unlabelled
from psvit_ray.data.splits.layout import DataLayout
from psvit_ray.export import model_folder
from psvit_ray.export.config import TIMM_FIELDS
from psvit_ray.export.inference import score_batches
from tests.helpers.networks import exported, facts_of, spec

ROOT = Path(__file__).parents[2]
CLASSES = tuple("0123456789")
CONFIG = "config.json"


@pytest.fixture(params=["1d", "2d"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    pooling: Pooling = request.param
    arch = spec("2|1-2", 32, 48, pooling=pooling)
    exported(tmp_path / "model", facts_of(arch, CLASSES))
    return tmp_path / "model"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures of several sizes in folders of classes."""
    generator = np.random.default_rng(0)
    for i, name in enumerate(CLASSES):
        for width, height in ((40, 30), (33, 64), (32, 32)):
            small = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            picture = Image.fromarray(small).resize((width + i, height))
            path = tmp_path / "photos" / name / f"{width}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    return tmp_path / "photos"


def by_timm(folder: Path, **kwargs: Any) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs).eval()


def test_timm_makes_the_model_of_the_folder(folder: Path) -> None:
    ours: Any
    ours, _ = psvit_ray.load(folder)
    theirs = by_timm(folder)
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(theirs(x), ours(x))
    source = {"source": "local-dir", "file": str(folder), "architecture": "psvit"}
    assert theirs.pretrained_cfg == timms_own(ours.pretrained_cfg) | source
    assert theirs.pretrained_cfg["label_names"] == list(CLASSES)


def timms_own(config: dict[str, Any]) -> dict[str, Any]:
    """As it is after a way through JSON."""
    return dict(json.loads(json.dumps(config)))


@pytest.mark.parametrize("folder", ["2d"], indirect=True)
def test_the_page_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    page = (ROOT / "docs" / "timm.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    exec("".join(blocks), names)
    assert names["again"].spec == names["other"].spec
    assert (names["shared"].spec.num_classes, names["finer"].spec.img_size) == (3, 64)
    assert len(names["maps"]) == names["model"].spec.depth


def test_timms_transform_is_ours(folder: Path, photos: Path) -> None:
    _, ours = psvit_ray.load(folder)
    theirs = create_transform(**resolve_input_data_config(by_timm(folder)))
    for path in photos.rglob("*.jpg"):
        picture = Image.open(path)
        torch.testing.assert_close(ours(picture), theirs(picture), atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # timm leaves images open
def test_timms_scripts_give_the_logits_of_the_evaluation(folder: Path, photos: Path) -> None:
    """The calls of its validate.py and inference.py, which are not in its package."""
    args = {"model": f"local-dir:{folder}", "img_size": None, "in_chans": None}
    theirs = timm.create_model(
        **resolve_model_input_args(args["model"] or "", args, pretrained=True)
    ).eval()
    loader = create_loader(
        create_dataset("", str(photos)),
        batch_size=7,
        use_prefetcher=False,
        num_workers=0,
        **resolve_input_data_config(theirs, args),
    )
    with torch.no_grad():
        expected = torch.cat([theirs(images) for images, _ in loader])

    exported_model = model_folder.load_model_folder(folder)
    logits = torch.cat(
        [
            batch.logits
            for part in read_unlabelled([str(photos)], io.StringIO(), DataLayout())
            for batch in score_batches(
                exported_model.model, part.table, exported_model.preprocessing
            )
        ]
    )
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_what_timm_saves_of_a_loaded_model_is_the_model(folder: Path, tmp_path: Path) -> None:
    ours: Any
    ours, _ = psvit_ray.load(folder)
    save_for_hf(ours, str(tmp_path / "saved"), safe_serialization=True)
    again = by_timm(tmp_path / "saved")
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(again(x), ours(x))
    for name in ("mean", "std", "crop_pct", "interpolation", "label_names", "input_size"):
        assert list(np.atleast_1d(again.pretrained_cfg[name])) == list(
            np.atleast_1d(ours.pretrained_cfg[name])
        )


def test_a_folder_without_timms_fields_is_read_as_before(folder: Path) -> None:
    ours, _ = psvit_ray.load(folder)
    config = json.loads((folder / CONFIG).read_text())
    older = {name: value for name, value in config.items() if name not in TIMM_FIELDS}
    assert older.keys() == config.keys() - set(TIMM_FIELDS)
    assert len(older) == len(config) - len(TIMM_FIELDS)
    (folder / CONFIG).write_text(json.dumps(older))
    again, _ = psvit_ray.load(folder)
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(again(x), ours(x))
