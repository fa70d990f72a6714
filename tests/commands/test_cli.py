"""Wrong input is one clear line and exit code 2, and nothing is written."""

from __future__ import annotations

import itertools
import json
import math
import os
import shlex
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent import futures
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import requests
import tyro
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from ray.exceptions import RayTaskError

from psvit_ray.arch.presets import preset
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.commands import command_line
from psvit_ray.data.shards import plan
from psvit_ray.data.shards.settings import ShardSettings
from psvit_ray.data.sources.load_data import load_data, read_data
from psvit_ray.data.splits.layout import DataSettings
from psvit_ray.runtime.cluster import cluster
from psvit_ray.runtime.session.lease import Lease
from psvit_ray.search import pace
from psvit_ray.search.description import DESCRIPTION
from psvit_ray.storage.fence import LeaseLost
from psvit_ray.storage.folder import Folder
from psvit_ray.text import yaml_file
from psvit_ray.training.config import TrainConfig
from tests.helpers.command_line import (
    CLASSES,
    ROOT,
    Refused,
    Run,
    job,
    parse,
)

DIGITS_SOURCE = load_data(DataSettings())
DIGITS = yaml.safe_load((ROOT / "psvit_ray" / "recipes" / "digits.yaml").read_text())


@pytest.mark.parametrize(
    ("line", "said"),
    [
        # flags
        ("tune_psvit --num-trails 3", "unknown option --num-trails; nearest is --num-trials"),
        ("tune_psvit --zzz 3", "unknown option --zzz; see --help"),
        ("tune_psvit --resume --epoch 3", "unknown option --epoch; nearest is --epochs"),
        ("tune_psvit stray", "unknown option stray; see --help"),
        (
            "tune_psvit --num-trials",
            "Missing value for argument '--num-trials'. Expected 1 values.",
        ),
        ("report --nam a", "unknown option --nam; nearest is --name"),
        ("report --name a --recipe digits", "unknown option --recipe; see --help"),
        ("compare_psvit", "--search must be given"),
        ("export --runn a", "unknown option --runn; --run, --out must be given"),
        ("proxy_study --specs 7", "specs must be at least 8, got 7"),
        ("rank_study --specs 7", "specs must be at least 8, got 7"),
        ("rank_study --seeds 1", "seeds must be at least 2, got 1"),
        (
            "tune_psvit --strategy onshot",
            "invalid choice 'onshot' for argument '--strategy'. "
            "Expected one of ('scratch', 'oneshot').",
        ),
        ("tune_psvit --strategy oneshot --population 1", "population must be at least 2, got 1"),
        ("tune_psvit --strategy oneshot --candidates 0", "candidates must be at least 1, got 0"),
        (
            "tune_psvit --strategy oneshot --max-latency-ms 1 --latency-table /none.json",
            "latency_table must be a file of psvit latency, got /none.json",
        ),
        (
            "tune_psvit --strategy oneshot --layer-decay 0.9",
            "layer_decay must be 1.0 for a supernet, got 0.9",
        ),
        (
            "tune_psvit --strategy oneshot --init timm:deit_tiny_patch16_224",
            "init must be '' for a supernet, got 'timm:deit_tiny_patch16_224'",
        ),
        (
            "tune_psvit --strategy oneshot --population 900000 --candidates 900000",
            "population must be at most 5,491, the configurations of the space that meet the "
            "limits, got 900,000",
        ),
        ("simulate_search --slots 1", "slots must be at least 2, got 1"),
        (
            "simulate_search --epochs 31",
            "epochs must be at most 30, as in recorded_curve.json, got 31",
        ),
        # values
        ("tune_psvit --num-trials x", "--num-trials must be a whole number, got 'x'"),
        ("tune_psvit --lr x", "--lr must be a number, got 'x'"),
        (
            "tune_psvit --resume often",
            "invalid choice 'often' for argument '--resume'. Expected one of ('never', 'must', "
            "'auto').",
        ),
        ("tune_psvit --num-trials 0", "num_trials must be at least 1, got 0"),
        ("tune_psvit --num-trials -3", "num_trials must be at least 1, got -3"),
        ("tune_psvit --epochs 0", "epochs must be at least 1, got 0"),
        ("tune_psvit --workers-per-trial 0", "workers_per_trial must be at least 1, got 0"),
        ("tune_psvit --max-concurrent -1", "max_concurrent must be at least 1, got -1"),
        ("tune_psvit --max-hours 0", "max_hours must be more than 0, got 0.0"),
        ("tune_psvit --max-gmacs -1", "max_gmacs must be more than 0, got -1.0"),
        ("tune_psvit --seed -1", "seed must be at least 0, got -1"),
        ("tune_psvit --drop 1.5", "drop must be less than 1, got 1.5"),
        (
            "train_psvit --workers 0",
            "workers must be a number or MIN:MAX, from 1 and in this order, got '0'",
        ),
        ("compare_psvit --search a --seeds 0", "seeds must be at least 1, got 0"),
        ("tune_psvit --reduction-factor 1", "reduction_factor must be 0 or at least 2, got 1"),
        # recipes, presets and patterns
        ("tune_psvit --recipe digitz", "recipe 'digitz' does not exist; nearest is 'digits'"),
        (
            "tune_psvit --recipe no/digitz.yaml",
            "recipe 'no/digitz.yaml' does not exist; nearest is 'digits'",
        ),
        (
            "train_psvit --arch psvit_2d_tinny",
            "no preset is called 'psvit_2d_tinny'; nearest is 'psvit_2d_tiny'",
        ),
        (
            "train_psvit --arch psvit_2d_tiny",
            "arch 'psvit_2d_tiny' with data 'digits': img_size must be a multiple of "
            "patch_size=16, got 8; nearest is 16",
        ),
        (
            "train_psvit --arch '2|2-x|1'",
            "pattern '2|2-x|1': expected a group size of 1 or more at character 5, got 'x' "
            "(example: 2-2|2-1-2|2)",
        ),
        (
            "train_psvit --arch '|2'",
            "pattern '|2': expected a group size of 1 or more at character 1, got nothing "
            "(example: 2-2|2-1-2|2)",
        ),
        (
            "train_psvit --arch ''",
            "pattern '': expected a group size of 1 or more at character 1, got nothing "
            "(example: 2-2|2-1-2|2)",
        ),
        (
            "train_psvit --arch '1|1|1|1'",
            "pattern '1|1|1|1' has 4 stages, but the base spec gives the widths of 3",
        ),
        ("train_psvit --arch a/spec.json", "arch 'a/spec.json' does not exist"),
        ("train_psvit --arch a/best.yaml", "arch 'a/best.yaml' does not exist"),
        # where it writes
        (
            "tune_psvit --name a/b",
            r"name must be usable as a folder name, got 'a/b': without / and \, without . or - at "
            "its start, without spaces around it",
        ),
        (
            "tune_psvit --name .a",
            r"name must be usable as a folder name, got '.a': without / and \, without . or - at "
            "its start, without spaces around it",
        ),
        ("tune_psvit --resume", "resume needs the name to go on with: add --name"),
        ("tune_psvit --resume --name a", "name must exist to be resumed, got 'a'"),
        (
            "tune_psvit --storage /proc/nothing",
            "storage must be writable, got /proc/nothing: No such file or directory in /proc",
        ),
        pytest.param(
            "tune_psvit --storage foo://me:hunter2@host/a",
            "storage must be a path or a URI, got foo://host/a: Unrecognized filesystem type in "
            "URI: foo://host/a",
            marks=pytest.mark.processes,  # whether a store answers is asked in one
        ),
        (
            "tune_psvit --tracking-uri http://me:hunter2@127.0.0.1:9",
            "tracking_uri must answer, got http://127.0.0.1:9: ConnectionError",
        ),
        (
            "tune_psvit --tracking-uri localhost:5000",
            "tracking_uri must be the address of a server, as http://host:5000, or a database, as "
            "sqlite:////folder/mlflow.db, got 'localhost:5000'",
        ),
        # shards
        ("prepare_data --data digits", "--out must be given"),
        ("prepare_data --out a", "--data must be given"),
        (
            "prepare_data --data digitz --out a",
            "data must be a known source, got 'digitz'; nearest is 'digits'",
        ),
        (
            "prepare_data --data digits --out a --shard-mb 0",
            "shard_mb must be more than 0, got 0.0",
        ),
        (
            "prepare_data --data digits --out a --quality 101",
            "quality must be at most 100, got 101",
        ),
        (
            "prepare_data --data digits --out a --max-bad-fraction 1",
            "max_bad_fraction must be less than 1, got 1.0",
        ),
        (
            "prepare_data --data digits --out /proc/nothing",
            "out must be writable, got /proc/nothing: No such file or directory in /proc",
        ),
        ("prepare_data --verify --out /none", "out must hold a manifest.json, got /none"),
        (
            "prepare_data --resume --data digits --out /none",
            "out must hold shards to go on with, got /none",
        ),
    ],
)
def test_wrong_input_is_one_line(refused: Refused, line: str, said: str) -> None:
    assert refused(line) == said


