"""The network: sharing, pooling, the two attention strategies, and timm's habits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn

from psvit_ray.arch.presets import PRESETS
from psvit_ray.arch.spec import ArchSpec, Pooling, PoolOp, StageSpec, parse_pattern
from psvit_ray.model import PSViT
from psvit_ray.model.layers import (
    ExplicitMap,
    FusedMap,
    Strategy,
    TokenPool1d,
    TokenPool2d,
    choose_strategy,
    make_map,
)


def small_spec(
    pattern: str = "2|1-3|2", pooling: Pooling = "2d", op: PoolOp = "conv", **frame: Any
) -> ArchSpec:
    """Grids of 7, 4 and 2 (`2d`): odd sides."""
    stages = tuple(
        StageSpec(embed_dim=dim, num_heads=2, hidden_dim=3 * dim, share_groups=groups)
        for dim, groups in zip((12, 16, 20), parse_pattern(pattern), strict=False)
    )
    fields = {"img_size": 28, "patch_size": 4, "num_classes": 5} | frame
    return ArchSpec(pooling=pooling, pool_op=op, stages=stages, **fields)


def small_model(spec: ArchSpec | None = None, **kwargs: Any) -> PSViT:
    """Weights large enough that attention is far from uniform."""
    torch.manual_seed(0)
    model = PSViT(spec or small_spec(), **kwargs)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def images(spec: ArchSpec, batch: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, spec.in_chans, spec.img_size, spec.img_size, generator=generator)


def logits_and_gradients(model: PSViT, x: Tensor) -> list[Tensor]:
    model.zero_grad()
    logits = model(x)
    logits.square().mean().backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None for g in gradients)
    return [logits.detach(), *(g.clone() for g in gradients if g is not None)]


def assert_all_close(found: list[Tensor], expected: list[Tensor], atol: float = 1e-5) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


# Sharing


@pytest.mark.parametrize("pooling", ["1d", "2d"])
@pytest.mark.parametrize("strategy", ["explicit", "fused"])
def test_a_follower_uses_exactly_its_leaders_map(pooling: Pooling, strategy: Strategy) -> None:
    """The oracle is an unshared network, whose every layer makes its own map; a follower's is
    replaced by the one that its leader returned."""
    shared = small_model(small_spec("3|1-2", pooling), attention=strategy).eval()
    twin = PSViT(small_spec("1-1-1|1-1-1", pooling), attention=strategy).eval()
    weights = shared.state_dict()
    for name in [name for name in weights if ".attn.v." in name]:
        own, value = name.replace(".v.", ".qkv."), weights.pop(name)
        weights[own] = torch.cat((value.new_full(value.shape, 9.0),) * 2 + (value,))
    twin.load_state_dict(weights, strict=True)

    x = twin._embed(images(shared.spec))
    for stage, groups in zip(twin.stages, ((3,), (1, 2)), strict=True):
        x = stage.pool(x)
        blocks = iter(stage.blocks)
        for size in groups:
            weights_of_leader: Tensor | None = None
            for block in (next(blocks) for _ in range(size)):
                y = block.norm1(x)
                heads = (3, 2, -1)
                q, k, v = (
                    part.unflatten(-1, heads[1:]).transpose(1, 2)
                    for part in block.attn.qkv(y).chunk(3, dim=-1)
                )
                if weights_of_leader is None:
                    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
                    weights_of_leader = scores.softmax(dim=-1)
                x = x + block.attn.proj((weights_of_leader @ v).transpose(1, 2).flatten(2))
                x = x + block.mlp(block.norm2(x))
    expected = twin.forward_head(twin.norm(x))
    torch.testing.assert_close(shared(images(shared.spec)), expected, atol=1e-5, rtol=1e-5)


def test_followers_own_no_queries_or_keys() -> None:
    model = small_model(small_spec("2-1|3"))
    assert [hasattr(block.attn, "qkv") for block in model.blocks] == [1, 0, 1, 1, 0, 0]
    assert [hasattr(block.attn, "v") for block in model.blocks] == [0, 1, 0, 0, 1, 1]


# The two strategies


@pytest.mark.parametrize("pooling", ["1d", "2d"])
def test_fused_explicit_and_auto_agree_forward_and_backward(pooling: Pooling) -> None:
    models = {
        strategy: small_model(small_spec(pooling=pooling), attention=strategy)
        for strategy in ("explicit", "fused", "auto")
    }
    x = images(models["auto"].spec)
    results = {name: logits_and_gradients(model, x) for name, model in models.items()}
    assert_all_close(results["fused"], results["explicit"])
    assert_all_close(results["auto"], results["explicit"])


def test_auto_is_the_table() -> None:
    def choice(dtype: torch.dtype, tokens: int, layers: int, gradients: bool = False) -> str:
        return choose_strategy("cpu", dtype, tokens, layers, gradients=gradients)

    assert choice(torch.float32, 16, 1) == "fused"
    assert choice(torch.float32, 196, 2) == "explicit"
    assert choice(torch.float32, 196, 2, gradients=True) == "fused"
    assert choice(torch.float32, 784, 2) == "fused"
    assert choice(torch.float32, 784, 5) == "explicit"
    assert choice(torch.bfloat16, 784, 1) == "explicit"
    assert choice(torch.bfloat16, 785, 1) == "fused"
    assert choose_strategy("cuda", torch.bfloat16, 49, 3, gradients=False) == "fused"


def test_auto_sees_the_dtype_of_autocast_and_whether_gradients_are_wanted() -> None:
    q = torch.randn(1, 2, 100, 8)
    assert isinstance(make_map(q, q, "auto", 2), ExplicitMap)
    q.requires_grad_()
    assert isinstance(make_map(q, q, "auto", 2), FusedMap)
    block = small_model(small_spec("1")).blocks[0]
    x = torch.randn(1, 49, 12)
    assert isinstance(block(x)[1], FusedMap)
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(block(x)[1], ExplicitMap)


@pytest.mark.parametrize("pooling", ["1d", "2d"])
def test_bfloat16_autocast_is_near_float32_in_both_strategies(pooling: Pooling) -> None:
    spec = small_spec(pooling=pooling)
    x = images(spec)
    torch.manual_seed(0)
    reference = PSViT(spec)
    for strategy in ("explicit", "fused", "auto"):
        model = PSViT(spec, attention=strategy)
        model.load_state_dict(reference.state_dict())
        expected = logits_and_gradients(reference, x)
        with torch.autocast("cpu", torch.bfloat16):
            map_ = model.blocks[0](model._embed(x))[1]
            assert {t.dtype for t in map_} == {torch.bfloat16}
            found = logits_and_gradients(model, x)
        for part in (slice(0, 1), slice(1, None)):  # the logits; the gradients together
            a, b = (torch.cat([t.flatten() for t in ts[part]]) for ts in (found, expected))
            assert (a - b).norm() <= 0.03 * b.norm()


# Dropout of attention


@pytest.mark.parametrize("strategy", ["explicit", "fused"])
def test_dropped_attention_has_the_right_mean_and_a_mask_of_its_own_each_time(
    strategy: Strategy,
) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 6, 8)
    map_ = make_map(q, k, strategy, 2)
    half = nn.Dropout(0.5)
    one, other = map_.apply(v, half), map_.apply(v, half)  # two layers under one map
    assert not torch.equal(one, other)
    # Values that are the identity show the mask itself: each weight is 0 or doubled.
    weights = make_map(q, k, "explicit", 2).weights
    eye = torch.eye(6, 8).expand(1, 2, 6, 8)
    shown = map_.apply(eye, half)[..., :6]
    kept = shown != 0
    torch.testing.assert_close(shown[kept], 2 * weights[kept])
    assert 0 < kept.float().mean() < 1
    mean = torch.stack([map_.apply(v, nn.Dropout(0.3)) for _ in range(4000)]).mean(0)
    assert (mean - map_.apply(v, half.eval())).abs().max() < 0.1


@pytest.mark.parametrize("strategy", ["explicit", "fused"])
def test_attention_is_dropped_in_training_only(strategy: Strategy) -> None:
    model = small_model(attn_drop_rate=0.5, attention=strategy)
    plain = small_model(attention=strategy)
    x = images(model.spec)
    assert torch.equal(model.eval()(x), plain(x))
    model.train()
    assert not torch.equal(model(x), model(x))


# Activation checkpointing, compile, export, explicit state


@pytest.mark.parametrize("strategy", ["explicit", "fused"])
def test_checkpointed_gradients_are_equal_with_dropout_too(strategy: Strategy) -> None:
    rates = {"attn_drop_rate": 0.2, "drop_path_rate": 0.2, "drop_rate": 0.2}
    model = small_model(attention=strategy, **rates)
    x = images(model.spec)
    torch.manual_seed(5)
    expected = logits_and_gradients(model, x)
    model.set_grad_checkpointing()
    torch.manual_seed(5)
    found = logits_and_gradients(model, x)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_group_is_the_unit_of_checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader is run twice, once more in the backward pass, not once more a follower."""
    model = small_model(small_spec("3|2"))
    calls: list[nn.Module] = []
    for block in model.blocks:
        block.attn.register_forward_hook(lambda module, *_: calls.append(module))
    model.set_grad_checkpointing()
    logits_and_gradients(model, images(model.spec))
    assert sorted(calls.count(block.attn) for block in model.blocks) == [2] * 5


