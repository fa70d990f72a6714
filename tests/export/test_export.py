"""A folder to deploy: the same network, whole or not at all, and no other when it was changed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import math
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import timm.data
import torch
import yaml
from PIL import Image
from torch import Tensor

import psvit_ray
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.data.loading.loader import eval_loader
from psvit_ray.data.loading.transforms import Preprocessing
from psvit_ray.export import model_folder
from psvit_ray.export.formats import ConversionError
from psvit_ray.export.model_files import CARD, CONFIG, ONNX, TORCH_EXPORT, WEIGHTS
from psvit_ray.model import PSViT
from psvit_ray.storage.folder import Folder
from psvit_ray.storage.outputs import new_folder
from psvit_ray.training.checkpoint import Checkpoint
from psvit_ray.training.exporting import export_checkpoint, training_info
from psvit_ray.training.source import load_source
from tests.helpers.networks import DIGITS_SPECS, trained
from tests.helpers.object_store import object_store

ROOT = Path(__file__).parents[2]


class Made(NamedTuple):
    checkpoint: Checkpoint
    folder: Path


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    @functools.cache
    def make(pooling: str) -> Made:
        (checkpoint,) = trained(DIGITS_SPECS[pooling])
        out = tmp_path_factory.mktemp("export") / "model"
        with new_folder(Folder.at(str(out))) as folder:
            facts = training_info(checkpoint, which="best", name="a-run", test_top1=12.5)
            export_checkpoint(folder, checkpoint, facts, onnx=True, torch_export=True)
        return Made(checkpoint, out)

    return make


@pytest.fixture
def made(make: Callable[[str], Made]) -> Made:
    return make("2d")


@pytest.fixture(params=["2d", "1d"])
def either(request: pytest.FixtureRequest, make: Callable[[str], Made]) -> Made:
    return make(request.param)


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    """One that a test may change."""
    return shutil.copytree(made.folder, tmp_path / "model")


def images(size: int, spec: ArchSpec) -> Tensor:
    return torch.randn(size, spec.in_chans, spec.img_size, spec.img_size)


def test_the_loaded_network_is_the_one_that_was_evaluated(either: Made) -> None:
    checkpoint = either.checkpoint
    assert checkpoint.ema is not None
    spec = checkpoint.run.configuration.spec
    x = images(5, spec)
    averaged = PSViT(spec).eval()
    averaged.load_state_dict(checkpoint.ema)
    last = PSViT(spec).eval()
    last.load_state_dict(checkpoint.model)
    model, _ = psvit_ray.load(either.folder)
    assert not model.training
    with torch.no_grad():
        assert torch.equal(model(x), averaged(x))
        assert not torch.equal(model(x), last(x))


def test_the_loaded_network_can_be_trained_on(made: Made) -> None:
    model, _ = psvit_ray.load(str(made.folder))
    model.train()(images(2, made.checkpoint.run.configuration.spec)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_loading_draws_no_random_number(made: Made) -> None:
    before = torch.get_rng_state()
    psvit_ray.load(made.folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_are_float32_whatever_the_checkpoint_has(made: Made, tmp_path: Path) -> None:
    halved = {name: tensor.bfloat16() for name, tensor in made.checkpoint.evaluated.items()}
    checkpoint = dataclasses.replace(made.checkpoint, ema=halved)
    export_checkpoint(tmp_path, checkpoint, training_info(checkpoint, which="last"))
    weights = model_folder.load_model_folder(tmp_path).model.state_dict()
    assert all(torch.equal(weights[name], tensor.float()) for name, tensor in halved.items())
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def by_onnx(folder: Path) -> Callable[[Tensor], Tensor]:
    session = onnxruntime.InferenceSession(folder / ONNX)
    return lambda x: torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])


def test_onnx_knows_its_classes_and_its_preprocessing(made: Made) -> None:
    metadata = onnxruntime.InferenceSession(made.folder / ONNX).get_modelmeta().custom_metadata_map
    config = model_folder.load_model_folder(made.folder).config
    assert tuple(json.loads(metadata["class_names"])) == config.class_names
    assert Preprocessing.model_validate_json(metadata["preprocessing"]) == config.preprocessing


def by_torch_export(folder: Path) -> Callable[[Tensor], Tensor]:
    return torch.export.load(folder / TORCH_EXPORT).module()


@pytest.mark.parametrize("converted", [by_onnx, by_torch_export])
def test_other_formats_give_the_same_logits_for_any_number_of_images(
    either: Made, converted: Callable[[Path], Callable[[Tensor], Tensor]]
) -> None:
    model, _ = psvit_ray.load(either.folder)
    answer = converted(either.folder)
    for size in (1, 2, 3, 8, 33):
        x = images(size, either.checkpoint.run.configuration.spec)
        with torch.no_grad():
            torch.testing.assert_close(answer(x), model(x), rtol=1e-5, atol=1e-5)


def test_no_path_of_the_machine_is_in_the_folder(made: Made) -> None:
    for path in made.folder.iterdir():
        found = re.findall(rb"[\w/.-]+\.py\b", path.read_bytes())
        assert [name for name in found if not name.startswith(b"jobs/")] == [], path.name


def test_the_transform_is_that_of_the_evaluation(made: Made) -> None:
    """On the pictures of the data, and of a size of their own."""
    facts = made.checkpoint.run
    table = load_source(facts.configuration).holdout
    _, transform = psvit_ray.load(made.folder)
    (batch,) = eval_loader(table, facts.preprocessing, len(table))
    expected = facts.preprocessing.normalize(batch.images)
    for index in range(20):
        picture = table.read(index)
        assert isinstance(picture, Image.Image)
        assert torch.equal(transform(picture), expected[index])


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_the_transform_is_timms_for_pictures_of_any_mode(mode: str) -> None:
    given = Preprocessing(
        img_size=32, in_chans=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25), crop_pct=0.9
    )
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    theirs = timm.data.create_transform(
        (3, 32, 32), interpolation="bicubic", crop_pct=0.9, mean=given.mean, std=given.std
    )
    ours = pickle.loads(
        pickle.dumps(model_folder.Transform(given))
    )  # as a DataLoader's process gets it
    torch.testing.assert_close(ours(picture), theirs(picture.convert("RGB")))


# What was changed is refused


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def refused(folder: Path | str) -> str:
    with pytest.raises(ValueError, match=r"^model ") as error:
        psvit_ray.load(folder)
    return str(error.value)


def test_changed_weights_are_refused(copy: Path) -> None:
    content = bytearray((copy / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (copy / WEIGHTS).write_bytes(content)
    assert refused(copy) == (
        "model folder was changed: model.safetensors has another sha256 than config.json says in "
        f"{copy}"
    )
    (copy / WEIGHTS).unlink()
    assert refused(copy) == f"model folder was changed: model.safetensors is missing in {copy}"


def test_a_changed_config_is_refused(copy: Path) -> None:
    other = DIGITS_SPECS["2d"].model_copy(update={"patch_size": 1}).model_dump(mode="json")
    edit(copy, spec=other)
    assert refused(copy) == (
        f"model folder was changed: spec in config.json is not that of model.safetensors in {copy}"
    )
    edit(copy, format_version=2)
    assert refused(copy) == (
        f"model folder {copy} has a config.json that this version does not read: format_version: "
        "Input should be 1"
    )
    for content in ("{", "[" * 5_000):
        (copy / CONFIG).write_text(content)
        assert refused(copy).startswith(f"model folder {copy} has a config.json that this version")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"class_names": ["a"] * 9}, "class_names must be 10 as in spec, got 9"),
        ({"class_names": [*"abcdefghi", "a"]}, "class_names must differ, got 'a' twice"),
        ({"std": [0.0]}, "preprocessing.std must be above 0, got (0.0,)"),
        ({"std": [-1.0]}, "preprocessing.std must be above 0, got (-1.0,)"),
        ({"std": [math.nan]}, "preprocessing.std must be above 0, got (nan,)"),
        ({"std": [0.5] * 3}, "preprocessing.std must be 1 as in spec, got 3"),
        ({"mean": [math.inf]}, "preprocessing.mean must be numbers, got (inf,)"),
        ({"mean": []}, "preprocessing.mean must be 1 as in spec, got 0"),
        ({"img_size": 16}, "preprocessing.img_size must be 8 as in spec, got 16"),
        ({"in_chans": 3}, "preprocessing.in_chans must be 1 as in spec, got 3"),
        ({"sha256": {"../x": "0"}}, "sha256 must name files of the folder, got '../x'"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(
    copy: Path, changes: dict[str, Any], said: str
) -> None:
    config = json.loads((copy / CONFIG).read_text())
    whole = changes.keys() <= config.keys()
    edit(copy, **(changes if whole else {"preprocessing": config["preprocessing"] | changes}))
    found = refused(copy)
    assert found.startswith(f"model folder {copy} has a config.json that contradicts itself: ")
    assert said in found.partition("itself: ")[2].split("; ")


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "change",
    [
        {"stages": [{"share_groups": [10**9]}]},
        {"stages": [{"share_groups": [1] * 100_000}]},
        {"stages": [{"embed_dim": 10**9, "num_heads": 1}]},
        {"stages": [{"hidden_dim": 10**9}]},
        {"stages": [{}] * 10_000},
        {"img_size": 10**9, "patch_size": 1},
        {"num_classes": 10**9},
        {"in_chans": 10**9},
    ],
    ids=lambda change: repr(change)[:60],
)
def test_a_config_of_a_network_without_end_is_refused_before_it_is_made(
    copy: Path, change: dict[str, Any]
) -> None:
    spec = json.loads((copy / CONFIG).read_text())["spec"]
    changed = [spec["stages"][0] | stage for stage in change.pop("stages", [])] or spec["stages"]
    edit(copy, spec=spec | {"stages": changed} | change)
    found = refused(copy)
    said = f"model folder {copy} has a config.json that this version does not read: spec."
    assert found.startswith(said)
    assert " at most " in found or " less than or equal to " in found
    assert len(found) < 500


@pytest.mark.usefixtures("little_memory")
def test_the_largest_network_that_a_config_may_name_is_not_made(copy: Path) -> None:
    """Its 256 layers of 65,536 channels would have 10^13 weights."""
    spec = json.loads((copy / CONFIG).read_text())["spec"]
    wide = {"embed_dim": 65_536, "num_heads": 1, "hidden_dim": 65_536, "share_groups": [1] * 256}
    edit(copy, spec=spec | {"stages": [wide]})
    assert refused(copy) == (
        f"model folder was changed: spec in config.json is not that of model.safetensors in {copy}"
    )


@pytest.mark.parametrize("name", ["params", "macs"])
def test_a_count_that_is_not_that_of_the_network_is_refused(copy: Path, name: str) -> None:
    facts = json.loads((copy / CONFIG).read_text())["training"]
    edit(copy, training=facts | {name: facts[name] + 1})
    assert refused(copy) == (
        f"model folder was changed: training.{name} in config.json must be {facts[name]} as of "
        f"spec, got {facts[name] + 1}, in {copy}"
    )


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    said = f"model must be an exported folder, got {missing}, without config.json"
    assert refused(missing) == said
    (tmp_path / "file").write_text("")
    assert "without config.json" in refused(tmp_path / "file")
    (tmp_path / "search.json").write_text("{}")
    assert refused(tmp_path).endswith("; psvit export makes one of a run")


class Marker:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_executes_even_where_the_hash_was_made_to_fit(copy: Path, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    torch.save({"state": Marker(marker)}, copy / WEIGHTS)
    edit(copy, sha256={WEIGHTS: hashlib.sha256((copy / WEIGHTS).read_bytes()).hexdigest()})
    refused(copy)
    assert not marker.exists()
    torch.load(io.BytesIO((copy / WEIGHTS).read_bytes()), weights_only=False)
    assert marker.exists()  # it would have


# Whole or not at all


@pytest.mark.parametrize(
    ("kind", "exporter"), [("onnx", torch.onnx), ("torch_export", torch.export)]
)
def test_a_conversion_that_answers_otherwise_leaves_nothing(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, exporter: Any
) -> None:
    """The exporter is given another network."""
    other = PSViT(made.checkpoint.run.configuration.spec).eval()
    export_it = exporter.export
    monkeypatch.setattr(
        exporter, "export", lambda _, *args, **more: export_it(other, *args, **more)
    )
    facts = training_info(made.checkpoint, which="best")
    wanted: dict[str, Any] = {kind: True}
    said = r"^model\.\w+ must answer as the network does to 0.0001, differs by \d"
    with (
        pytest.raises(ConversionError, match=said),
        new_folder(Folder.at(str(tmp_path / "model"))) as folder,
    ):
        export_checkpoint(folder, made.checkpoint, facts, **wanted)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
def test_a_model_is_loaded_from_an_object_store(made: Made, tmp_path: Path) -> None:
    x = images(2, made.checkpoint.run.configuration.spec)
    with object_store() as store:
        out = Folder.at(store.uri("models/a"))
        with new_folder(out) as folder:
            facts = training_info(made.checkpoint, which="best")
            export_checkpoint(folder, made.checkpoint, facts)
        found, _ = psvit_ray.load(out.uri)
    local, _ = psvit_ray.load(made.folder)
    assert torch.equal(found(x), local(x))


# What is said of the model


def test_the_card_is_written_from_what_is_known(either: Made) -> None:
    card = (either.folder / CARD).read_text()
    _, front, text = card.split("---\n", 2)
    hub = yaml.safe_load(front)
    assert hub["library_name"] == "psvit_ray"
    assert hub["pipeline_tag"] == "image-classification"
    assert hub["metrics"] == ["accuracy"]
    assert "licence" not in hub
    holdout = either.checkpoint.curve[-1]["metrics"]["holdout/top1"]
    assert f"| hold-out | {holdout:.2f} |" in text
    assert "| test | 12.50 |" in text
    assert "| `lr` | `0.01` |" in text
    spec = either.checkpoint.run.configuration.spec
    for number, stage in enumerate(spec.stages, start=1):
        assert f"| {number} | {spec.num_tokens[number - 1]} | {stage.depth} |" in text


def test_the_lines_of_the_card_load_the_model(made: Made) -> None:
    code = (made.folder / CARD).read_text().split("```python\n")[1].split("```")[0]
    known: dict[str, Any] = {"image": Image.new("RGB", (30, 20))}
    exec(code.replace("this folder", str(made.folder)), known)
    assert known["logits"].shape == (1, 10)


def test_figures_are_only_given_to_the_weights_they_were_measured_with() -> None:
    first, last = trained(DIGITS_SPECS["2d"], epochs=2)
    of_first = training_info(first, which="best", test_top1=50.0)
    assert of_first.holdout_top1 == first.curve[-1]["metrics"]["holdout/top1"]
    assert of_first.test_top1 is None  # it was measured at the end of the run
    assert training_info(last, which="last", test_top1=50.0).test_top1 == 50.0
    within_an_epoch = dataclasses.replace(first, step=first.step + 1)
    assert training_info(within_an_epoch, which="last").holdout_top1 is None