def settings(model: type[BaseModel]) -> Iterator[tuple[type[BaseModel], str, FieldInfo]]:
    """What of a job a flag gives, and where it is said."""
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        values = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if tyro.conf.Suppress in field.metadata:
            continue
        if values:
            yield from settings(values[0])
        else:
            yield model, name, field


def flags() -> dict[tuple[str, str], tuple[str, FieldInfo]]:
    """Every flag of every job, those that several share once: with one of the jobs. A search has
    most flags, and takes longest to parse."""
    found: dict[tuple[str, str], tuple[str, FieldInfo]] = {}
    for name in sorted(CLASSES, key=lambda name: name == "tune_psvit"):
        for model, field_name, field in settings(getattr(job(name), CLASSES[name])):
            found.setdefault((model.__qualname__, field_name), (name, field))
    return found


NEVER = ["nan", "", "9" * 4_000]
"""What no number can be."""
REQUIRED = {
    "compare_psvit": "--search a",
    "report": "--name a",
    "regret": "--study a --search a",
    "export": "--run a --out b",
    "evaluate": "--model a --data b --out c",
    "predict": "--model a --data b --out c",
    "prepare_data": "--data a --out b",
    "redundancy": "--model a --data b --out c",
    "sharing_study": "--redundancy a",
    "latency": "--out a",
}


def test_a_number_a_word_or_a_switch_that_none_can_be_names_the_flag() -> None:
    """Each flag is given one of the three in turn: a command line takes long to parse."""
    checked = 0
    for (_, name), (job_name, field) in flags().items():
        kinds = {field.annotation, *get_args(field.annotation)}
        is_word = any(get_origin(kind) is Literal for kind in kinds)
        if name == "resume" or not (is_word or kinds & {int, float, bool}):
            continue
        flag = f"--{name.replace('_', '-')}"
        value = NEVER[checked % len(NEVER)]
        argv = [*shlex.split(REQUIRED.get(job_name, "")), f"{flag}={value}"]
        with pytest.raises(ValueError) as error:  # noqa: PT011  # checked below
            command_line.parse(getattr(job(job_name), CLASSES[job_name]), argv)
        message = str(error.value)
        assert flag in message or name in message, (job_name, flag, message)
        assert len(message) < 700, (job_name, flag, len(message))
        checked += 1
    assert checked > 100


def changed(**sections: Any) -> dict[str, Any]:
    """The recipe for digits with some fields changed."""
    return {**DIGITS, **{name: DIGITS[name] | fields for name, fields in sections.items()}}


def with_space(**fields: Any) -> dict[str, Any]:
    return changed(search={"space": DIGITS["search"]["space"] | fields})


