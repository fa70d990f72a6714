"""How long a training step takes on many workers, by arithmetic: from what one worker computes, and
from what the links between workers carry.

A step is that of torch's DistributedDataParallel. Gradients become ready in the backward pass, are
put into buckets in that order, and each bucket is summed over all workers, one after the other,
while the backward pass goes on. What is not yet summed when it ends is what a step waits for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

BYTES = {"none": 4, "bf16": 2}
"""Of one gradient on its way, by `TrainConfig.grad_compression`."""
FIRST_BUCKET = 2**20
"""Bytes of float32 gradients, also where they travel as less: torch.distributed's
`_DEFAULT_FIRST_BUCKET_BYTES`. It is small so that the sums begin early."""
BUCKET = 25 * 2**20
"""Of all others: DistributedDataParallel's `bucket_cap_mb`."""
GLOO_ATTAINED = 0.83
"""Of a link that is the limit, by gloo over TCP: measured at 5 and 50 Mbit/s."""
BACKWARD = 2 / 3
"""Of a step's computing. The backward pass has two products, for the gradients of the weights and
of what came in, where the forward pass has one."""


@dataclass(frozen=True)
class Link:
    """What carries the gradients of a host's workers to the next host, or, where there is one host,
    of a worker to the next."""

    bits_per_s: float
    """In each direction, as it is sold."""
    attained: float = 1.0
    """The part of that which an all-reduce gets: what is sent beside the gradients, and pauses."""

    def all_reduce_s(self, num_bytes: float, workers: int) -> float:
        """Seconds to sum `num_bytes` over the workers. A ring over all of them enters and leaves
        each host once, so that the link carries what one worker sends, however many a host has."""
        return 8 * num_bytes * ring_factor(workers) / (self.bits_per_s * self.attained)


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step, and where they go."""

    compute_s: float
    """Forward, backward and update of one worker."""
    gradients_s: float
    """All sums of gradients, those that nothing waits for too."""
    exposed_s: float
    """What the step takes longer for them."""

    @property
    def seconds(self) -> float:
        return self.compute_s + self.exposed_s


def estimate_step(
    params: int,
    *,
    workers: int,
    compute_s: float,
    link: Link,
    compression: str = "none",
) -> StepTime:
    """One step of a network of so many parameters."""
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
    """Gradients in each bucket, in the order in which the backward pass fills them. As if they
    could be divided anywhere: the true ones hold whole weights, so that they are somewhat larger.
    """
    size = FIRST_BUCKET // BYTES["none"]
    while params > 0:
        yield min(size, params)
        params -= size
        size = BUCKET // BYTES["none"]


def ring_factor(workers: int) -> float:
    """How often each worker of a ring all-reduce sends each byte: all but its own share, once to
    sum and once to spread the sums. NCCL's tests count their bus bandwidth so."""
    return 2 * (workers - 1) / workers


def agreement_s(workers: int, message_s: float) -> float:
    """Seconds of what workers agree on before a step: an all-reduce of a few numbers by gloo, which
    is a ring of so many messages, each of which waits for the one before. On GPUs it goes on beside
    the step before."""
    return 2 * (workers - 1) * message_s


def images_to_hide(agreement_s: float, images_per_s: float) -> int:
    """The fewest images of a worker whose computing takes as long as the agreement beside it."""
    return math.ceil(agreement_s * images_per_s)
