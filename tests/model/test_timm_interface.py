"""A PSViT is a model of timm's: made, saved, loaded, resized, traced and looked into as one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import resolve_input_data_config
from timm.layers import resample_abs_pos_embed, set_fused_attn
from timm.models import save_for_hf
from timm.utils import AttentionExtract
from torch import Tensor, nn

from psvit_ray.arch.presets import PRESETS
from psvit_ray.arch.spec import ArchSpec, Pooling
from psvit_ray.model import PSViT, from_timm
from tests.helpers.networks import spec, vit, with_random_weights

POOLINGS: tuple[Pooling, ...] = ("1d", "2d")
HUB = "somebody/psvit"


@pytest.fixture(params=POOLINGS)
def arch(request: pytest.FixtureRequest) -> ArchSpec:
    return spec("2|1-2", 32, 48, pooling=request.param, pool_op="max", layer_scale=True)


@pytest.fixture
def model(arch: ArchSpec) -> Any:
    """With weights large enough that every parameter matters."""
    return with_random_weights(timm.create_model("psvit", spec=arch))


def images(size: int = 32, in_chans: int = 3) -> Tensor:
    return torch.randn(2, in_chans, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same(ours: Any, theirs: Any, x: Tensor) -> None:
    expected = theirs.eval()(x)
    assert expected.std() > 0.1  # outputs that a missing part would move
    torch.testing.assert_close(ours.eval()(x), expected, atol=1e-5, rtol=1e-5)


# Made


def test_any_spec_is_a_model_given_as_a_value_or_as_json(arch: ArchSpec) -> None:
    for given in (arch, arch.to_json(), arch.model_dump(mode="json")):
        model: Any = timm.create_model("psvit", spec=given)
        assert isinstance(model, PSViT)
        assert model.spec == arch
        assert (model.num_classes, model.in_chans) == (arch.num_classes, 3)
        config = resolve_input_data_config(model)
        assert config["input_size"] == (3, 32, 32)
        assert model.pretrained_cfg["num_classes"] == arch.num_classes


def test_a_pattern_takes_the_widths_of_the_spec_that_it_is_given_with() -> None:
    tiny = PRESETS["psvit_2d_tiny"]
    with torch.device("meta"):
        model: Any = timm.create_model("psvit", pattern="3|1-2")
        assert model.spec == tiny.with_pattern("3|1-2")
        model = timm.create_model("psvit", spec="psvit_1d_small", pattern="2|2|1")
        assert model.spec == PRESETS["psvit_1d_small"].with_pattern("2|2|1")


def test_arguments_change_the_fields_of_the_spec(arch: ArchSpec) -> None:
    changes: dict[str, Any] = {
        "img_size": 64,
        "patch_size": 16,
        "in_chans": 1,
        "num_classes": 3,
        "pool_op": "avg",
    }
    model: Any = timm.create_model("psvit", spec=arch, layer_scale=False, **changes)
    assert model.spec == arch.model_copy(update={**changes, "layer_scale": False})
    assert model(images(64, 1)).shape == (2, 3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"spec": "psvit_2d_tyni"}, "nearest is 'psvit_2d_tiny'"),
        ({"pattern": "1|1|1|1"}, "has 4 stages, but the base spec gives the widths of 3"),
        ({"spec": '{"img_size": 32}'}, "stages"),
        ({"img_size": (64, 32)}, "img_size must be one side of a square"),
    ],
)
def test_what_no_spec_describes_is_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model("psvit", **kwargs)


def test_pretrained_without_weights_to_load_is_refused() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights exist for psvit_2d_tiny"):
        timm.create_model("psvit_2d_tiny", pretrained=True, device="meta")


def test_parameters_are_of_the_device_and_dtype_given(arch: ArchSpec) -> None:
    model: Any = timm.create_model("psvit", spec=arch, device="meta", dtype=torch.float64)
    model.reset_classifier(3)
    assert {(str(p.device), p.dtype) for p in model.parameters()} == {("meta", torch.float64)}
    model = timm.create_model("psvit", spec=arch, dtype=torch.bfloat16)
    assert model(images().bfloat16()).dtype == torch.bfloat16


def test_a_network_from_the_meta_device_starts_with_the_weights_of_any_other(
    arch: ArchSpec,
) -> None:
    model: Any = timm.create_model("psvit", spec=arch, device="meta").to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    model.init_weights()
    torch.manual_seed(0)
    model.init_weights()
    again: Any = timm.create_model("psvit", spec=arch)
    torch.manual_seed(0)
    again.init_weights()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        assert torch.equal(parameter, again.get_parameter(name)), name
    assert model(images()).isfinite().all()


# Saved and loaded


def save(model: nn.Module, folder: Path) -> None:
    save_for_hf(model, str(folder), safe_serialization=True)


def load(folder: Path, **kwargs: Any) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs)


def test_a_saved_model_is_the_same_when_it_is_loaded(model: Any, tmp_path: Path) -> None:
    save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "psvit"
    assert ArchSpec.model_validate(config["model_args"]["spec"]) == model.spec
    loaded = load(tmp_path)
    assert loaded.spec == model.spec
    assert_same(loaded, model, images())


def test_what_was_changed_after_it_was_made_is_saved_too(model: Any, tmp_path: Path) -> None:
    model.set_input_size(64)
    model.reset_classifier(4)
    with_random_weights(model)
    save(model, tmp_path)
    loaded = load(tmp_path)
    assert loaded.spec == model.spec
    assert (loaded.spec.img_size, loaded.spec.num_classes) == (64, 4)
    assert_same(loaded, model, images(64))


def test_a_pattern_is_saved_as_the_spec_that_it_made(tmp_path: Path) -> None:
    base = spec("1-1|1-1", 32, 48, pooling="2d")
    model = with_random_weights(timm.create_model("psvit", spec=base, pattern="2|1"))
    save(model, tmp_path)
    assert_same(load(tmp_path), model, images())


def test_a_saved_preset_is_loaded_by_its_name(tmp_path: Path) -> None:
    model = with_random_weights(timm.create_model("psvit_1d_tiny", img_size=32, num_classes=5))
    save(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "psvit_1d_tiny"
    assert_same(load(tmp_path), model, images())


def test_other_classes_take_all_but_the_head(model: Any, tmp_path: Path) -> None:
    save(model, tmp_path)
    loaded = load(tmp_path, num_classes=3)
    assert loaded(images()).shape == (2, 3)
    model.reset_classifier(0)
    loaded.reset_classifier(0)
    assert_same(loaded, model, images())


def test_grey_images_take_the_sum_of_the_kernels_as_timm_does(model: Any, tmp_path: Path) -> None:
    save(model, tmp_path)
    grey = images(in_chans=1)
    loaded = load(tmp_path, in_chans=1)
    assert loaded.spec.in_chans == 1
    with torch.no_grad():
        expected = model(grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(loaded.eval()(grey), expected, atol=1e-4, rtol=1e-4)


def test_features_of_loaded_weights_are_the_stages_outputs(model: Any, tmp_path: Path) -> None:
    save(model, tmp_path)
    features = load(tmp_path, features_only=True).eval()
    expected = model.forward_intermediates(images(), output_fmt="NLC", intermediates_only=True)
    for output, level in zip(features(images()), expected, strict=True):
        tokens = output.flatten(2).transpose(1, 2) if output.ndim == 4 else output
        torch.testing.assert_close(tokens, level)


def test_a_model_of_the_hub_is_loaded_without_a_network_from_its_cache(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache is laid out as huggingface_hub documents it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cached = tmp_path / f"models--{HUB.replace('/', '--')}"
    revision = "0" * 40
    save(model, cached / "snapshots" / revision)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(revision)
    loaded: Any = timm.create_model(f"hf-hub:{HUB}", pretrained=True, cache_dir=tmp_path)
    assert_same(loaded, model, images())


# Resized


def test_positions_are_resized_as_timm_does_when_it_is_loaded_at_another_size(
    model: Any, tmp_path: Path
) -> None:
    save(model, tmp_path)
    loaded = load(tmp_path, img_size=48)
    assert loaded.spec == model.spec.model_copy(update={"img_size": 48})
    assert resolve_input_data_config(loaded)["input_size"] == (3, 48, 48)
    prefix = model.num_prefix_tokens
    expected = resample_abs_pos_embed(model.pos_embed, [6, 6], num_prefix_tokens=prefix)
    assert torch.equal(loaded.pos_embed, expected)
    model.set_input_size((48, 48))
    assert loaded.feature_info == model.feature_info
    assert_same(loaded, model, images(48))


def test_patches_of_another_size_are_those_of_timms_vit() -> None:
    theirs = vit()
    ours = from_timm(theirs)
    for network in (theirs, ours):
        network.set_input_size(img_size=(48, 48), patch_size=(12, 12))
    assert (ours.spec.img_size, ours.spec.patch_size) == (48, 12)
    assert_same(ours, theirs, images(48))


def test_a_size_that_no_spec_has_changes_nothing(model: Any) -> None:
    before = model.spec, model(images())
    for size, message in (
        (30, "multiple of patch_size=8"),
        ((32, 64), "img_size must be one side"),
        (8, "cannot be pooled again"),
    ):
        with pytest.raises(ValueError, match=message):
            model.set_input_size(size)
    assert model.spec == before[0]
    assert torch.equal(model(images()), before[1])


def test_a_frozen_network_stays_frozen_and_a_new_head_is_in_its_mode(model: Any) -> None:
    model.requires_grad_(False).eval().set_input_size(48)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model.reset_classifier(3)
    assert not any(module.training for module in model.modules())


# Traced


@pytest.mark.parametrize("attention", ["auto", "explicit", "fused"])
def test_a_traced_network_is_the_network(arch: ArchSpec, attention: str) -> None:
    model = with_random_weights(timm.create_model("psvit", spec=arch, attention=attention))
    assert_same(torch.fx.symbolic_trace(model), model, images())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:FutureWarning")
def test_scripting_is_refused_with_what_to_use_instead(model: Any) -> None:
    with pytest.raises(NotImplementedError, match=r"use torch.export or torch.compile"):
        torch.jit.script(model)


# Attention


@pytest.fixture
def unfused() -> Iterator[None]:
    set_fused_attn(False)
    yield
    set_fused_attn(True)


def maps_by_hand(model: PSViT, x: Tensor) -> list[Tensor]:
    """Of each layer the map of its leader, from the leader's queries and keys."""
    maps: list[Tensor] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...], _: object) -> None:
        qkv = getattr(module, "qkv", None)
        if qkv is None:
            maps.append(maps[-1])
            return
        q, k, _v = qkv(args[0]).chunk(3, dim=-1)
        heads = [y.unflatten(-1, (2, -1)).transpose(1, 2) for y in (q, k)]
        scores = heads[0] @ heads[1].transpose(-2, -1) / heads[0].shape[-1] ** 0.5
        maps.append(scores.softmax(dim=-1))

    handles = [block.attn.register_forward_hook(hook) for block in model.blocks]
    model(x)
    for handle in handles:
        handle.remove()
    return maps


