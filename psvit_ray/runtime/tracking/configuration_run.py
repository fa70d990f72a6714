"""What the run of a configuration has in MLflow: its name, parameters, costs and status.

MLflow compares runs by these: every run has the same parameters, each with one meaning, and texts
of at most ten characters where a chart has them as an axis, which MLflow cuts there.
"""

from __future__ import annotations

from collections.abc import Iterable

from psvit_ray.arch.spec import ArchSpec
from psvit_ray.search.record import FINAL_STATUSES, Record, Status

MAX_RUN_NAME = 250  # a column of MLflow's databases
MMACS, PARAMS_M = "cost/mmacs", "cost/params_m"
KIND, STATUS = "psvit.kind", "psvit.status"
RUN_STATUS: dict[Status, str] = {
    "completed": "FINISHED",
    "stopped": "KILLED",  # FINISHED has the tick of one that was trained in full
    "failed": "FAILED",
    "interrupted": "KILLED",
}
"""MLflow's own status of a run that has ended; all others are RUNNING."""
STATUS_NAME: dict[Status, str] = {"stopped": "stopped early"}
"""What the tag and the name of a run call a status, where that is another word."""
NOT_SAID: tuple[Status, ...] = ("pending", "running", "completed")
"""Statuses that a run's name does not tell."""


def status_name(status: Status) -> str:
    """The status as the run's tag has it."""
    return STATUS_NAME.get(status, status)


def run_name(record: Record) -> str:
    """Number and pattern; between them how it ended, where that was before its last epoch."""
    status = "" if record.status in NOT_SAID else f"{status_name(record.status)}: "
    return f"{record.number:03d} {status}{record.pattern}"[:MAX_RUN_NAME]


def run_params(record: Record) -> dict[str, str]:
    """The architecture and the training as MLflow's parameters."""
    train = {f"train.{name}": v for name, v in record.configuration.train.model_dump().items()}
    params = arch_params(record.configuration.spec) | train
    return {name: str(value) for name, value in params.items()}


def arch_params(spec: ArchSpec) -> dict[str, object]:
    """Parameters that a person can read and a chart can show: `pools_after` is the layers that a
    pooling follows, `none` stands where nothing is pooled, and 0 is always a number.

    The page that compares runs opens on the first parameters by name that differ.
    """
    depths = [stage.depth for stage in spec.stages]
    pools_after = [sum(depths[: stage + 1]) for stage in range(len(depths) - 1)]
    groups = sum(len(stage.share_groups) for stage in spec.stages)
    return {
        "pattern": spec.pattern,
        "is_deit": spec.is_deit,
        "pooling": spec.pooling,
        "pool_op": spec.pool_op if pools_after else "none",
        "num_pools": len(pools_after),
        # With letters: of numbers and texts, a chart would show the numbers alone.
        "pools_after": _joined(f"L{layer}" for layer in pools_after) or "none",
        "depth": spec.depth,
        "shared_fraction": round(1 - groups / spec.depth, 3),
        "patch_size": spec.patch_size,
        "stage_widths": _joined(stage.embed_dim for stage in spec.stages),
        "stage_heads": _joined(stage.num_heads for stage in spec.stages),
        "stage_mlp_widths": _joined(stage.hidden_dim for stage in spec.stages),
        "width_last": spec.stages[-1].embed_dim,
    }


def costs(record: Record) -> dict[str, float]:
    """Millions of multiply-accumulates and of parameters."""
    return {MMACS: record.macs / 1e6, PARAMS_M: record.params_m}


def has_ended(status: str, tags: dict[str, str], record: Record) -> bool:
    """Whether a run of MLflow's `status` has ended as the record has. Its status is written last,
    so that all else is there."""
    return (
        record.status in FINAL_STATUSES
        and status == RUN_STATUS[record.status]
        and tags.get(STATUS) == status_name(record.status)
    )


def _joined(parts: Iterable[object]) -> str:
    """Parts with a sign between them that makes no number of them, as a comma would."""
    return "+".join(map(str, parts))
