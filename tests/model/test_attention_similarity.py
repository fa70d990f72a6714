"""How alike the layers of a network are, against sums by hand and timm's own maps; the sharing that
this proposes, against all there are; and the jobs around it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from itertools import permutations, product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.layers import SwiGLU
from timm.models import VisionTransformer
from timm.models.vision_transformer import DiffParallelScalingBlock, ParallelScalingBlock
from torch import Tensor, nn

from psvit_ray.arch.cost import count_macs
from psvit_ray.arch.spec import ArchSpec, StageSpec, format_pattern, parse_pattern
from psvit_ray.data.sources.load_data import load_data
from psvit_ray.data.splits.layout import DataSettings
from psvit_ray.export import model_folder
from psvit_ray.model import PSViT, from_timm
from psvit_ray.model.attention_similarity import (
    Redundancy,
    mean_to_leader,
    measure_redundancy,
    propose,
    propose_followers,
)
from psvit_ray.report.redundancy import SharingProposal, followers
from psvit_ray.report.redundancy_picture import redundancy_png
from psvit_ray.search.record import Point, Record, RecordStore
from psvit_ray.storage.folder import Folder
from psvit_ray.training.config import Configuration, TrainConfig
from tests.helpers.command_line import Refused, Run, job, parse
from tests.helpers.drawn import drawn_folder
from tests.helpers.networks import (
    TIMM,
    exported,
    facts_of,
    psvit,
    saved,
    spec,
    timms,
    vit,
    with_random_weights,
)

nan = math.nan


def similarity(measured: Redundancy) -> NDArray[np.float64]:
    return np.array(measured.similarity)


def images(number: int = 5, size: int = 32) -> Tensor:
    return torch.randn(number, 3, size, size, generator=torch.Generator().manual_seed(3))


# The measure


def by_hand(*sharpness: float, heads: int = 1) -> PSViT:
    """Four tokens of two directions, +++-, in every layer, and in each a map whose logits are
    ln(sharpness) between tokens of one direction and 0 between the others."""
    dim = 2 * heads
    arch = ArchSpec(
        img_size=2,
        patch_size=1,
        in_chans=1,
        num_classes=2,
        pooling="2d",
        stages=(
            StageSpec(
                embed_dim=dim, num_heads=heads, hidden_dim=1, share_groups=(1,) * len(sharpness)
            ),
        ),
    )
    model = PSViT(arch).eval().double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    direction = torch.tensor([1.0, -1.0] * heads, dtype=torch.double)
    model.pos_embed.data[0] = torch.tensor([[1.0], [1.0], [1.0], [-1.0]]) * direction
    for block, sharp in zip(model.blocks, sharpness, strict=True):
        block.norm1.weight.data.fill_(1 / math.sqrt(1 / (1 + block.norm1.eps)))  # takes out eps
        # q k^T / sqrt(2) is 2 scale^2 / sqrt(2) within a direction, and its negative between.
        scale = math.sqrt(math.log(sharp) / 2 * math.sqrt(2) / 2)
        block.attn.qkv.weight.data[: 2 * dim] = scale * torch.eye(dim).repeat(2, 1)
    return model


def test_a_case_by_hand() -> None:
    """Sharpness 2: rows of the three weigh theirs 2/7 and the other 1/7, that of the other weighs
    itself 2/5 and theirs 1/5; sharpness 1: all 1/4."""
    measured = measure_redundancy(by_hand(1.0, 2.0), [torch.zeros(1, 1, 2, 2).double()])
    three, other = 7 / (2 * math.sqrt(13)), 5 / (2 * math.sqrt(7))
    mean = (3 * three + other) / 4
    np.testing.assert_allclose(similarity(measured), [[1, mean], [mean, 1]], atol=1e-9)
    # Of six pairs of tokens three point the same way, three the opposite way.
    np.testing.assert_allclose(measured.token_similarity, [0, 0], atol=1e-9)
    assert measured.num_images == 1


def weights(model: VisionTransformer, batch: Tensor) -> NDArray[np.float64]:
    """timm's maps by timm's code, (B, L, H, N, N): its explicit attention shows them to dropout."""
    found: list[Tensor] = []
    handles = []
    blocks: Any = model.blocks
    for block in blocks:
        block.attn.fused_attn = False
        handles.append(block.attn.attn_drop.register_forward_hook(lambda *a: found.append(a[2])))
    with torch.no_grad():
        model(batch)
    for block, handle in zip(blocks, handles, strict=True):
        block.attn.fused_attn = True
        handle.remove()
    return torch.stack(found, dim=1).numpy()


def alike(maps: NDArray[np.float64], one: int, other: int) -> float:
    """By definition, and by trying every match of the heads."""
    a, b = maps[:, one], maps[:, other]
    lengths = np.linalg.norm(a, axis=-1)[:, :, None] * np.linalg.norm(b, axis=-1)[:, None]
    cosines = (np.einsum("bhqk,bgqk->bhgq", a, b) / lengths).mean(axis=(0, 3))
    matches = permutations(range(len(cosines)))
    return max(np.mean([cosines[h, g] for h, g in enumerate(match)]) for match in matches)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"num_heads": 4},
        {"num_heads": 4, "qk_norm": True, "reg_tokens": 2, "mlp_layer": SwiGLU},
        {"num_heads": 1, "num_classes": 0, "class_token": False, "global_pool": "avg"},
    ],
)
def test_timms_maps_are_taken_as_timm_makes_them(kwargs: dict[str, Any]) -> None:
    model = vit(**kwargs).double()
    batch = images().double()
    maps = weights(model, batch)
    expected = [[alike(maps, i, j) for j in range(4)] for i in range(4)]
    assert np.ptp(expected) > 0.05  # layers that a wrong map would move
    np.testing.assert_allclose(similarity(measure_redundancy(model, [batch])), expected, atol=1e-9)


def test_sums_are_in_float64_also_of_a_network_in_float32() -> None:
    model = psvit(spec())
    found: list[Tensor] = []
    for block in model.blocks:
        block.attn.strategy = "explicit"
        block.register_forward_hook(lambda *a: found.append(a[2][1].weights))
    measured = measure_redundancy(model, images().split(1))
    maps = torch.stack(found).unflatten(0, (5, 4)).squeeze(2).double().numpy()
    expected = [[alike(maps, i, j) for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(similarity(measured), expected, rtol=0, atol=1e-11)


def test_token_similarity_is_the_mean_cosine_of_all_pairs_of_patch_tokens() -> None:
    model = vit(reg_tokens=2)
    _, tokens = cast(Any, model.forward_intermediates(images(), output_fmt="NLC"))
    expected = []
    for layer in tokens:
        units = nn.functional.normalize(layer.detach().double(), dim=-1)
        cosines = units @ units.transpose(1, 2)
        off = ~torch.eye(16, dtype=torch.bool)
        expected.append(float(cosines[:, off].mean()))
    measured = measure_redundancy(model, [images()]).token_similarity
    np.testing.assert_allclose(measured, expected, atol=1e-7)
    assert all(
        map(math.isnan, measure_redundancy(psvit(spec(patch_size=32)), [images()]).token_similarity)
    )


@pytest.mark.parametrize("strategy", ["explicit", "fused"])
def test_a_psvit_of_timms_weights_has_timms_redundancy(strategy: Any) -> None:
    theirs = with_random_weights(timm.create_model("deit_tiny_patch16_224", img_size=64))
    ours = from_timm(theirs)
    for block in ours.blocks:
        block.attn.strategy = strategy
    batch = images(3, 64).double()  # in float32 the last digits differ from processor to processor
    expected, found = (
        measure_redundancy(theirs.double(), [batch]),
        measure_redundancy(ours.double(), [batch]),
    )
    assert np.ptp(expected.similarity) > 0.05
    np.testing.assert_allclose(found.similarity, expected.similarity, atol=1e-9)
    np.testing.assert_allclose(found.token_similarity, expected.token_similarity, atol=1e-9)


@pytest.mark.parametrize("of_timm", [True, False])
def test_how_images_are_batched_changes_nothing(of_timm: bool) -> None:
    model = vit().double() if of_timm else psvit(spec("2-1|1-2|1", 32, 48, 64)).double()
    batch = images(10).double()
    expected = measure_redundancy(model, [batch])
    for size in (1, 7):
        found = measure_redundancy(model, batch.split(size))
        assert found.num_images == 10
        np.testing.assert_allclose(found.similarity, expected.similarity, atol=1e-9)
        np.testing.assert_allclose(found.token_similarity, expected.token_similarity, atol=1e-9)


def test_in_which_order_a_layer_has_its_heads_means_nothing() -> None:
    """Its queries and keys are those of the first layer, the heads turned round; the tokens between
    do not change."""
    model = psvit(spec("1-1"))
    blocks: Any = model.blocks
    first, second = blocks
    for block in blocks:
        for linear in (block.attn.proj, block.mlp.fc2):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
    nn.init.normal_(first.attn.qkv.weight, generator=torch.Generator().manual_seed(4))
    rows = first.attn.qkv.weight.data[:64].view(2, 2, 16, 32)  # q and k, heads
    second.attn.qkv.weight.data[:64] = rows.flip(1).reshape(64, 32)
    np.testing.assert_allclose(similarity(measure_redundancy(model, [images()])), 1, atol=1e-6)
    second.attn.qkv.weight.data[:32].neg_()  # looks where the first does not
    assert similarity(measure_redundancy(model, [images()]))[0, 1] < 0.9


@pytest.mark.parametrize("pooling", ["1d", "2d"])
def test_a_shared_map_is_exactly_as_itself_and_none_compares_across_a_pool(pooling: str) -> None:
    arch = spec("2-1|1-3", 32, 48, pooling=pooling)
    found = similarity(measure_redundancy(with_random_weights(PSViT(arch)), [images()]))
    stage = np.array([0, 0, 0, 1, 1, 1, 1])
    assert np.array_equal(np.isnan(found), stage[:, None] != stage)
    ones = {(i, j) for i, j in np.argwhere(found == 1).tolist() if i < j}
    assert ones == {(0, 1), (4, 5), (4, 6), (5, 6)}
    assert np.array_equal(found, found.T, equal_nan=True)


def test_a_network_is_left_as_it_was() -> None:
    for model in (vit(), psvit(spec())):
        expected = model(images())
        measure_redundancy(model, [images()])
        assert torch.equal(model(images()), expected)
        assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("model", "got"),
    [
        (lambda: timm.create_model("test_convnext"), "got ConvNeXt, whose layers have no"),
        (lambda: timm.models.SwinTransformer(depths=(1,), num_heads=(2,), embed_dim=8), "got Swin"),
        (lambda: vit(block_fn=ParallelScalingBlock), "got a VisionTransformer of ParallelScaling"),
        (lambda: vit(block_fn=DiffParallelScalingBlock), "VisionTransformer of DiffParallel"),
        (lambda: vit(attn_layer="diff"), "got a VisionTransformer of DiffAttention$"),
    ],
)
def test_a_network_without_such_maps_is_refused(model: Any, got: str) -> None:
    with pytest.raises(ValueError, match=rf"^model must .*{got}"):
        measure_redundancy(model(), [images()])


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^images must be at least one, got none$"):
        measure_redundancy(vit(), [])


# The proposal

SIX = [  # the third is as the second, not as the first; a pool after the fourth
    [1.0, 0.9, 0.7, 0.9, nan, nan],
    [0.9, 1.0, 0.99, 0.8, nan, nan],
    [0.7, 0.99, 1.0, 0.6, nan, nan],
    [0.9, 0.8, 0.6, 1.0, nan, nan],
    [nan, nan, nan, nan, 1.0, 0.5],
    [nan, nan, nan, nan, 0.5, 1.0],
]


@pytest.mark.parametrize(
    ("threshold", "max_group", "pattern"),
    [
        (1.0, None, "1-1-1-1|1-1"),
        (0.99, None, "1-2-1|1-1"),
        (0.9, None, "2-1-1|1-1"),  # the third is asked about the first, its leader
        (0.7, None, "4|1-1"),
        (0.6, 3, "3-1|1-1"),
        (0.6, 2, "2-2|1-1"),
        (0.6, 1, "1-1-1-1|1-1"),
        (0.5, None, "4|2"),
        (1e-9, None, "4|2"),
    ],
)
def test_a_layer_joins_while_it_is_as_its_leader(
    threshold: float, max_group: int | None, pattern: str
) -> None:
    assert propose(SIX, threshold, max_group) == pattern


@pytest.mark.parametrize("threshold", [0, -0.1, 1.1, nan])
def test_a_threshold_is_a_similarity(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"^threshold must be more than 0 and at most 1, got "):
        propose(SIX, threshold)


def test_what_a_network_shares_is_proposed_again_at_threshold_1() -> None:
    for pattern in ("2-1|1-3", "1-2-1|2", "3|1-1-2"):
        model = with_random_weights(PSViT(spec(pattern, 32, 48)))
        assert propose(measure_redundancy(model, [images()]).similarity, 1.0) == pattern


def patterns(depth: int) -> Iterator[tuple[int, ...]]:
    """All share groups of so many layers."""
    for cuts in product([False, True], repeat=depth - 1):
        ends = [*(i + 1 for i, cut in enumerate(cuts) if cut), depth]
        yield tuple(np.diff([0, *ends]).tolist())


@pytest.mark.parametrize("max_group", [None, 2, 3])
def test_so_many_followers_are_those_of_the_largest_sum_of_all_there_are(
    max_group: int | None,
) -> None:
    rng = np.random.default_rng(0)
    half = rng.uniform(size=(7, 7))
    matrix = np.maximum(half, half.T)
    matrix[:3, 3:] = matrix[3:, :3] = nan
    every = [
        format_pattern(pair)
        for pair in product(patterns(3), patterns(4))
        if max(*pair[0], *pair[1]) <= (max_group or 7)
    ]
    by_followers: dict[int, list[str]] = {}
    for one in every:
        by_followers.setdefault(followers(one), []).append(one)
    for number, several in by_followers.items():
        expected = max(several, key=lambda one: number and mean_to_leader(matrix.tolist(), one))
        assert propose_followers(matrix.tolist(), number, max_group) == expected
    most = max(by_followers)
    with pytest.raises(ValueError, match=rf"^followers must be at most {most} in .*, got 6$"):
        propose_followers(matrix.tolist(), 6, max_group)


def test_the_mean_is_over_followers_and_their_leaders() -> None:
    assert mean_to_leader(SIX, "3-1|2") == pytest.approx((0.9 + 0.7 + 0.5) / 3)
    assert mean_to_leader(SIX, "1-2-1|1-1") == 0.99
    assert math.isnan(mean_to_leader(SIX, "1-1-1-1|1-1"))


# The job


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    arch = spec("1-1-1|1-1", 32, 48, img_size=8, patch_size=2, in_chans=1, pooling="2d")
    exported(folder, facts_of(arch, mean=(0.3,), std=(0.4,), holdout=0.4, split_seed=7))
    return folder


def written(folder: Path) -> SharingProposal:
    return SharingProposal.model_validate_json((folder / "redundancy.json").read_text())


def test_the_job_measures_the_hold_out_of_the_training(
    run: Run, model: Path, tmp_path: Path
) -> None:
    said = run(f"redundancy --model {model} --data digits --out o --threshold 0.8 --num-images 999")
    assert (said.code, said.err) == (0, "")
    held = load_data(DataSettings(holdout=0.4, split_seed=7)).holdout
    network = model_folder.load_model_folder(model)
    pixels = torch.stack([torch.as_tensor(held.images[i]) for i in range(len(held))])  # type: ignore[attr-defined]
    expected = measure_redundancy(network.model, [network.preprocessing.normalize(pixels)])
    found = written(tmp_path / "o")
    assert found.redundancy.num_images == len(held) == 575
    np.testing.assert_allclose(similarity(found.redundancy), similarity(expected), atol=1e-6)
    assert found.pattern == propose(found.redundancy.similarity, 0.8)
    assert found.spec == network.config.spec
    share = count_macs(found.spec.with_pattern(found.pattern)) / count_macs(found.spec)
    assert f"sharing under threshold 0.8: {found.pattern}\n" in said.out
    assert f"{share:.3f} of the network's\nwritten: {tmp_path}/o\n" in said.out
    assert (found.threshold, found.num_unreadable, found.data) == (0.8, 0, "digits")

    rows = list(csv.DictReader(io.StringIO((tmp_path / "o" / "redundancy.csv").read_text())))
    for layer, row in enumerate(rows):
        assert float(row["tokens"]) == found.redundancy.token_similarity[layer]
        expected_row = found.redundancy.similarity[layer]
        read = [float(row[str(other + 1)] or "nan") for other in range(5)]
        np.testing.assert_array_equal(read, expected_row)
    Image.open(tmp_path / "o" / "redundancy.png").verify()


def test_so_many_images_are_drawn_by_a_seed_and_so_many_layers_follow(
    run: Run, model: Path, tmp_path: Path
) -> None:
    line = f"redundancy --model {model} --data digits --num-images 9 --followers 2"
    for out, more in (("a", ""), ("b", "--batch-size 2"), ("c", "--seed 1")):
        assert run(f"{line} --out {out} {more}").code == 0
    a, b, c = (written(tmp_path / out) for out in "abc")
    assert a.redundancy.num_images == 9
    np.testing.assert_allclose(similarity(a.redundancy), similarity(b.redundancy), atol=1e-6)
    assert np.nanmax(abs(similarity(a.redundancy) - similarity(c.redundancy))) > 1e-5
    assert a.threshold is None
    assert a.pattern == propose_followers(a.redundancy.similarity, 2)
    assert followers(a.pattern) == 2


@pytest.mark.parametrize("name", [TIMM, TIMM.removeprefix("timm:")])
def test_the_job_takes_a_network_of_timms_and_makes_pictures_fit(
    run: Run, tmp_path: Path, name: str
) -> None:
    """Unreadable images are left out, and test images not looked at."""
    drawn_folder(tmp_path / "data", classes=2, size=40, splits={"train": 2, "val": 3})
    for path in sorted((tmp_path / "data" / "val").rglob("*.png"))[:2]:
        path.write_bytes(b"")
    broken = tmp_path / "data" / "test" / "dotted-square"
    broken.mkdir(parents=True)
    for folder in (tmp_path / "data" / "train").iterdir():
        test = broken.parent / folder.name
        test.mkdir(exist_ok=True)
        (test / "never.png").write_bytes(b"")
    weights = saved(tmp_path / "w.safetensors", timms(num_classes=7).state_dict())
    said = run(f"redundancy --model {name} --model-checkpoint {weights} --data data --out o")
    assert (said.code, said.err) == (0, "")
    found = written(tmp_path / "o")
    assert (found.redundancy.num_images, found.num_unreadable) == (4, 2)
    assert "2 images cannot be read and are left out\n" in said.out
    assert len(found.redundancy.similarity) == 6
    assert "MACs are not known: from_timm: no ArchSpec" in said.out
    for path in (tmp_path / "data" / "val").rglob("*.png"):
        path.write_bytes(b"")
    said = run(f"redundancy --model {name} --model-checkpoint {weights} --data data --out p")
    assert (said.code, said.err) == (2, "error: none of the 6 hold-out images can be read\n")
    assert not (tmp_path / "p").exists()


def test_a_validation_split_that_was_kept_for_the_test_is_not_looked_at(
    run: Run, tmp_path: Path
) -> None:
    drawn_folder(tmp_path / "data", classes=2, size=32, splits={"train": 10, "val": 3})
    exported(tmp_path / "kept", facts_of(spec("2-1-1"), val_as_test=True, holdout=0.4))
    exported(tmp_path / "not", facts_of(spec("2-1-1"), val_as_test=False, holdout=0.4))
    for name, number in (("kept", 8), ("not", 6)):
        assert run(f"redundancy --model {name} --data data --out o-{name}").code == 0
        assert written(tmp_path / f"o-{name}").redundancy.num_images == number


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "--model, --data, --out must be given"),
        ("--threshold 0", "threshold must be more than 0, got 0.0"),
        ("--threshold 1.01", "threshold must be at most 1, got 1.01"),
        ("--num-images 0", "num_images must be at least 1, got 0"),
        ("--followers -1", "followers must be at least 0, got -1"),
        ("--max-group 0", "max_group must be at least 1, got 0"),
        (
            "--model deit_tinny_patch16_224",
            "model must be an exported folder or a network of timm's, got "
            "'deit_tinny_patch16_224'; timm's nearest is timm:deit_tiny_patch16_224",
        ),
        (
            "--model timm:deit_tinny_patch16_224",
            "model: timm has no 'deit_tinny_patch16_224'; nearest is timm:deit_tiny_patch16_224",
        ),
        (
            "--model /no/model",
            "model must be an exported folder, got /no/model, without config.json",
        ),
        (
            "--model MODEL --model-checkpoint w.pth",
            "model must be timm:NAME with model_checkpoint, got 'MODEL'",
        ),
        (
            "--model MODEL --data digitz",
            "data must be a known source, got 'digitz'; nearest is 'digits'",
        ),
        (
            "--model MODEL --followers 4",
            "followers must be at most 3 in these layers, got 4",
        ),
        (
            "--model MODEL --out /proc/nothing",
            "out must be writable, got /proc/nothing: No such file or directory in /proc",
        ),
    ],
)
def test_wrong_input_is_one_line(refused: Refused, model: Path, line: str, said: str) -> None:
    given = {"--model": "MODEL", "--data": "digits", "--out": "o"}
    words = [
        f"{flag} {value}" for flag, value in given.items() if line and flag not in line.split()
    ]
    found = refused(f"redundancy {' '.join(words)} {line}".replace("MODEL", str(model)))
    assert found == said.replace("MODEL", str(model))


def test_a_network_of_another_kind_or_size_is_one_line(refused: Refused, tmp_path: Path) -> None:
    file = saved(tmp_path / "c.pth", timm.create_model("test_convnext").state_dict())
    said = refused(
        f"redundancy --model test_convnext --model-checkpoint {file} --data digits --out o"
    )
    start, _, nearest = said.partition("; nearest is timm:")
    assert start == (
        "model must be a PSViT or timm's VisionTransformer, got ConvNeXt, whose layers have no "
        "attention maps over all tokens"
    )
    assert timm.is_model(nearest)
    file = saved(tmp_path / "v.pth", timms().state_dict())
    assert refused(
        f"redundancy --model {TIMM} --model-checkpoint {file} --data digits --out o"
    ) == ("img_size must be 8, as in data 'digits', got 160 in the model")


@pytest.mark.parametrize("pattern", ["1-2-1|1", "40"])
def test_the_picture_outlines_each_group_and_leaves_other_grids_grey(pattern: str) -> None:
    stages = parse_pattern(pattern)
    depth = sum(map(sum, stages))
    of_stage = [number for number, stage in enumerate(stages) for _ in range(sum(stage))]
    rows = tuple(tuple(0.9 if i == j else nan for j in of_stage) for i in of_stage)
    measured = Redundancy(num_images=1, similarity=rows, token_similarity=(0.5,) * depth)
    picture = redundancy_png(measured, pattern, "a $b$")
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    assert (pixels == (0xD5, 0x5E, 0x00)).all(axis=-1).any()
    grey = (pixels == 230).all(axis=-1).mean()  # axes of 0.9
    assert grey > 0.05 if len(stages) > 1 else grey < 0.001


# The study


def proposal(folder: Path, **changes: Any) -> SharingProposal:
    arch = spec("1-1-1-1-1", img_size=8, patch_size=4, in_chans=1)
    rows = tuple(tuple(1 - 0.1 * abs(i - j) for j in range(5)) for i in range(5))
    measured = Redundancy(num_images=9, similarity=rows, token_similarity=(0.5,) * 5)
    fields: dict[str, Any] = {
        **{"model": "model/", "data": "digits", "seed": 0, "num_unreadable": 0, "threshold": 0.9},
        **{"max_group": None, "pattern": "2-1-2", "spec": arch, "redundancy": measured},
    }
    found = SharingProposal.model_validate(fields | changes)
    folder.mkdir(exist_ok=True)
    (folder / "redundancy.json").write_text(found.model_dump_json())
    return found


def test_a_proposal_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = ((1.0, nan), (nan, 1.0))
    measured = Redundancy(num_images=9, similarity=rows, token_similarity=(0.5, nan))
    found = proposal(tmp_path / "r", redundancy=measured)
    assert written(tmp_path / "r").model_dump_json() == found.model_dump_json()
    np.testing.assert_array_equal(similarity(written(tmp_path / "r").redundancy), rows)


def test_random_sharings_are_distinct_others_of_the_same_cost() -> None:
    draw = job("sharing_study").random_sharings
    base = spec("1-1-1-1-1|1-1-1", 32, 48)
    assert len({(*draw("2-1-2|1-2", 11, seed).values(),) for seed in range(5)}) == 5
    found = draw("2-1-2|1-2", 11, 0)  # 6 ways by 2, but for itself: all there are
    assert list(found) == [f"random {n}" for n in range(1, 12)]
    assert len({*found.values(), "2-1-2|1-2"}) == 12
    assert {count_macs(base.with_pattern(one)) for one in found.values()} == {
        count_macs(base.with_pattern("2-1-2|1-2"))
    }
    with pytest.raises(ValueError, match=r"^sharings must be at most 11, as no more cost what 2-1"):
        draw("2-1-2|1-2", 12, 0)


def test_the_study_ranks_by_means_and_pairs_by_seed(tmp_path: Path) -> None:
    found = proposal(tmp_path / "r")
    assert found.spec
    scores = {
        "proposed": ("2-1-2", (80.0, 90.0)),
        "random 1": ("3-1-1", (81.0, 91.0)),
        "random 2": ("1-3-1", (71.0, 83.0)),
        "nothing shared": ("1-1-1-1-1", (95.0, 97.0)),
    }
    configurations, records = {}, []
    for name, (pattern, top1) in scores.items():
        configurations[name] = [
            Configuration(spec=found.spec.with_pattern(pattern), train=TrainConfig(seed=seed))
            for seed in range(2)
        ]
        for one, score in zip(configurations[name], top1, strict=True):
            point = Point(epoch=20, step=1, metrics={"holdout/top1": score})
            record = Record(number=0, kind="fixed", params={}, configuration=one, curve=(point,))
            records.append(record.model_copy(update={"status": "completed"}))
    write, folder = job("sharing_study").write, job("sharing_study").Folder(str(tmp_path))
    assert write(found, configurations, records[1:], folder) == (
        "proposed is not trained with all 2 seeds: go on with --resume"
    )
    said = write(found, configurations, records, folder).splitlines()
    assert [line.split("  ")[0] for line in said[1:5]] == [
        "nothing shared",
        "random 1",
        "proposed",
        "random 2",
    ]
    assert said[-1].startswith("The proposed sharing is number 2 of 3 of its cost: +3.50 ± 0.71 ")
    content = json.loads((tmp_path / "sharings.json").read_text())
    assert (content["rank"], content["gains"]) == (2, [4.0, 3.0])
    by_name = {row["name"]: row for row in content["sharings"]}
    assert by_name["random 1"]["mean_to_leader"] == pytest.approx(0.85)
    assert by_name["proposed"]["scores"] == [80.0, 90.0]
    assert by_name["nothing shared"]["mean_to_leader"] is None


def test_the_study_refuses_what_it_cannot_compare(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    line = "sharing_study --redundancy"
    assert refused(f"{line} empty") == (
        f"redundancy must be a folder that psvit redundancy wrote, got {tmp_path}/empty, without "
        "redundancy.json"
    )
    assert refused(f"{line} empty --seeds 1") == "seeds must be at least 2, got 1"
    proposal(tmp_path / "none", pattern="1-1-1-1-1")
    assert refused(f"{line} none") == (
        "redundancy must propose to share something, got 1-1-1-1-1; lower the threshold of "
        "psvit redundancy, or give it --followers"
    )
    proposal(tmp_path / "other", spec=None)
    assert refused(f"{line} other") == (
        "redundancy must be of a network that an ArchSpec describes, got model/"
    )
    proposal(tmp_path / "some")
    assert refused(f"{line} some --sharings 6") == (
        "sharings must be at most 5, as no more cost what 2-1-2 does, got 6"
    )
    for content in ("{", "[" * 5_000):
        (tmp_path / "some" / "redundancy.json").write_text(content)
        assert refused(f"{line} some").startswith(f"{tmp_path}/some/redundancy.json: Invalid JSON")


@pytest.mark.usefixtures("ray_cluster")
def test_the_study_runs_and_goes_on(tmp_path: Path) -> None:
    proposal(tmp_path / "r")
    line = (
        f"sharing_study --redundancy {tmp_path}/r --storage {tmp_path}/out --name a --sharings 1 "
        "--seeds 2 --epochs 1 --warmup-epochs 0 --data-fraction 0.2"
    )
    assert job("sharing_study").work(parse(line)) == 0
    content = json.loads((tmp_path / "out" / "a" / "sharings.json").read_text())
    assert [len(row["scores"]) for row in content["sharings"]] == [2, 2, 2]
    records = RecordStore(Folder(str(tmp_path / "out" / "a"))).all()
    trained = [(one.pattern, one.configuration.train.seed) for one in records]
    assert len({*trained}) == len(trained) == 6
    assert {seed for _, seed in trained} == {0, 1}
    (tmp_path / "out" / "a" / "sharings.json").unlink()
    assert job("sharing_study").work(parse(f"{line} --resume")) == 0  # from the record alone
    assert json.loads((tmp_path / "out" / "a" / "sharings.json").read_text()) == content