SEARCHED = ["lr", "min_lr", "drop", "attn_drop", "drop_path", "smoothing", "mixup", "cutmix"]
ONE_PATCH = {"patch_size": [4], "num_stages": [3]}
BAD_WIDTH = [{"depth": [1], "embed_dim": [20, 32], "head_dim": [16], "mlp_ratio": [2]}]


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (changed(train={"epoch": 3}), ": train: unknown field 'epoch'; nearest is 'epochs'"),
        (
            changed(search={"num_trial": 3}),
            ": search: unknown field 'num_trial'; nearest is 'num_trials'",
        ),
        (
            with_space(patchsize=[1]),
            ": search: space: unknown field 'patchsize'; nearest is 'patch_size'",
        ),
        (
            changed(search={"overrides": {"lrr": [0.1]}}),
            ": search: overrides: overrides: unknown field 'lrr'; nearest is 'lr'",
        ),
        ({"trian": {}}, ": unknown section 'trian'; nearest is 'train'"),
        ({"train": 3}, ": train must be a mapping, got 3"),
        ([1], " must be a mapping of base, train, search, oneshot, trials"),
        ({"train": {"epochs": 3}}, " must have a section 'search'"),
        (changed(train={"batch_size": 0}), ": train: batch_size must be at least 1, got 0"),
        (
            with_space(patch_size=[3]),
            ": search: space: patch_size: every choice must divide img_size=8, got 3; nearest is 2",
        ),
        (
            with_space(**ONE_PATCH),
            ": search: space: patch_size: 4 on img_size=8 leaves 2 x 2 patches, enough for 2 "
            "stages in 2d, got num_stages=3; use a smaller patch_size or fewer stages",
        ),
        (
            with_space(stages=BAD_WIDTH, num_stages=[1]),
            ": search: space.stages.0: every embed_dim must be a multiple of every head_dim: 20 is "
            "not one of 16; nearest is 16 or 32",
        ),
    ],
)
def test_a_wrong_recipe_is_one_line(
    refused: Refused, tmp_path: Path, recipe: Any, said: str
) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    assert refused("tune_psvit --recipe mine.yaml") == f"recipe 'mine.yaml'{said}"


ENDLESS = 1_000_000_000


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    "recipe",
    [
        with_space(stages=[DIGITS["search"]["space"]["stages"][0] | {"depth": [1, ENDLESS]}]),
        with_space(stages=[DIGITS["search"]["space"]["stages"][0] | {"embed_dim": [ENDLESS * 16]}]),
        with_space(stages=[DIGITS["search"]["space"]["stages"][0] | {"mlp_ratio": [ENDLESS]}]),
        with_space(stages=[DIGITS["search"]["space"]["stages"][0] | {"max_group": ENDLESS}]),
        with_space(stages=DIGITS["search"]["space"]["stages"] * 20, num_stages=[60]),
        with_space(img_size=ENDLESS, patch_size=[1]),
        with_space(num_classes=ENDLESS),
        with_space(in_chans=ENDLESS),
        changed(search={"num_trials": ENDLESS * ENDLESS}),
        {**DIGITS, "base": DIGITS["base"] | {"img_size": ENDLESS * 16}},
        changed(train={"batch_size": ENDLESS}),
        changed(search={"overrides": {name: [0.1, 0.2, 0.3, 0.4] for name in SEARCHED}}),
    ],
    ids=lambda recipe: str(recipe["search"])[-80:],
)
def test_a_small_recipe_of_a_thing_without_end_is_refused_before_it_is_made(
    refused: Refused, tmp_path: Path, recipe: Any
) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    job_ = "train_psvit" if recipe["base"] != DIGITS["base"] else "tune_psvit"
    found = refused(f"{job_} --recipe mine.yaml")
    assert found.startswith("recipe 'mine.yaml': ")
    assert " must " in found
    assert len(found) < 500


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            b"train: [\n",
            "recipe 'mine.yaml' is not YAML at line 2: expected the node content, but found "
            "'<stream end>'",
        ),
        (b"\xff\xfe\x00", "recipe 'mine.yaml' cannot be read: it is not text"),
        (None, "recipe 'mine.yaml' cannot be read: Is a directory"),
        (b"", "recipe 'mine.yaml' must have a section 'search'"),
    ],
)
def test_a_recipe_that_is_none_is_one_line(
    refused: Refused, tmp_path: Path, text: bytes | None, said: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.mkdir() if text is None else path.write_bytes(text)
    assert refused("tune_psvit --recipe mine.yaml") == said


LAUGHS = "base:\n  a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"  {name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in itertools.pairwise("abcdefghij")
)
"""Nine times ten of the one before: 1.1 KB that stand for ten thousand million words."""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, " at line 5: there are more than 10,000 values, aliases written out"),
        ("train: &a [*a]\n", " at line 1: a value must not contain itself"),
        ("train: &a {data: *a}\n", " at line 1: a value must not contain itself"),
        (
            "train: " + "[" * 5_000,
            " at line 1: there are more than 20 nested lists and mappings",
        ),
        (
            "train: " + "{a: " * 5_000,
            " at line 1: there are more than 20 nested lists and mappings",
        ),
        ("train: {data: *a}\n", " at line 1: found undefined alias 'a'"),
        ("train:\n  lr: 1\n  lr: 2\n", " at line 3: the key 'lr' is given twice"),
        ("train:\n\tlr: 1\n", " at line 2: found character '\\t' that cannot start any token"),
        (
            "train: !!python/object:os.system {}\n",
            " at line 1: the tag 'tag:yaml.org,2002:python/object:os.system' is not allowed",
        ),
        ("train: !!int ''\n", " at line 1: the tag 'tag:yaml.org,2002:int' is not allowed"),
        (
            "train: {seed: 010}\n",
            " at line 1: a whole number must be of at most 40 decimal digits, got 010",
        ),
        (
            "train: {seed: 1:30}\n",
            " at line 1: a whole number must be of at most 40 decimal digits, got 1:30",
        ),
        (
            f"train: {{seed: {'9' * 60_000}}}\n",
            " at line 1: a whole number must be of at most 40 decimal digits, got " + "9" * 50,
        ),
        ("train: {[a]: b}\n", " at line 1: a key must be a word"),
        ("train: {a: b}\n---\ntrain: {}\n", " at line 2: but found another document"),
        ("a\0b", ": unacceptable character #x0000: special characters are not allowed"),
    ],
    ids=lambda text: text.strip()[:24],
)
def test_a_recipe_of_more_or_of_something_else_than_it_seems_names_the_line(
    refused: Refused, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert refused("tune_psvit --recipe mine.yaml") == f"recipe 'mine.yaml' is not YAML{said}"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lr": math.nan}, "lr must be a finite number, got nan"),
        ({"lr": math.inf}, "lr must be a finite number, got inf"),
        ({"mean": [math.nan]}, "mean.0 must be a finite number, got nan"),
        ({"std": [0.0]}, "std.0 must be more than 0, got 0.0"),
        ({"lr": 1e300}, "lr must be at most 1000000000, got 1e+300"),
        ({"opt": False}, "opt must be 'adamw' or 'lamb', got False"),
        ({"seed": 2**63}, f"seed must be less than {2**63}, got {2**63}"),
        ({"epochs": 10**12}, "epochs must be at most 1000000, got 1000000000000"),
        ({"data": ["x" * 500] * 20_00}, "data must be a valid string, got ["),
        ({"x" * 5_000: 1}, "unknown field 'xxx"),
        ({1: 1}, "unknown field 1; nearest is "),
    ],
    ids=lambda one: str(one)[:24],
)
def test_a_setting_of_a_recipe_that_cannot_be_is_a_short_line(
    refused: Refused,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[Any, Any],
    said: str,
) -> None:
    monkeypatch.setattr(yaml_file, "MAX_FILE_BYTES", 10_000_000)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"train": fields}))
    found = refused("train_psvit --recipe mine.yaml")
    assert found.startswith(f"recipe 'mine.yaml': train: {said}")
    assert len(found) < 400


