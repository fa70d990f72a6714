"""Networks that a configuration names: exported folders, and timm's with weights in a file."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import timm
import torch
from torch import nn

from psvit_ray.export.networks import Network, load_network
from psvit_ray.model import PSViT
from psvit_ray.training.state import TrainState
from tests.helpers.networks import (
    NAMES,
    TIMM,
    exported,
    facts_of,
    saved,
    spec,
    timms,
    with_random_weights,
)


def assert_has_the_weights_of(network: Network, model: nn.Module) -> None:
    theirs = model.state_dict()
    assert network.model.state_dict().keys() == theirs.keys()
    assert all(torch.equal(w, theirs[name]) for name, w in network.model.state_dict().items())


# An exported folder


def test_an_exported_folder_gives_its_network_and_what_it_takes(tmp_path: Path) -> None:
    facts = facts_of(spec("2|1", 32, 48, pooling="2d"))
    model = exported(tmp_path / "model", facts)
    network = load_network(str(tmp_path / "model"), field="init")
    assert_has_the_weights_of(network, model)
    assert not network.model.training
    assert (network.num_classes, network.class_names) == (10, NAMES)
    assert (network.img_size, network.in_chans) == ((32, 32), 3)
    assert (network.mean, network.std) == ((0.4, 0.5, 0.6), (0.2, 0.2, 0.3))


def test_what_is_no_exported_folder_is_refused_with_timms_name_where_it_is_one(
    tmp_path: Path,
) -> None:
    with pytest.raises(ValueError, match=r"^init: model must be an exported folder, got .*nothing"):
        load_network(str(tmp_path / "nothing"), field="init")
    with pytest.raises(ValueError, match=r"^teacher: .*; timm has it as timm:regnety_160$"):
        load_network("regnety_160", field="teacher")


def test_a_changed_exported_folder_is_refused(tmp_path: Path) -> None:
    exported(tmp_path / "model", facts_of(spec()))
    weights = tmp_path / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"^init: model folder was changed: model\.safe"):
        load_network(str(tmp_path / "model"), field="init")


# timm's, from a file


@pytest.mark.parametrize("wrapped", ["plain", "safetensors", "model", "ema", "ddp"])
def test_weights_in_a_file_are_timms(tmp_path: Path, wrapped: str) -> None:
    model = timms(num_classes=7)
    weights = model.state_dict()
    content = {
        "model": {"model": weights, "epoch": 3},
        "ema": {"state_dict": timms().state_dict(), "state_dict_ema": weights},
        "ddp": {f"module.{name}": weight for name, weight in weights.items()},
    }.get(wrapped, weights)
    suffix = ".safetensors" if wrapped == "safetensors" else ".pth"
    network = load_network(TIMM, saved(tmp_path / f"w{suffix}", content), field="init")
    assert_has_the_weights_of(network, model)
    assert (network.num_classes, network.class_names) == (7, None)
    assert (network.img_size, network.in_chans, network.mean) == ((160, 160), 3, (0.5, 0.5, 0.5))


def test_deit_iii_in_its_authors_names_is_timms(tmp_path: Path) -> None:
    theirs = with_random_weights(timm.create_model("deit3_small_patch16_224", num_classes=3))
    weights = {
        name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): weight
        for name, weight in theirs.state_dict().items()
    }
    checkpoint = saved(tmp_path / "deit_3_small.pth", {"model": weights})
    assert_has_the_weights_of(
        load_network("timm:deit3_small_patch16_224", checkpoint, field="init"), theirs
    )


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_a_file_that_would_execute_is_refused_and_does_not(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    content = {"model": timms().state_dict(), "args": Malicious(marker)}
    with pytest.raises(ValueError, match=r"init_checkpoint must be .*weights_only"):
        load_network(TIMM, saved(tmp_path / "zip.pth", content), field="init")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Malicious(marker), protocol=2))
    with pytest.raises(ValueError, match="init_checkpoint must be"):
        load_network(TIMM, str(tmp_path / "raw.pth"), field="init")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"no weights at all", b"PK\x03\x04 cut short"])
def test_a_broken_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"^teacher_checkpoint must be safetensors or a state"):
        load_network(TIMM, str(tmp_path / name), field="teacher")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^init_checkpoint must be a file, got .*none.pth"):
        load_network(TIMM, str(tmp_path / "none.pth"), field="init")
    for content in ([1, 2], {"a": 1}, torch.zeros(2)):
        with pytest.raises(ValueError, match="init_checkpoint must "):
            load_network(TIMM, saved(tmp_path / "other.pth", content), field="init")
    other = saved(tmp_path / "other.pth", timm.create_model("test_efficientnet").state_dict())
    with pytest.raises(ValueError, match=r"init_checkpoint must have the weights of timm:test_vit"):
        load_network(TIMM, other, field="init")


# timm's, by name


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("deit_tinny_patch16_224", "timm:deit_tiny_patch16_224"),
        ("deit_tiny_patch16_224.fb_in22k", "timm:deit_tiny_patch16_224.fb_in1k"),
    ],
)
def test_a_name_that_timm_does_not_know_gets_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"^teacher: timm has no '{name}'; nearest is {nearest}$"):
        load_network(f"timm:{name}", field="teacher")


def test_without_a_connection_the_file_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"cannot fetch .*; .* --init-checkpoint FILE$") as error:
        load_network("timm:deit_tiny_patch16_224", field="init")
    assert "\n" not in str(error.value)


def test_a_network_without_published_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot fetch the weights of timm:psvit_2d_tiny"):
        load_network("timm:psvit_2d_tiny", field="init")


# To start from


def test_a_run_starts_from_the_folder(tmp_path: Path) -> None:
    theirs = exported(tmp_path / "model", facts_of(spec()))
    facts = facts_of(spec("1-1-2"), init=str(tmp_path / "model"))
    model = TrainState.of(facts, torch.device("cpu"), None).model
    assert isinstance(model, PSViT)
    assert torch.equal(model.blocks[0].mlp.fc1.weight, theirs.blocks[0].mlp.fc1.weight)
    assert torch.equal(model.pos_embed, theirs.pos_embed)


def test_weights_of_which_nothing_fits_are_refused(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path / "w.pth", timms().state_dict())
    facts = facts_of(spec(), init=TIMM, init_checkpoint=checkpoint)
    with pytest.raises(ValueError, match="nothing of these weights fits: "):
        TrainState.of(facts, torch.device("cpu"), None)
