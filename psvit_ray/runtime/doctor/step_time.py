"""Estimates of how long a training step takes on many workers: from what one worker computes, and
from what the links between workers carry.

A step is that of torch's DistributedDataParallel. Gradients become ready in the backward pass, are
put into buckets in that order, and each bucket is summed over all workers, one after the other,
while the backward pass goes on. A step waits for the sums that are not done when it ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

BYTES = {"none": 4, "bf16": 2}
"""Bytes of one gradient on its way, by `TrainConfig.grad_compression`."""
FIRST_BUCKET = 2**20
"""Bytes of float32 gradients in the first bucket, also where they travel as less:
torch.distributed's `_DEFAULT_FIRST_BUCKET_BYTES`. It is small so that the sums begin early."""
BUCKET = 25 * 2**20
"""Bytes of float32 gradients in every other bucket: DistributedDataParallel's `bucket_cap_mb`."""
GLOO_ATTAINED = 0.83
"""Fraction of a link's speed that gloo over TCP attains: measured at 5 and 50 Mbit/s."""
BACKWARD = 2 / 3
"""Fraction of a step's computing that is the backward pass: it has two products, for the gradients
of the weights and of the inputs, where the forward pass has one."""


@dataclass(frozen=True)
class Link:
    """The link that carries the gradients of a host's workers to the next host or, where there is
    one host, of a worker to the next."""

    bits_per_s: float
    """Nominal speed of the link in each direction."""
    attained: float = 1.0
    """Fraction of the nominal speed that an all-reduce gets; the rest is overhead and pauses."""

    def all_reduce_s(self, num_bytes: float, workers: int) -> float:
        """Seconds to sum `num_bytes` over the workers. A ring over all of them enters and leaves
        each host once, so that the link carries what one worker sends, however many a host has."""
        return 8 * num_bytes * ring_factor(workers) / (self.bits_per_s * self.attained)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, and how they are spent."""

    compute_s: float
    """Seconds of forward, backward and update of one worker."""
    gradients_s: float
    """Seconds of all sums of gradients, also of those that nothing waits for."""
    exposed_s: float
    """Seconds that the step takes longer because of the sums."""

    @property
    def seconds(self) -> float:
        """Seconds of the whole step."""
        return self.compute_s + self.exposed_s


def estimate_step(
    params: int,
    *,
    workers: int,
    compute_s: float,
    link: Link,
    compression: str = "none",
) -> StepTime:
    """Time of one step of a network with `params` parameters, whose forward, backward and update
    take `compute_s` seconds on a worker."""
    sums = [
        link.all_reduce_s(gradients * BYTES[compression], workers) for gradients in buckets(params)
    ]
    begun, ready = (1 - BACKWARD) * compute_s, 0
    ended = begun
    for gradients, seconds in zip(buckets(params), sums, strict=True):
        ready += gradients
        ended = max(ended, begun + BACKWARD * compute_s * ready / params) + seconds
    return StepTime(
        compute_s=compute_s,
        gradients_s=sum(sums),
        exposed_s=max(ended - compute_s, 0.0),
    )


def buckets(params: int) -> Iterator[int]:
    """Numbers of gradients in the buckets, in the order in which the backward pass fills them, as
    if they could be divided anywhere: true buckets hold whole weights, so that they are somewhat
    larger."""
    size = FIRST_BUCKET // BYTES["none"]
    while params > 0:
        yield min(size, params)
        params -= size
        size = BUCKET // BYTES["none"]


def ring_factor(workers: int) -> float:
    """Number of times that each worker of a ring all-reduce sends each byte: all but its own share,
    once to sum and once to spread the sums. NCCL's tests count their bus bandwidth so."""
    return 2 * (workers - 1) / workers


def agreement_s(workers: int, message_s: float) -> float:
    """Seconds of the agreement of workers before a step: an all-reduce of a few numbers by gloo,
    which is a ring of so many messages, each of which waits for the one before. On GPUs it goes on
    beside the step before."""
    return 2 * (workers - 1) * message_s


def images_to_hide(agreement_s: float, images_per_s: float) -> int:
    """Smallest number of images of a worker whose computing takes as long as the agreement beside
    it."""
    return math.ceil(agreement_s * images_per_s)
