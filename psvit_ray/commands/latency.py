"""How long the networks of a search take on a device: a table of their parts, and its error.

    psvit latency --recipe digits --out latency.json
    psvit latency --recipe my.yaml --device cuda --dtype bfloat16 --out gpu.json

The table is tried on networks of the search that it was not made from. Then, for groups of layers
of the space: whether the fixed rule that chooses how attention maps are computed takes the faster
way here. Use it on a machine that does nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from psvit_ray.arch.latency import LatencyTable
from psvit_ray.arch.parts import cover
from psvit_ray.arch.spec import ArchSpec
from psvit_ray.commands.options import LatencyJob
from psvit_ray.model.strategies import StrategyTiming, check_strategies
from psvit_ray.model.timing import measure_table, tried_on
from psvit_ray.report.rank_correlation import agreement
from psvit_ray.report.summary import aligned
from psvit_ray.storage.folder import Folder
from psvit_ray.storage.outputs import new_file

DRAWS_OF_EACH = 50
TOLERATED = 1.1  # times as long as the other way: less is noise, or not worth a rule


def work(job: LatencyJob) -> int:
    conditions, space, seed = job.conditions, job.search.space, job.search.search_seed
    torch.set_num_threads(job.threads)
    covering = cover(space, conditions.times, seed=seed)
    unseen = draw(job, excluded=covering)
    table = tried_on(measure_table(space, conditions, seed=seed), unseen)
    with new_file(Folder.at(job.out)) as file:
        file.write(table.model_dump_json(indent=2))
    print(report(table, len(covering)))
    if job.rule:
        print("\n" + report_of_rule(check_strategies(covering, conditions)))
    return 0


def draw(job: LatencyJob, *, excluded: Sequence[ArchSpec]) -> list[ArchSpec]:
    """Distinct specs within the limits of the search, none of them excluded.

    Raises ValueError if there are too few.
    """
    rng = random.Random(job.search.search_seed)
    drawn = dict.fromkeys(
        job.search.space.sample(rng, job.search.limits) for _ in range(DRAWS_OF_EACH * job.unseen)
    )
    known = set(excluded)
    new = [spec for spec in drawn if spec not in known]
    if len(new) < job.unseen:
        raise ValueError(
            f"unseen must be at most {len(new)}, as the space has no more networks that its "
            f"table is not made from, got {job.unseen}"
        )
    return new[: job.unseen]


def report(table: LatencyTable, num_networks: int) -> str:
    """What was measured, each unseen network, and how near the predictions are."""
    conditions = table.conditions
    lines = [["kind", "pattern", "patch", "widths", "predicted ms", "measured ms", "error %"]]
    for network in sorted(table.unseen, key=lambda network: network.measured):
        spec = network.spec
        lines.append(
            [
                f"PSViT-{spec.pooling.upper()} {spec.pool_op}",
                spec.pattern,
                str(spec.patch_size),
                "|".join(str(stage.embed_dim) for stage in spec.stages),
                f"{network.predicted:.3f}",
                f"{network.measured:.3f}",
                f"{network.error:+.1f}",
            ]
        )
    predicted = [network.predicted for network in table.unseen]
    measured = [network.measured for network in table.unseen]
    agreed = agreement(predicted, measured)
    largest = max(abs(network.error) for network in table.unseen)
    return (
        f"{len(table.ms)} parts, measured in {num_networks} networks: batches of "
        f"{conditions.batch_size}, {conditions.dtype}, on {table.device_name}"
        f"{f' with {table.threads} threads' if conditions.device == 'cpu' else ''}\n\n"
        f"{aligned(lines)}\n\n"
        f"{len(table.unseen)} networks that the table was not made from: median error "
        f"{table.median_error:.1f} %, largest {largest:.1f} %, Kendall's tau "
        f"{agreed.tau}, Spearman's rho {agreed.rho.value:.3f}"
    )


def report_of_rule(judged: Sequence[StrategyTiming]) -> str:
    """Where the rule takes the slower way by more than is tolerated, the worst first."""
    wrong = sorted(
        (timing for timing in judged if timing.ratio > TOLERATED), key=lambda timing: -timing.ratio
    )
    verdict = (
        f"attention maps: the rule is at most {100 * (TOLERATED - 1):.0f} % slower than the other "
        f"way in {len(judged) - len(wrong)} of {len(judged)} cases"
    )
    lines = [["tokens", "layers", "width", "heads", "hidden", "timed", "it takes", "slower %"]]
    for timing in wrong:
        stage = timing.stage
        sizes = timing.num_tokens, stage.depth, stage.embed_dim, stage.num_heads, stage.hidden_dim
        timed = "training" if timing.gradients else "forward"
        lines.append([*map(str, sizes), timed, timing.chosen, f"{100 * (timing.ratio - 1):.0f}"])
    return f"{verdict}; where not:\n\n{aligned(lines)}" if wrong else verdict