def test_many_faults_are_the_first_few_and_their_number(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"train": {"mean": ["x"] * 5_000}}))
    found = refused("train_psvit --recipe mine.yaml")
    assert found.count("must be a valid number") == command_line.MAX_FAULTS
    assert found.endswith("; and 4,992 more")


@pytest.mark.parametrize("flag", ["--recipe mine.yaml", "--arch mine.yaml", "--arch mine.json"])
def test_a_file_that_is_endless_or_large_is_not_read(
    refused: Refused, tmp_path: Path, flag: str
) -> None:
    path = tmp_path / flag.split()[1]
    what = f"{flag[2:].split()[0]} {path.name!r}"
    os.mkfifo(path)
    assert refused(f"train_psvit {flag}") == f"{what} cannot be read: it is not a regular file"
    path.unlink()
    path.symlink_to("/dev/zero")
    assert cli_error(f"train_psvit {flag}") == f"{what} cannot be read: it is not a regular file"
    path.unlink()
    with path.open("wb") as file:
        file.truncate(3 * 2**30)  # a hole: no bytes on the disk
    assert cli_error(f"train_psvit {flag}") == f"{what} must have at most 65,536 bytes"


def cli_error(line: str) -> str:
    """Of a job's work, where no folder is looked at."""
    try:
        job_ = parse(line)
        command_line.resolve_arch(job_.arch, job_.base, DIGITS_SOURCE)
    except ValueError as error:
        return str(error)
    raise AssertionError("was taken")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_a_recipe_and_a_spec_of_windows_are_read_alike(tmp_path: Path, encoding: str) -> None:
    recipe, spec = tmp_path / "mine.yaml", tmp_path / "spec.json"
    recipe.write_text(yaml.safe_dump(DIGITS), encoding=encoding)
    spec.write_text(json.dumps(DIGITS["base"]), encoding=encoding)
    read = parse(f"tune_psvit --recipe {recipe}")
    assert read == parse("tune_psvit").model_copy(update={"recipe": str(recipe), "argv": read.argv})
    found = command_line.resolve_arch(str(spec), None, DIGITS_SOURCE)
    assert found == ArchSpec.model_validate(DIGITS["base"])


def test_an_alias_and_a_merge_of_a_recipe_are_read_and_a_date_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "base:\n  pooling: 2d\n  stages:\n    - &s {embed_dim: 32, num_heads: 2, hidden_dim: 64,"
        " share_groups: [1, 1]}\n    - *s\n    - {<<: *s, embed_dim: 64}\n"
        "train:\n  data: 2024-02-30\n"
    )
    job_ = parse(f"train_psvit --recipe {path}")
    assert [stage.embed_dim for stage in job_.base.stages] == [32, 32, 64]
    assert job_.train.data == "2024-02-30"