@pytest.mark.processes
def test_compiled_blocks_equal_eager_in_inductor() -> None:
    model = small_model(small_spec("2")).train()
    x = images(model.spec)
    expected = logits_and_gradients(model, x)
    model.compile_blocks(fullgraph=True)
    assert_all_close(logits_and_gradients(model, x), expected)


def test_more_kinds_of_blocks_than_torchs_limit_are_all_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ten rates of stochastic depth make ten kinds; torch's limit for one code object is eight
    (importing timm.optim happens to lift it)."""
    monkeypatch.setattr("torch._dynamo.config.recompile_limit", 8)
    model = small_model(small_spec("1-1-1-1-1|1-1-1-1-1"), drop_path_rate=0.5).train()
    x = images(model.spec)
    torch.manual_seed(3)
    expected = model(x)
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    model.compile_blocks(backend=backend)
    torch.manual_seed(3)
    torch.testing.assert_close(model(x), expected)
    assert len(graphs) == 10


def test_forward_writes_no_attribute() -> None:
    def state(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, module in model.named_modules():
            yield name, {key: id(value) for key, value in vars(module).items()}

    model = small_model(attn_drop_rate=0.1, drop_path_rate=0.1)
    before = dict(state(model))
    for checkpointing in (False, True):
        model.grad_checkpointing = checkpointing
        before = dict(state(model))
        model(images(model.spec)).sum().backward()
        model.forward_intermediates(images(model.spec))
        assert dict(state(model)) == before


# Pooling


@pytest.mark.parametrize("op", ["conv", "max", "avg"])
def test_a_2d_pool_is_its_definition_on_an_odd_grid(op: PoolOp) -> None:
    pool = TokenPool2d(6, 8, grid_size=5, op=op)
    x = torch.randn(2, 25, 6)
    grid = x.reshape(2, 5, 5, 6).permute(0, 3, 1, 2)
    weight, bias = pool.conv.weight, pool.conv.bias
    if op == "conv":
        y = F.conv2d(grid, weight, bias, stride=2, padding=1)
    else:
        wide = F.conv2d(grid, weight, bias)
        windows = [
            [wide[:, :, i : i + 2, j : j + 2].flatten(2) for j in (0, 2, 4)] for i in (0, 2, 4)
        ]
        reduce = Tensor.amax if op == "max" else Tensor.mean
        y = torch.stack([torch.stack([reduce(w, 2) for w in row], -1) for row in windows], -2)
    assert y.shape == (2, 8, 3, 3)
    torch.testing.assert_close(pool(x), y.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("op", ["conv", "max", "avg"])
def test_a_1d_pool_is_its_definition_and_leaves_the_class_token_out(op: PoolOp) -> None:
    pool = TokenPool1d(6, 8, op=op)
    x = torch.randn(2, 1 + 5, 6)
    patches = x[:, 1:].transpose(1, 2)
    if op == "conv":
        y = F.conv1d(patches, pool.conv.weight, pool.conv.bias, stride=2, padding=1)
    else:
        wide = F.conv1d(patches, pool.conv.weight, pool.conv.bias)
        reduce = Tensor.amax if op == "max" else Tensor.mean
        y = torch.stack([reduce(wide[:, :, i : i + 2], 2) for i in (0, 2, 4)], -1)
    expected = torch.cat((pool.cls_proj(x[:, :1]), y.transpose(1, 2)), dim=1)
    assert expected.shape == (2, 1 + 3, 8)
    torch.testing.assert_close(pool(x), expected)


@pytest.mark.parametrize("pooling", ["1d", "2d"])
@pytest.mark.parametrize("op", ["conv", "max", "avg"])
def test_tokens_are_those_of_the_spec_on_odd_grids(pooling: Pooling, op: PoolOp) -> None:
    model = small_model(small_spec(pooling=pooling, op=op))
    levels = model.forward_intermediates(
        images(model.spec), output_fmt="NLC", intermediates_only=True
    )
    assert tuple(level.shape[1] for level in levels) == model.spec.num_tokens
    assert model.spec.num_tokens == ((49, 16, 4) if pooling == "2d" else (49, 25, 13))


# timm's habits


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("psvit")])
def test_a_preset_trains_a_step_that_reaches_every_parameter(name: str) -> None:
    model = timm.create_model(name, img_size=112, num_classes=3, drop_rate=0.1, attn_drop_rate=0.1)
    assert isinstance(model, PSViT)
    F.cross_entropy(model(torch.randn(1, 3, 112, 112)), torch.tensor([1])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.count_nonzero() > 0, parameter_name


def test_timm_lists_the_presets_and_builds_them_with_its_arguments() -> None:
    assert timm.list_models("psvit_*") == sorted(n for n in PRESETS if n.startswith("psvit"))
    model = timm.create_model(
        "psvit_2d_tiny", num_classes=7, in_chans=1, img_size=64, drop_rate=0.1,
        attn_drop_rate=0.2, drop_path_rate=0.3,
    )  # fmt: skip
    changes = {"num_classes": 7, "in_chans": 1, "img_size": 64}
    assert model.spec == PRESETS["psvit_2d_tiny"].model_copy(update=changes)
    assert (model.num_classes, model.in_chans, model.drop_rate) == (7, 1, 0.1)
    assert {block.attn.attn_drop.p for block in model.blocks} == {0.2}
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.3 * i / 12 for i in range(13)])
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"img_size": (64, 32)}, "img_size must be one side of a square"),
        ({"img_size": 100}, "img_size must be a multiple of patch_size=16, got 100"),
        ({"global_pool": "max"}, "global_pool must be 'avg' or ''"),
        ({"drop_path_rate": 1.5}, "drop_path_rate must be at least 0 and less than 1, got 1.5"),
        ({"attention": "flash"}, "attention must be auto, explicit or fused, got 'flash'"),
    ],
)
def test_wrong_arguments_are_refused_in_words(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timm.create_model("psvit_2d_tiny", **kwargs)


@pytest.mark.parametrize("pooling", ["1d", "2d"])
def test_reset_classifier_and_spec_stay_of_one_mind(pooling: Pooling) -> None:
    model = small_model(small_spec(pooling=pooling))
    x = images(model.spec)
    model.reset_classifier(9)
    assert model(x).shape == (3, 9)
    assert model.get_classifier() is model.head
    assert model.spec == small_spec(pooling=pooling, num_classes=9)
    model.load_state_dict(PSViT(model.spec).state_dict())
    model.reset_classifier(0)
    assert torch.equal(model(x), model.forward_head(model.forward_features(x), pre_logits=True))
    assert (model.num_classes, model.spec.num_classes) == (0, 9)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), model.forward_features(x))


def test_intermediates_are_the_stages_outputs() -> None:
    model = small_model().eval()
    x = images(model.spec)
    seen: list[Tensor] = []
    for stage in model.stages:
        stage.register_forward_hook(lambda _module, _args, output: seen.append(output))
    features, levels = model.forward_intermediates(x)
    assert torch.equal(features, model.forward_features(x))
    assert [tuple(level.shape) for level in levels] == [(3, 12, 7, 7), (3, 16, 4, 4), (3, 20, 2, 2)]
    for level, output in zip(levels, seen, strict=False):
        assert torch.equal(level.flatten(2).transpose(1, 2), output)
    seen.clear()
    (only,) = model.forward_intermediates(x, [1], stop_early=True, intermediates_only=True)
    assert torch.equal(only, levels[1])
    assert len(seen) == 2
    normed = model.forward_intermediates(x, 1, norm=True, output_fmt="NLC", intermediates_only=True)
    assert torch.equal(normed[0], features)


def test_a_1d_pool_leaves_no_grid() -> None:
    model = small_model(small_spec(pooling="1d"))
    x = images(model.spec)
    with pytest.raises(ValueError, match="output_fmt must be NLC after a 1d pool"):
        model.forward_intermediates(x)
    grid = model.forward_intermediates(x, [0], intermediates_only=True)[0]
    tokens = model.forward_intermediates(x, output_fmt="NLC", intermediates_only=True)
    assert [tuple(level.shape) for level in tokens] == [(3, 49, 12), (3, 25, 16), (3, 13, 20)]
    assert torch.equal(grid.flatten(2).transpose(1, 2), tokens[0])


def test_features_only_gives_the_stages_and_keeps_no_dead_weight() -> None:
    net = timm.create_model("psvit_2d_tiny", features_only=True, img_size=64, out_indices=(0, 1))
    levels = net(torch.randn(1, 3, 64, 64))
    assert [tuple(level.shape) for level in levels] == [(1, 192, 4, 4), (1, 384, 2, 2)]
    assert net.feature_info.channels() == [192, 384]
    assert net.feature_info.reduction() == [16, 32]
    sum(level.sum() for level in levels).backward()
    assert all(p.grad is not None for p in net.parameters())
    sequence = timm.create_model("psvit_1d_tiny", features_only=True, img_size=64)
    shapes = [tuple(level.shape) for level in sequence(torch.randn(1, 3, 64, 64))]
    assert shapes == [(1, 16, 192), (1, 8, 256), (1, 4, 384)]


def test_layer_decay_gives_each_block_its_own_rate() -> None:
    model = small_model(small_spec("2|1-3|2", "1d"))
    groups = param_groups_layer_decay(
        model, layer_decay=0.5, no_weight_decay_list=tuple(model.no_weight_decay())
    )
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    names = dict(model.named_parameters())
    # stem, 8 blocks, norm and head: the head's rate is whole, each step down halves it.
    assert scale[id(names["head.weight"])] == 1
    blocks = [scale[id(block.mlp.fc1.weight)] for block in model.blocks]
    assert blocks == [blocks[0] * 2**i for i in range(8)]
    assert scale[id(names["stages.1.pool.conv.weight"])] == blocks[2]
    assert scale[id(names["pos_embed"])] == blocks[0] / 2
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    assert not decayed & {id(model.pos_embed), id(model.cls_token)}


def test_weights_start_as_timms() -> None:
    torch.manual_seed(0)
    model = PSViT(PRESETS["psvit_1d_tiny"])
    for name, parameter in model.named_parameters():
        if name == "pos_embed" or (parameter.ndim == 2 and "conv" not in name):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
        elif name.endswith("bias") and "conv" not in name and "patch_embed" not in name:
            assert not parameter.any(), name
    assert copy.deepcopy(model).spec == model.spec