@pytest.mark.usefixtures("unfused")
def test_timm_extracts_the_map_of_every_layer_leader_and_follower(arch: ArchSpec) -> None:
    """As of timm's own models, with `set_fused_attn(False)`."""
    model = with_random_weights(timm.create_model("psvit", spec=arch))
    expected = maps_by_hand(model, images())
    names = [f"stages.{i}.blocks.{j}.attn" for i, j in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2))]
    for method, wanted in (("hook", None), ("fx", ["*attn_drop"])):
        found = AttentionExtract(model, names=wanted, method=method)(images())
        assert list(found) == [f"{name}.attn_drop" for name in names]
        for weights, by_hand in zip(found.values(), expected, strict=True):
            torch.testing.assert_close(weights, by_hand, atol=1e-5, rtol=1e-5)
        assert torch.equal(found[f"{names[0]}.attn_drop"], found[f"{names[1]}.attn_drop"])
    leaders = AttentionExtract(model, method="fx")(images())  # timm's names of nodes
    assert list(leaders) == [f"{names[i]}.softmax" for i in (0, 2, 3)]


def test_a_hook_may_replace_the_map_of_one_layer_and_have_its_gradient(arch: ArchSpec) -> None:
    """What captum's layer attributions do: here of the follower in the first stage."""
    model = with_random_weights(timm.create_model("psvit", spec=arch, attention="explicit"))
    leader, follower = model.blocks[:2]
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(_: nn.Module, __: object, weights: Tensor) -> None:
            weights.retain_grad()
            seen[name] = weights

        return hook

    handles = [
        block.attn.attn_drop.register_forward_hook(keep(name))
        for name, block in (("leader", leader), ("follower", follower))
    ]
    model(images())[:, 0].sum().backward()
    assert all(weights.grad is not None and weights.grad.any() for weights in seen.values())
    for handle in handles:
        handle.remove()

    follower.attn.attn_drop.register_forward_hook(lambda _, __, weights: weights * 0)
    out: list[Tensor] = []
    for block in (leader, follower):
        block.attn.register_forward_hook(lambda _, __, output: out.append(output[0]))
    model(images())
    bias = follower.attn.proj.bias
    torch.testing.assert_close(out[1], bias.expand_as(out[1]))
    assert (out[0] - leader.attn.proj.bias).abs().max() > 0.1


# Intermediates


def test_intermediate_layers_are_the_stages_in_dinos_words(model: Any) -> None:
    x = images()
    expected = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
    found = model.get_intermediate_layers(x, n=2)
    assert all(map(torch.equal, found, expected))
    ((tokens, prefix),) = model.get_intermediate_layers(x, n=[1], return_prefix_tokens=True)
    assert torch.equal(tokens, expected[1])
    assert prefix.shape[1] == model.num_prefix_tokens
    whole = model.stages[1](model.stages[0](model._embed(x)))
    assert torch.equal(torch.cat((prefix, tokens), dim=1), whole)
    (grid,) = model.get_intermediate_layers(x, n=[0], reshape=True)
    assert torch.equal(grid.flatten(2).transpose(1, 2), expected[0])
