"""A spec: what it refuses, and that its id and its text mean the same spec everywhere."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from pydantic import ValidationError

from psvit_ray.arch.spec import ArchSpec, StageSpec, Value, format_pattern, parse_pattern


def stage(*groups: int, **changed: Any) -> StageSpec:
    fields = {"embed_dim": 16, "num_heads": 2, "hidden_dim": 32, "share_groups": groups}
    return StageSpec.model_validate({**fields, **changed})


def two_stages(**changed: Any) -> ArchSpec:
    fields = {
        "img_size": 32,
        "patch_size": 2,
        "num_classes": 10,
        "pooling": "2d",
        "pool_op": "max",
        "stages": (
            stage(2, 1),
            stage(1, 2, embed_dim=24, num_heads=3, hidden_dim=96),
        ),
    }
    return ArchSpec.model_validate({**fields, **changed})


DEIT_TINY = ArchSpec(
    pooling="1d", stages=(stage(*[1] * 12, embed_dim=192, num_heads=3, hidden_dim=768),)
)


def test_spec_id_never_changes() -> None:
    # The literal ids of records and runs that exist: a change here orphans them.
    assert two_stages().to_json() == (
        '{"img_size":32,"num_classes":10,"patch_size":2,"pool_op":"max","pooling":"2d","stages":'
        '[{"embed_dim":16,"hidden_dim":32,"num_heads":2,"share_groups":[2,1]},'
        '{"embed_dim":24,"hidden_dim":96,"num_heads":3,"share_groups":[1,2]}]}'
    )
    assert two_stages().spec_id == "82c28d4f83"
    assert DEIT_TINY.spec_id == "71d26d8823"


def test_a_field_added_later_renames_nothing() -> None:
    class LaterSpec(ArchSpec):
        registers: int = 0

    for spec in (two_stages(), DEIT_TINY):
        later = LaterSpec.model_validate(spec.model_dump())
        assert later.spec_id == spec.spec_id
        assert LaterSpec.model_validate({**dict(later), "registers": 4}).spec_id != spec.spec_id


def test_every_field_enters_the_id() -> None:
    changes: list[dict[str, Any]] = [
        {"img_size": 64},
        {"patch_size": 4},
        {"in_chans": 1},
        {"num_classes": 11},
        {"pooling": "1d"},
        {"pool_op": "avg"},
        {"layer_scale": True},
        {"stages": (stage(2, 1), stage(1, 2))},
        {"stages": (stage(3), stage(1, 2, embed_dim=24, num_heads=3, hidden_dim=96))},
    ]
    assert {name for change in changes for name in change} == set(ArchSpec.model_fields)
    ids = {two_stages(**change).spec_id for change in [{}, *changes]}
    assert len(ids) == len(changes) + 1


def test_a_default_written_out_is_the_same_spec() -> None:
    written = ArchSpec.model_validate(DEIT_TINY.model_dump())
    assert written == DEIT_TINY
    assert hash(written) == hash(DEIT_TINY)
    assert written.spec_id == DEIT_TINY.spec_id


@pytest.mark.parametrize("spec", [two_stages(), two_stages(layer_scale=True), DEIT_TINY])
def test_json_gives_the_spec_back(spec: ArchSpec) -> None:
    assert ArchSpec.from_json(spec.to_json()) == spec
    assert ArchSpec.from_json(spec.model_dump_json()) == spec


def test_the_pool_operator_of_one_stage_means_nothing() -> None:
    specs = {two_stages(stages=(stage(2),), pool_op=op) for op in ("conv", "max", "avg")}
    assert len(specs) == 1
    assert {spec.spec_id for spec in specs} == {two_stages(stages=(stage(2),)).spec_id}
    with pytest.raises(ValidationError, match="pool_op"):
        two_stages(stages=(stage(2),), pool_op="mex")


@pytest.mark.parametrize("name", ["embed_dim", "num_heads", "hidden_dim"])
@pytest.mark.parametrize("value", [True, 16.0, 16.5, "16", 0, -16, None])
def test_widths_are_whole_numbers_of_at_least_one(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        stage(1, **{name: value})


@pytest.mark.parametrize("name", ["img_size", "patch_size", "in_chans", "num_classes"])
@pytest.mark.parametrize("value", [True, 4.0, "4", 0, -4])
def test_sizes_are_whole_numbers_of_at_least_one(name: str, value: object) -> None:
    with pytest.raises(ValidationError, match=name):
        two_stages(**{name: value})


@pytest.mark.parametrize("groups", [(), (0,), (1, -1), (True,), (1.0,)])
def test_share_groups_hold_one_layer_or_more(groups: tuple[Any, ...]) -> None:
    with pytest.raises(ValidationError, match="share_groups"):
        stage(*groups)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_scale": 1}, "layer_scale must be true or false, got 1"),
        ({"layer_scale": "yes"}, "layer_scale must be true or false, got 'yes'"),
        (
            {"img_size": 30, "patch_size": 8},
            "multiple of patch_size=8, got 30; nearest is 24 or 32",
        ),
        ({"patch_size": 32}, r"1 token cannot be pooled again \(before stage 2 of 2\)"),
        ({"patch_size": 32, "pooling": "1d"}, "1 token cannot be pooled again"),
        ({"pooling": "3d"}, "pooling"),
        ({"pool_op": "min"}, "pool_op"),
        ({"stages": ()}, "stages"),
        ({"stages": 5}, "stages"),
        ({"depth": 4}, "unknown field 'depth'"),
        ({"pool_ops": "max"}, "unknown field 'pool_ops'; nearest is 'pool_op'"),
        ({"num_class": 3}, "nearest is 'num_classes'"),
    ],
)
def test_wrong_fields_are_refused_in_words(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        two_stages(**change)


def test_a_width_that_heads_do_not_divide_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ValidationError, match="multiple of num_heads=5, got 16; nearest is 15 or 20"
    ):
        stage(1, num_heads=5)
    with pytest.raises(ValidationError, match="multiple of num_heads=32, got 16; nearest is 32 "):
        stage(1, num_heads=32)


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        two_stages().img_size = 64  # type: ignore[misc]


@pytest.mark.parametrize(
    ("pooling", "img_size", "num_tokens"),
    [
        ("2d", 14, (49, 16, 4)),  # 7, 4, 2 a side: odd sides round up
        ("1d", 14, (49, 25, 13)),
        ("2d", 4, (4, 1)),
        ("1d", 4, (4, 2, 1)),
    ],
)
def test_a_pool_halves_and_rounds_up(
    pooling: str, img_size: int, num_tokens: tuple[int, ...]
) -> None:
    stages = (stage(1),) * len(num_tokens)
    spec = two_stages(img_size=img_size, pooling=pooling, stages=stages)
    assert spec.num_tokens == num_tokens
    if num_tokens[-1] == 1:
        with pytest.raises(ValidationError, match="cannot be pooled again"):
            two_stages(img_size=img_size, pooling=pooling, stages=(*stages, stage(1)))


def test_a_pattern_is_its_groups_and_back() -> None:
    groups = [(2, 2), (2, 1, 2), (2,)]
    assert format_pattern(groups) == "2-2|2-1-2|2"
    assert parse_pattern("2-2|2-1-2|2") == tuple(groups)
    sizes = (1, 2, 11)
    for num_stages, length in itertools.product((1, 2), (1, 2)):
        for flat in itertools.product(sizes, repeat=num_stages * length):
            stages = tuple(flat[i : i + length] for i in range(0, len(flat), length))
            assert parse_pattern(format_pattern(stages)) == stages


@pytest.mark.parametrize(
    ("text", "character", "found"),
    [
        ("", 1, "nothing"),
        ("2-2|", 5, "nothing"),
        ("|2", 1, "nothing"),
        ("2--2", 3, "nothing"),
        ("2-0|1", 3, "'0'"),
        ("2-2|2-x-2", 7, "'x'"),
        ("12-1|a", 6, "'a'"),
        ("2,2", 1, "'2,2'"),
        ("2-²", 3, "'²'"),
        ("2 -2", 1, "'2 '"),
    ],
)
def test_a_bad_pattern_is_refused_with_its_place(text: str, character: int, found: str) -> None:
    with pytest.raises(ValueError, match=rf"at character {character}, got {found} \(") as error:
        parse_pattern(text)
    assert repr(text) in str(error.value)


def test_a_pattern_takes_the_widths_of_its_base() -> None:
    base = two_stages()
    assert base.with_pattern(base.pattern) == base
    other = base.with_pattern("1-1-3|4")
    assert other.pattern == "1-1-3|4"
    assert (other.depth, base.depth) == (9, 6)
    assert [s.embed_dim for s in other.stages] == [16, 24]
    one = base.with_pattern("3")
    assert one == two_stages(stages=(stage(3),))
    with pytest.raises(ValueError, match="has 3 stages, but the base spec gives the widths of 2"):
        base.with_pattern("1|1|1")


class Documented(Value):
    count: int = 0
    """Number of things, which are counted
    in two lines."""


def test_a_fields_docstring_is_its_help_on_one_line() -> None:
    described = Documented.model_fields["count"].description
    assert described == "Number of things, which are counted in two lines."
