"""The cost of a spec, by arithmetic: parameters, and multiply-accumulates (MACs) of one image.

MACs are those of the explicit attention strategy, where a map is computed once per share group.
As in DeiT's table and torch's FlopCounterMode (which counts two for each), only convolutions and
matrix products count: biases, norms, softmax and the windows of a pooling do not.

The functions for parts (`embed_cost` ...) use only the frame of `spec` (image, grid, pooling,
number of stages) and take widths as arguments, so that a search space can be counted without
building its specs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from psvit_ray.arch.spec import ArchSpec, Count, Value


class Cost(NamedTuple):
    """MACs of one image, and parameters."""

    macs: int
    params: int


class Limits(Value):
    """Limits on the cost of an architecture."""

    max_macs: Count | None = None
    """Most multiply-accumulates (MACs) of one image; None sets no limit."""
    max_params: Count | None = None
    """Most parameters; None sets no limit."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Most MACs and most parameters, infinite where there is no limit."""
        return self.max_macs or math.inf, self.max_params or math.inf

    def allows(self, spec: ArchSpec) -> bool:
        """Whether a spec is within the limits."""
        return self.allows_cost(cost(spec))

    def allows_cost(self, cost: Cost) -> bool:
        """Whether a cost is within the limits."""
        macs, params = self.bounds
        return cost.macs <= macs and cost.params <= params


def count_macs(spec: ArchSpec) -> int:
    """Multiply-accumulates (MACs) of a forward pass of one image."""
    return cost(spec).macs


def count_params(spec: ArchSpec) -> int:
    """Number of parameters, with biases and position embedding."""
    return cost(spec).params


def cost(spec: ArchSpec) -> Cost:
    """MACs of one image, and parameters, of a whole network."""
    dims = [stage.embed_dim for stage in spec.stages]
    parts = [embed_cost(spec, dims[0]), head_cost(spec, dims[-1])]
    for i, stage in enumerate(spec.stages):
        groups = len(stage.share_groups)
        parts.append(stage_cost(spec, i, stage.embed_dim, stage.hidden_dim, stage.depth, groups))
        if i > 0:
            parts.append(pool_cost(spec, i, dims[i - 1], dims[i]))
    return total(parts)


def total(parts: Iterable[Cost]) -> Cost:
    """Sum of costs."""
    macs, params = zip(*parts, strict=True)
    return Cost(sum(macs), sum(params))


def embed_cost(spec: ArchSpec, dim: int) -> Cost:
    """Cost of the patch embedding to `dim` channels, the class token (`1d`) and the position
    embedding."""
    patch = _linear(spec.in_chans * spec.patch_size**2, dim, spec.num_tokens[0])
    class_token = dim if spec.pooling == "1d" else 0
    return Cost(patch.macs, patch.params + class_token + _length(spec, 0) * dim)


def stage_cost(
    spec: ArchSpec, stage: int, dim: int, hidden_dim: int, depth: int, num_groups: int
) -> Cost:
    """Cost of the layers of stage `stage` (from 0). A share group's leader computes q, k, v and the
    map; a follower computes only its v."""
    length = _length(spec, stage)
    value = _linear(dim, dim, length)  # also q, k and proj
    mlp = total((_linear(dim, hidden_dim, length), _linear(hidden_dim, dim, length)))
    product = length * length * dim  # q k^T, once a group, and map v, in each layer
    scales = 4 * dim + (2 * dim if spec.layer_scale else 0)  # two norms, two gammas
    return Cost(
        depth * (2 * value.macs + product + mlp.macs) + num_groups * (2 * value.macs + product),
        depth * (2 * value.params + mlp.params + scales) + num_groups * 2 * value.params,
    )


def pool_cost(spec: ArchSpec, stage: int, dim_in: int, dim_out: int) -> Cost:
    """Cost of the token pooling before stage `stage`. With `max` and `avg` the width changes before
    the pooling, on the long sequence; in `1d` the class token is projected by itself."""
    before, after = spec.num_tokens[stage - 1 : stage + 1]
    if spec.pool_op == "conv":
        conv = _linear(dim_in * (9 if spec.pooling == "2d" else 3), dim_out, after)
    else:
        conv = _linear(dim_in, dim_out, before)
    return total((conv, _linear(dim_in, dim_out, 1))) if spec.pooling == "1d" else conv


def head_cost(spec: ArchSpec, dim: int) -> Cost:
    """Cost of the last norm and the classifier."""
    head = _linear(dim, spec.num_classes, 1)
    return Cost(head.macs, head.params + 2 * dim)


def _linear(dim_in: int, dim_out: int, positions: int) -> Cost:
    """Cost of a linear layer with bias at each of `positions`; a convolution has kernel size x
    channels as `dim_in`."""
    return Cost(positions * dim_in * dim_out, dim_in * dim_out + dim_out)


def _length(spec: ArchSpec, stage: int) -> int:
    """Number of tokens that attend to each other: patches, and the class token of `1d`."""
    return spec.num_tokens[stage] + (spec.pooling == "1d")