BEST = {"spec": DIGITS["base"], "train": {"epochs": 7, "lr": 0.005}}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "best.yaml",
            "a: 1",
            "arch must be a search's best.yaml with spec and train, got 'best.yaml'",
        ),
        (
            "best.yaml",
            "[",
            "arch 'best.yaml' is not YAML at line 1: expected the node content, but found "
            "'<stream end>'",
        ),
        (
            "best.yaml",
            "spec: {}\ntrain: {}",
            "arch 'best.yaml': spec.pooling must be given; spec.stages must be given",
        ),
        (
            "best.yaml",
            yaml.safe_dump(BEST | {"train": {"epoch": 7}}),
            "arch 'best.yaml': train: unknown field 'epoch'; nearest is 'epochs'",
        ),
        (
            "spec.json",
            json.dumps(DIGITS["base"] | {"patch_size": 3}),
            "arch 'spec.json' must be a spec: img_size must be a multiple of patch_size=3, got 8; "
            "nearest is 6 or 9",
        ),
        (
            "spec.json",
            json.dumps(DIGITS["base"] | {"patch_size": 8}),
            "arch 'spec.json' must be a spec: stages: a grid of 1 token cannot be pooled again "
            "(before stage 2 of 3); use fewer stages or a patch_size below 8",
        ),
        (
            "spec.json",
            json.dumps(DIGITS["base"]).replace('"num_heads": 3', '"num_heads": 5'),
            "arch 'spec.json' must be a spec: stages.1: embed_dim must be a multiple of "
            "num_heads=5, got 48; nearest is 45 or 50",
        ),
        (
            "spec.json",
            json.dumps(
                DIGITS["base"] | {"stages": [DIGITS["base"]["stages"][0] | {"num_heads": 5}]}
            ),
            "arch 'spec.json' must be a spec: stages.0: embed_dim must be a multiple of "
            "num_heads=5, got 32; nearest is 30 or 35",
        ),
        (
            "spec.json",
            "{",
            "arch 'spec.json' must be a spec: Invalid JSON: EOF while parsing an object at line 1 "
            "column 1",
        ),
        (
            "spec.json",
            "[" * 5_000,
            "arch 'spec.json' must be a spec: Invalid JSON: recursion limit exceeded at line 1 "
            "column 202",
        ),
        (
            "best.yaml",
            "[" * 5_000,
            "arch 'best.yaml' is not YAML at line 1: there are more than 20 nested lists and "
            "mappings",
        ),
    ],
)
def test_a_wrong_architecture_is_one_line(
    refused: Refused, tmp_path: Path, name: str, text: str, said: str
) -> None:
    (tmp_path / name).write_text(text)
    assert refused(f"train_psvit --arch {name}") == said


def test_limits_that_nothing_meets_name_the_smallest_there_is(refused: Refused) -> None:
    space = parse("tune_psvit").search.space
    found = refused("tune_psvit --max-gmacs 0.00000001 --max-params-m 0.000001")
    assert found.startswith(
        "no configuration of the space meets max_gmacs=1e-08, max_params_m=1e-06"
    )
    for smallest in space.smallest():
        assert smallest.pattern in found


def stands(storage: Path, name: str, identity: dict[str, Any]) -> None:
    (storage / name).mkdir(parents=True)
    content = {"search_id": "abc", "identity": identity}
    (storage / name / DESCRIPTION).write_text(json.dumps(content))


def test_a_name_that_stands_is_not_begun_again(refused: Refused, tmp_path: Path) -> None:
    stands(tmp_path / "outputs", "mine", {})
    found = refused("tune_psvit --name mine")
    assert found.startswith(
        f"name must be new, got 'mine', which stands in {tmp_path}/outputs/mine;"
    )
    assert "add --resume" in found


def test_a_name_that_does_not_stand_is_not_resumed_and_those_that_do_are_named(
    refused: Refused, tmp_path: Path
) -> None:
    stands(tmp_path / "outputs", "one", {})
    stands(tmp_path / "outputs", "two", {})
    (tmp_path / "outputs" / "mlflow.db").write_text("")
    found = refused("tune_psvit --name three --resume")
    assert found == "name must exist to be resumed, got 'three'; there are one, two"


def test_a_resume_with_another_space_or_data_says_what_differs(
    refused: Refused, tmp_path: Path
) -> None:
    identity = json.loads(json.dumps(parse("tune_psvit").identity))
    identity["search"]["space"]["stages"][0]["depth"] = [1, 2]
    identity["train"]["data"] = "flowers"
    stands(tmp_path / "outputs", "mine", identity)
    for resume in ("--resume", "--resume auto"):
        assert refused(f"tune_psvit --name mine {resume}") == (
            "resume must not change what 'mine' is: train.data: flowers -> digits; "
            "search.space.stages.0.depth: [1, 2] -> [1, 2, 3]"
        )


def test_a_resume_may_raise_trials_and_hours(run: Run, tmp_path: Path) -> None:
    identity = parse("tune_psvit --num-trials 3").identity
    stands(tmp_path / "outputs", "mine", json.loads(json.dumps(identity)))
    said = run("tune_psvit --name mine --resume --num-trials 30 --max-hours 2")
    assert "Ray was started" in said.err


def test_a_resume_with_another_architecture_says_what_differs(
    refused: Refused, tmp_path: Path
) -> None:
    spec = command_line.resolve_arch(
        "1|1|1", ArchSpec.model_validate(DIGITS["base"]), DIGITS_SOURCE
    )
    identity = {"spec": spec.model_dump(mode="json"), "train": parse("train_psvit").train}
    identity["train"] = identity["train"].model_dump(mode="json")
    stands(tmp_path / "outputs", "mine", identity)
    assert refused("train_psvit --name mine --resume --arch '2|1|1'") == (
        "resume must not change what 'mine' is: spec.stages.0.share_groups: [1] -> [2]"
    )


def test_a_name_in_use_by_a_live_driver_is_refused_before_ray_starts(
    refused: Refused, tmp_path: Path
) -> None:
    stands(tmp_path / "outputs", "mine", json.loads(json.dumps(parse("tune_psvit").identity)))
    with Lease(Folder(str(tmp_path / "outputs" / "mine"))):
        found = refused("tune_psvit --name mine --resume")
    assert found.startswith(f"name is in use by process {os.getpid()} on ")


