"""The arithmetic of steps on many workers, and the page that is made of it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import distributed

from jobs.studies.scaling import ScalingJob, work
from psvit_ray.arch.cost import count_params
from psvit_ray.arch.presets import preset
from psvit_ray.commands import command_line
from psvit_ray.model.psvit import PSViT
from psvit_ray.runtime.doctor import step_time
from psvit_ray.runtime.doctor.step_time import BUCKET, FIRST_BUCKET, Link, estimate_step
from psvit_ray.training.config import TrainConfig

PAGE = Path(__file__).parents[2] / "cluster" / "SCALING.md"
COMMAND = re.compile(r"```console\n\$ python -m jobs\.studies\.scaling(.*)\n((?:.*\n)*?)```")
SLOW = Link(8e6)  # a megabyte a second


def test_a_ring_of_two_sends_every_byte_once_and_a_long_one_nearly_twice() -> None:
    assert SLOW.all_reduce_s(1e6, workers=1) == 0
    assert SLOW.all_reduce_s(1e6, workers=2) == 1
    assert SLOW.all_reduce_s(1e6, workers=4) == 1.5
    assert SLOW.all_reduce_s(1e6, workers=512) == 2 - 2 / 512
    assert Link(8e6, attained=0.5).all_reduce_s(1e6, workers=2) == 2


@pytest.mark.parametrize("name", ["psvit_2d_tiny", "psvit_2d_small", "deit_small"])
def test_buckets_are_those_of_ddp_but_for_a_weight(name: str) -> None:
    """DDP closes a bucket with the weight that fills it."""
    assert dist._DEFAULT_FIRST_BUCKET_BYTES == FIRST_BUCKET
    assert distributed._DEFAULT_BUCKET_CAP_MB * 2**20 == BUCKET
    spec = preset(name)
    weights = [weight.data for weight in PSViT(spec).parameters()][::-1]
    theirs = dist._compute_bucket_assignment_by_size(weights, [FIRST_BUCKET, BUCKET])[0]
    sizes = [sum(weights[i].numel() for i in bucket) for bucket in theirs]
    ours = [*step_time.buckets(count_params(spec))]
    assert sum(ours) == sum(sizes) == count_params(spec)
    largest = max(weight.numel() for weight in weights)
    # Each of theirs may have taken a part of a weight from all that follow.
    assert 0 <= len(ours) - len(sizes) <= 1
    for number, size in enumerate(sizes[:-1]):
        assert 0 <= size - ours[number] < largest


def test_a_network_of_one_bucket_waits_for_all_of_its_sums() -> None:
    one = estimate_step(250_000, workers=2, compute_s=3, link=SLOW)
    assert (one.gradients_s, one.exposed_s, one.seconds) == (1, pytest.approx(1), pytest.approx(4))


def test_sums_begin_with_the_first_bucket_and_go_on_one_after_the_other() -> None:
    """Buckets of 1 and 25 MiB, and 26 s of backward pass after 13 s of forward pass: the first is
    ready at 14 s, the second at 39 s. At 1 MiB/s their sums take 1 and 25 s."""
    params = (FIRST_BUCKET + BUCKET) // 4
    assert [*step_time.buckets(params)] == [FIRST_BUCKET // 4, BUCKET // 4]
    slow = estimate_step(params, workers=2, compute_s=39, link=Link(8 * 2**20))
    assert slow.exposed_s == pytest.approx(25)
    # At a 30th of that the first takes 30 s, from 14 to 44, and the second begins only then.
    slower = estimate_step(params, workers=2, compute_s=39, link=Link(8 * 2**20 / 30))
    assert slower.seconds == pytest.approx(14 + 30 + 30 * 25)


def test_a_fast_link_or_one_worker_costs_nothing() -> None:
    assert estimate_step(10**8, workers=1, compute_s=1, link=SLOW).seconds == pytest.approx(1)
    assert estimate_step(10**8, workers=64, compute_s=1, link=Link(1e18)).seconds == pytest.approx(
        1
    )


def test_bf16_halves_what_is_sent() -> None:
    assert set(step_time.BYTES) == set(
        TrainConfig.model_fields["grad_compression"].annotation.__args__  # type: ignore[union-attr]
    )
    plain, packed = (
        estimate_step(10**7, workers=8, compute_s=1, link=SLOW, compression=kind)
        for kind in step_time.BYTES
    )
    assert packed.gradients_s == plain.gradients_s / 2
    for kind, dtype in (("none", torch.float32), ("bf16", torch.bfloat16)):
        assert step_time.BYTES[kind] == dtype.itemsize


def test_an_agreement_is_hidden_by_a_step_that_takes_as_long() -> None:
    assert step_time.agreement_s(512, message_s=1e-3) == pytest.approx(1.022)
    assert step_time.images_to_hide(1.022, images_per_s=100) == 103
    assert step_time.images_to_hide(1.03, images_per_s=100) == 103


def test_tables_of_the_page_are_what_their_commands_print(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = COMMAND.findall(PAGE.read_text())
    assert len(found) >= 4
    for flags, table in found:
        assert work(command_line.parse(ScalingJob, shlex.split(flags))) == 0
        assert capsys.readouterr().out == table, flags


def test_speeds_that_do_not_go_with_the_sizes_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match=r"images_per_s must be one for each of sizes=\['tiny'\]"):
        work(command_line.parse(ScalingJob, shlex.split("--sizes tiny --images-per-s 100 200")))
    assert capsys.readouterr().out == ""