def test_a_job_whose_name_was_taken_over_says_by_whom_and_ends_with_code_1(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise LeaseLost("lease on a is lost: taken over by process 1 on elsewhere")

    monkeypatch.setattr("psvit_ray.runtime.session.session.open_session", lost)
    assert run("train_psvit --gpus-per-worker 0") == (
        *(1, ""),
        "error: lease on a is lost: taken over by process 1 on elsewhere\n",
    )


def test_a_name_that_another_driver_took_while_ray_started_is_left_alone(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "outputs" / "mine"
    monkeypatch.setattr(cluster, "join", lambda **_: stands(tmp_path / "outputs", "mine", {}))
    monkeypatch.setattr(cluster, "check_workers", lambda *_: None)
    monkeypatch.setattr(cluster, "check_shared", lambda _: None)
    monkeypatch.setattr(cluster, "num_hosts", lambda: 1)
    said = run("tune_psvit --name mine --gpus-per-worker 0")
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: name must be new, got 'mine', ")
    assert Folder(str(folder)).names() == [DESCRIPTION]
    assert json.loads((folder / DESCRIPTION).read_text())["search_id"] == "abc"


def test_a_submitted_job_does_not_write_into_the_copy_of_its_package(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "session" / "runtime_resources" / "working_dir_files" / "_ray_pkg_1"
    package.mkdir(parents=True)
    monkeypatch.chdir(package)
    assert refused("tune_psvit") == (
        "storage must be an absolute path or a URI in a submitted job, got 'outputs': the job's "
        "own folder is a copy that Ray deletes"
    )


def test_an_object_store_needs_a_tracking_server(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Folder, "check_writable", lambda *_: None)
    monkeypatch.setattr(Folder, "read", lambda self, name: None)
    monkeypatch.setattr(Folder, "names", lambda self, **_: [])
    found = refused("tune_psvit --storage s3://me:hunter2@bucket/psvit")
    assert found.startswith(
        "tracking_uri must be given, since storage s3://bucket/psvit is no disk"
    )


def test_shards_are_not_written_over_anything(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    line = f"prepare_data --data digits --out {tmp_path}"
    assert refused(line) == f"out must be new or empty, got {tmp_path}, which holds 'a.txt'"
    for resume in ("must", "auto"):
        found = refused(f"{line} --resume {resume}")
        assert found == f"out must hold shards to go on with, got {tmp_path}"
    assert refused(f"{line}/a.txt").startswith("out must be a folder, got ")
    assert refused("prepare_data --data . --out shards") == (
        f"out must be outside data, got {tmp_path}/shards in ."
    )


@pytest.mark.parametrize(
    "line",
    [
        "evaluate --model a --data b --out {}",
        "export --run a --out {}",
        "redundancy --model a --data b --out {}",
        "predict --model a --data b --out {}.csv",
        "latency --out {}",
    ],
)
def test_a_name_that_could_not_be_written_in_the_end_is_refused_at_once(
    refused: Refused, line: str
) -> None:
    end = ".csv" if "csv" in line else ""
    for name in ("x" * 250, "é" * 124):
        size = len(name.encode()) + len(end)
        said = f"out must be at most 240 bytes long in UTF-8, got {size} in "
        assert refused(line.format(name)).startswith(said)
    assert refused(line.format("x" * 300)).startswith("out must be ")
    said = rf"out must be of printable characters, got '\x07' in 'a\x07b{end}'"
    assert refused(line.format("'a\x07b'")) == said


def test_shards_are_resumed_with_what_they_were_begun_with(
    refused: Refused, tmp_path: Path
) -> None:
    begun = plan.identity(read_data("digits"), ShardSettings(seed=3))
    Folder(str(tmp_path / "a" / "progress")).write("plan.json", json.dumps(begun).encode())
    line = "prepare_data --data digits --out a --seed 3"
    assert refused(line) == (
        f"out must be new or empty, got {tmp_path}/a, which holds 'progress'; add --resume to go "
        "on with it"
    )
    assert refused(f"{line} --resume --seed 4 --shard-mb 2") == (
        f"resume must not change what {tmp_path}/a is: settings.shard_mb: 64.0 -> 2.0; "
        "settings.seed: 3 -> 4"
    )
    assert refused("prepare_data --verify --out a") == (
        f"shards in {tmp_path}/a are not all written: go on with psvit prepare --resume"
    )


def test_report_names_the_nearest_search(refused: Refused, tmp_path: Path) -> None:
    stands(tmp_path / "outputs", "digits-1", {})
    assert refused("report --name digit-1") == (
        f"name must exist in {tmp_path}/outputs, got 'digit-1'; nearest is 'digits-1'"
    )


@pytest.mark.processes
def test_a_real_process_says_one_line_and_ends_with_code_2(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "jobs" / "train_psvit.py"), "--arch", "2|2-x|1"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "error: pattern '2|2-x|1': expected a group size of 1 or more at character 5, got 'x' "
        "(example: 2-2|2-1-2|2)"
    ]
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_many_lines_is_one_line(run: Run) -> None:
    def work(_: Any) -> int:
        raise ValueError("first\n  second")

    assert run("tune_psvit", work) == (2, "", "error: first second\n")


def test_an_error_cannot_act_on_the_terminal(run: Run) -> None:
    def work(_: Any) -> int:
        raise ValueError("\x1b[31m \x07 \x9b \u202e \udcff é 中")

    assert run("tune_psvit", work) == (
        *(2, ""),
        "error: \\x1b[31m \\x07 \\x9b \\u202e \\udcff é 中\n",
    )


@pytest.mark.parametrize("code", [0, 1, 130, 143])
def test_the_exit_code_is_that_of_the_work(run: Run, code: int) -> None:
    assert run("tune_psvit", lambda _: code) == (code, "", "")


def test_ctrl_c_before_the_work_listens_is_130_without_a_traceback(run: Run) -> None:
    def work(_: Any) -> int:
        raise KeyboardInterrupt

    assert run("tune_psvit", work) == (130, "", "interrupted\n")


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FileNotFoundError(2, "No such file or directory", "/a/b"), 2, "No such file or directory"),
        (PermissionError(13, "Permission denied", "/a/b"), 2, "Permission denied: /a/b"),
        (OSError(36, "File name too long", "/a/b"), 2, "File name too long: /a/b"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (OSError(28, "No space left on device", "/a/b"), 1, "No space left on device: /a/b"),
        (ConnectionRefusedError(111, "Connection refused"), 1, "Connection refused"),
        (requests.ConnectionError("http://me:hunter2@host is away"), 1, "http://host is away"),
        (MemoryError("3 GB"), 1, "there is not enough memory: 3 GB"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
            1,
            "there is not enough memory: DefaultCPUAllocator: can't allocate memory: you tried 9 "
            "bytes",
        ),
        (ModuleNotFoundError("No module", name="onnx"), 1, "the package onnx is not installed"),
        (ValueError("x" * 100_000), 2, "xxx"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), 2, "'utf-8' codec"),
    ],
)
def test_what_is_known_is_one_line_and_its_code(
    run: Run, error: Exception, code: int, line: str
) -> None:
    def work(_: Any) -> int:
        raise error

    said = run("tune_psvit", work)
    assert (said.code, said.out) == (code, "")
    assert said.err.startswith(f"error: {line}")
    assert said.err.count("\n") == 1
    assert len(said.err) < 5_000


def test_the_fault_of_a_remote_task_is_told_without_its_remote_traceback(run: Run) -> None:
    cause = PermissionError(13, "Permission denied", "/a/b")
    error = RayTaskError("read", "Traceback (most recent call last):\n ...", cause)

    def work(_: Any) -> int:
        raise error.as_instanceof_cause()

    assert run("tune_psvit", work) == (2, "", "error: Permission denied: /a/b\n")


def test_what_is_unknown_is_one_line_that_names_a_private_file_with_its_traceback(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def work(_: Any) -> int:
        raise RuntimeError("a bug at s3://me:hunter2@bucket\nand more")

    said = run("tune_psvit", work)
    (file,) = tmp_path.iterdir()
    assert said == (
        1,
        "",
        f"error: unexpected RuntimeError: a bug at s3://bucket; its traceback is in {file}\n",
    )
    text = file.read_text()
    assert "Traceback (most recent call last):" in text
    assert "in work" in text
    assert "hunter2" not in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_where_no_traceback_can_be_written_the_line_says_where_it_was(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/none")

    def work(_: Any) -> int:
        raise RuntimeError("a bug")

    said = run("tune_psvit", work)
    assert said.code == 1
    assert said.err.startswith(f"error: unexpected RuntimeError: a bug; at {__file__}:")
    assert said.err.endswith("(no traceback was written: No such file or directory)\n")


JOB = r"""
import sys
from psvit_ray.commands import command_line
from psvit_ray.arch.spec import Value

class Job(Value):
    lines: int = 1

def work(job):
    for _ in range(job.lines):
        print("\u00b1 \udcff")
    return 0

command_line.run(Job, work)
"""


def process(*argv: str, **popen: Any) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", JOB, *argv]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, **popen)


@pytest.mark.processes
def test_output_that_the_terminal_cannot_show_or_that_nobody_takes_is_no_traceback() -> None:
    shown = process(stdout=subprocess.PIPE)
    head = process("--lines", "100000", stdout=subprocess.PIPE)
    with open("/dev/full", "w") as device:
        full = process(stdout=device)
    assert head.stdout
    assert head.stdout.readline() == b"\\xb1 \\udcff\n"
    head.stdout.close()
    assert shown.communicate() == (b"\\xb1 \\udcff\n", b"")
    assert head.stderr
    assert full.stderr
    assert head.stderr.read() == b""
    assert full.stderr.read() == b"error: No space left on device\n"
    assert [one.wait() for one in (shown, head, full)] == [0, 128 + signal.SIGPIPE, 1]
    head.stderr.close()
    full.stderr.close()


def test_the_recipe_gives_defaults_and_the_command_line_wins() -> None:
    job = parse(
        "tune_psvit --epochs 9 --num-trials 5 --max-gmacs 0.5 --name a --storage=/s --seed 4"
    )
    train = DIGITS["train"]
    expected = train | {"epochs": 9, "seed": 4, "warmup_epochs": 0.6}  # 2 of 30 epochs
    assert job.train == TrainConfig.model_validate(expected)
    assert (job.search.num_trials, job.search.max_gmacs) == (5, 0.5)
    assert job.search.space.model_dump(mode="json", exclude_defaults=True)["stages"][0] == {
        "depth": [1, 2, 3],
        "embed_dim": [16, 32, 48],
        "head_dim": [16],
        "mlp_ratio": [2.0],
    }
    assert (job.launch.name, job.launch.storage, job.launch.resume) == ("a", "/s", "never")


def test_what_a_recipe_counts_in_epochs_shrinks_with_them_alone_and_is_said(run: Run) -> None:
    """The recipe has 30 epochs, warms up for 2 and stops no trial within 6."""
    job = parse("tune_psvit --epochs 2")
    assert (job.train.warmup_epochs, job.search.grace_epochs) == (0.133, 1)
    given = parse("tune_psvit --epochs 10 --warmup-epochs 2 --grace-epochs=5")
    assert (given.train.warmup_epochs, given.search.grace_epochs) == (2, 5)
    longer = parse("tune_psvit --epochs 60")
    assert (longer.train.warmup_epochs, longer.search.grace_epochs) == (2, 6)
    line = "epochs: 10, of 30 in the recipe; {}grace_epochs from 6 to 2\n"
    assert (
        line.format("warmup_epochs from 2 to 0.667, ")
        in run("tune_psvit --dry-run --epochs 10").out
    )
    assert line.format("") in run("tune_psvit --dry-run --epochs 10 --warmup-epochs 2").out
    assert "in the recipe" not in run("tune_psvit --dry-run --epochs 60").out


def test_a_recipe_given_by_path_is_read_with_either_way_of_writing_a_flag(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(changed(train={"lr": 0.125}) | {"trials": None}))
    assert parse(f"tune_psvit --recipe {path}").train.lr == 0.125
    assert parse(f"tune_psvit --recipe={path} --lr 0.5").train.lr == 0.5


def test_a_best_yaml_stands_between_recipe_and_command_line(tmp_path: Path) -> None:
    path = tmp_path / "best.yaml"
    path.write_text(yaml.safe_dump(BEST))
    job_ = parse(f"train_psvit --arch {path} --lr 0.25")
    # lr from the command line, epochs from best.yaml, warmup_epochs from the recipe
    expected = DIGITS["train"] | {"epochs": 7, "lr": 0.25}
    assert job_.train == TrainConfig.model_validate(expected)
    found = command_line.resolve_arch(job_.arch, job_.base, DIGITS_SOURCE)
    assert found == ArchSpec.model_validate(BEST["spec"])


@pytest.mark.parametrize(
    ("flags", "resume"),
    [
        ("", "never"),
        ("--resume", "must"),
        ("--resume --name a", "must"),
        ("--name a --resume", "must"),
        ("--resume auto", "auto"),
        ("--resume=auto", "auto"),
        ("--resume must --name a", "must"),
    ],
)
def test_resume_alone_means_must(flags: str, resume: str) -> None:
    assert parse(f"tune_psvit {flags}").launch.resume == resume


def test_an_architecture_is_a_preset_a_pattern_a_file_or_the_base(tmp_path: Path) -> None:
    base = ArchSpec.model_validate(DIGITS["base"])
    assert command_line.resolve_arch(None, base, DIGITS_SOURCE) == base
    assert command_line.resolve_arch("2|2-1", base, DIGITS_SOURCE) == base.with_pattern("2|2-1")
    path = tmp_path / "spec.json"
    path.write_text(base.with_pattern("2|1").to_json())
    assert command_line.resolve_arch(str(path), None, DIGITS_SOURCE) == base.with_pattern("2|1")
    with pytest.raises(ValueError, match="arch must be given: this recipe has no base spec"):
        command_line.resolve_arch(None, None, DIGITS_SOURCE)


def test_what_is_no_file_takes_images_and_classes_from_the_data() -> None:
    named, base = preset("psvit_2d_tiny"), ArchSpec.model_validate(DIGITS["base"])
    names = tuple(map(str, range(102)))
    flowers = replace(DIGITS_SOURCE, img_size=64, in_chans=3, class_names=names)
    ours = command_line.resolve_arch("psvit_2d_tiny", None, flowers)
    assert (ours.img_size, ours.in_chans, ours.num_classes) == (64, 3, 102)
    assert (ours.stages, ours.patch_size) == (named.stages, named.patch_size)
    any_size = replace(flowers, img_size=None, in_chans=None)
    for arch, spec in (("psvit_2d_tiny", named), ("2|1", base.with_pattern("2|1")), (None, base)):
        ours = command_line.resolve_arch(arch, base, any_size)
        assert ours == ArchSpec.model_validate({**dict(spec), "num_classes": 102})


def test_options_that_only_the_command_line_gives() -> None:
    job_ = parse("compare_psvit --search a --baseline-search b --workers-per-trial 2")
    assert (job_.search, job_.baseline_search, job_.trials.workers_per_trial) == ("a", "b", 2)
    assert parse("report --name a --name b").name == ("a", "b")


def test_a_dry_run_says_all_and_starts_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    said = run("tune_psvit --dry-run --epochs 9 --max-concurrent 2")
    assert (said.code, said.err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    text, _, sizes = said.out.partition("\n\n")
    resolved = yaml.safe_load(text)
    assert resolved["train"]["epochs"] == 9
    assert resolved["search"]["space"]["pooling"] == ["1d", "2d"]
    search = parse("tune_psvit").search
    within = search.space.size(search.limits)
    assert within.exact
    assert f"{search.space.size().count:,} architectures, {within.count:,} within" in sizes
    assert f"trials: {search.num_trials}, 2 at a time, 9 epochs each" in sizes
    assert "\ntime: about " in sizes
    assert sizes.endswith(" for an image, measured alone\n")


def test_a_dry_run_needs_no_image_of_each_class(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It times a few batches, here of five images, whereas there are ten classes."""
    monkeypatch.setattr(pace, "BATCHES", (5,))
    said = run("tune_psvit --dry-run --epochs 9 --batch-size 1")
    assert (said.code, said.err) == (0, "")
    assert said.out.endswith(" for an image, measured alone\n")


def test_a_dry_run_shows_no_password(run: Run) -> None:
    stores = "--storage s3://KEY:hunter2@bucket/x --tracking-uri postgresql://h/d?password=hunter2"
    said = run(f"tune_psvit --dry-run {stores}")
    assert said.code == 0
    launch = yaml.safe_load(said.out.partition("\n\n")[0])["launch"]
    assert launch["storage"] == "s3://bucket/x"
    assert launch["tracking_uri"] == "postgresql://h/d?password=***"


def test_help_names_every_option_of_the_issue(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    said = run("tune_psvit --help")
    assert said.code == 0
    for flag in (
        *("--recipe", "--data", "--num-trials", "--max-hours", "--epochs", "--workers-per-trial"),
        *("--max-gmacs", "--max-params-m", "--max-concurrent", "--storage", "--name", "--resume"),
        *("--tracking-uri", "--seed", "--dry-run", "--verbose"),
    ):
        assert f"{flag} " in said.out or f"{flag}," in said.out


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "Connection refused"),
        (b"", "timed out"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what listens there is no Ray"),
    ],
)
def test_a_ray_address_where_no_ray_answers_is_named(
    monkeypatch: pytest.MonkeyPatch, answer: bytes | None, reason: str
) -> None:
    monkeypatch.setattr(cluster, "ADDRESS_S", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if answer is not None:
            server.listen()
        if answer:
            monkeypatch.setattr(cluster, "HTTP2_HELLO", b"")

            def serve() -> None:
                with server.accept()[0] as client:
                    client.sendall(answer)

            threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(ValueError, match=f"got {address}: {reason}"):
            cluster.check_answers(address)


def test_a_ray_address_where_grpc_answers_is_taken() -> None:
    grpc = pytest.importorskip("grpc")
    server = grpc.server(futures.ThreadPoolExecutor(1))
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    cluster.check_answers(address)
    cluster.check_answers("auto")
    server.stop(None)
