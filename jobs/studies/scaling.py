"""What a cluster gives, and what limits it, by arithmetic: the tables of cluster/SCALING.md.

    python -m jobs.studies.scaling                                  # all of them, for H100s
    python -m jobs.studies.scaling --gpu rtx3090 --only steps
    python -m jobs.studies.scaling --images-per-s 20000 5000 1300 --gbit 50   # your own

Nothing is run: every figure comes from the flags, whose defaults say where they were measured.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

from psvit_ray.arch.cost import cost
from psvit_ray.arch.presets import preset
from psvit_ray.arch.spec import Value
from psvit_ray.commands import command_line
from psvit_ray.report.summary import aligned
from psvit_ray.runtime.doctor import step_time
from psvit_ray.runtime.doctor.step_time import Link, StepTime
from psvit_ray.search.oneshot.duration import candidates_per_s
from psvit_ray.training.config import PositiveCount, PositiveFraction, PositiveNumber

Section = Literal["steps", "agreement", "loader", "search", "candidates"]
Gbit = PositiveNumber
Rows = list[list[str]]
IMAGES = 1_281_167  # of ImageNet's training set
GIB = 1024  # MiB
POPULATION = 50  # AutoFormer's (arXiv 2107.00651)


class Gpu(NamedTuple):
    """Published speed of a GPU."""

    deit_images_per_s: dict[str, float]
    """Images/s of one GPU training DeiT, by size. A PSViT's are these times DeiT's MACs over its
    own."""
    within_gbyte_per_s: float
    """GB/s of an all-reduce among the GPUs of a host, as NCCL's tests count their bus bandwidth."""


GPUS = {
    # 15.9 % of 989 TFLOPS: ViT-5-Small, bf16, batch 256, torch.compile
    # (nvidia-bionemo.github.io/nvSubquadratic/benchmarks.html); the same part for all sizes, which
    # flatters tiny. Within: NVIDIA/nccl-tests#290.
    "h100": Gpu(
        {
            size: 0.159 * 989e12 / (6 * cost(preset(f"deit_{size}")).macs)
            for size in ("tiny", "small", "base")
        },
        within_gbyte_per_s=476,
    ),
    # timm's results/benchmark-train-amp-nchw-pt112-cu113-rtx3090.csv. Within: 8 cards on PCIe 5.0,
    # NVIDIA/nccl#1639, so at most this.
    "rtx3090": Gpu({"tiny": 2290.5, "small": 1053.6, "base": 391.0}, within_gbyte_per_s=28),
}


class ScalingJob(Value):
    """Estimate what a cluster gives, and what limits it."""

    only: tuple[Section, ...] = get_args(Section)
    """Tables to print."""
    gpu: Literal["h100", "rtx3090"] = "h100"
    """GPU whose published speed to take."""
    sizes: tuple[Literal["tiny", "small", "base"], ...] = ("tiny", "small", "base")
    """Sizes of the presets psvit_2d_*."""
    images_per_s: tuple[PositiveNumber, ...] = ()
    """Training images/s of one GPU, for each of the sizes (perf/img_per_s of a run with one
    worker); by default the published ones."""
    images_per_gpu: PositiveCount = 128
    """Images of each GPU in a step."""
    gpus: tuple[PositiveCount, ...] = (8, 64, 512)
    """Numbers of GPUs in all."""
    gpus_per_host: PositiveCount = 8
    gbit: tuple[Gbit, ...] = (10, 25, 100, 400)
    """Speeds of a host's link, in Gbit/s."""
    attained: PositiveFraction = 0.6
    """Fraction of the link that an all-reduce gets. 0.59 at 4 hosts with 400 Gbit/s
    (NVIDIA/nccl#527: 29.6 GB/s), 0.5 to 0.6 at 8 to 32 with 100 (NVIDIA/nccl#235), both EFA; 0.92
    to 0.96 on InfiniBand (NVIDIA/nccl-tests#290). `psvit doctor` measures yours."""
    message_us: PositiveNumber = 130.0
    """Microseconds of one small message of gloo: an all-reduce of 40 bytes by 8 processes on two
    cores took 1.87 ms at best, which is 14 of them."""
    loader_images_per_s: tuple[PositiveNumber, PositiveNumber] = (290.0, 220.0)
    """Images/s of one core that decodes JPEGs of 500 x 375 and crops and flips them, and of one
    that augments them as DeiT does too: by the processor's seconds in the photographs of
    jobs.studies.benchmark."""
    head_base_mib: PositiveNumber = 2730.0
    """Memory of a head with no trial, and a search's driver: proportional set size."""
    head_trial_mib: PositiveNumber = 1240.0
    """Memory on the head of each trial of several workers: the Ray Train run but for its workers
    (controller 400, driver 400, four helpers of 110). A trial of one worker has none."""
    mlflow_report_ms: PositiveNumber = 35.0
    """Milliseconds of an epoch's report in MLflow on SQLite, on a busy machine: metrics and tags
    are one call."""

    candidate_ms: PositiveNumber = 29.0
    """Milliseconds in which an actor scores a candidate of a one-shot search: of digits, on 288
    images."""
    driver_ms: tuple[PositiveNumber, PositiveNumber] = (3.0, 1.5)
    """Milliseconds in which the driver of a one-shot search proposes a candidate, and in which it
    passes it to an actor and stores its score: processor time of jobs.studies.benchmark --only
    scoring."""


def work(job: ScalingJob) -> int:
    tables = {
        "steps": step_rows,
        "agreement": agreement_rows,
        "loader": loader_rows,
        "search": search_rows,
        "candidates": candidate_rows,
    }
    rates_of(job)  # what is wrong is said before anything is printed
    print("\n\n".join(aligned(tables[section](job)) for section in job.only))
    return 0


def rates_of(job: ScalingJob) -> dict[str, float]:
    """Images/s of one GPU. Raises ValueError where not every size has one."""
    if job.images_per_s and len(job.images_per_s) != len(job.sizes):
        raise ValueError(
            f"images_per_s must be one for each of sizes={list(job.sizes)}, "
            f"got {list(job.images_per_s)}"
        )
    if job.images_per_s:
        return dict(zip(job.sizes, job.images_per_s, strict=True))
    published = GPUS[job.gpu].deit_images_per_s
    macs = {
        size: (cost(preset(f"{kind}_{size}")).macs for kind in ("deit", "psvit_2d"))
        for size in job.sizes
    }
    return {size: published[size] * deit / psvit for size, (deit, psvit) in macs.items()}


def estimated_step(
    job: ScalingJob, size: str, gpus: int, gbit: float, compression: str = "none"
) -> StepTime:
    """Time of a training step of a size on `gpus` GPUs."""
    one_host = gpus <= job.gpus_per_host
    within = Link(8e9 * GPUS[job.gpu].within_gbyte_per_s)
    return step_time.estimate_step(
        cost(preset(f"psvit_2d_{size}")).params,
        workers=gpus,
        compute_s=job.images_per_gpu / rates_of(job)[size],
        link=within if one_host else Link(1e9 * gbit, attained=job.attained),
        compression=compression,
    )


def step_rows(job: ScalingJob) -> Rows:
    """Table of the time of a training step, by size, GPUs and link."""
    rows = [
        ["psvit_2d", "GPUs", "Gbit/s", "compute ms", "gradients ms", "step ms", "images/s"]
        + ["efficiency %", "waiting %", "bf16: step ms", "images/s", "efficiency %"]
    ]
    for size in job.sizes:
        for gpus in job.gpus:
            for gbit in job.gbit if gpus > job.gpus_per_host else (0.0,):
                plain, packed = (
                    estimated_step(job, size, gpus, gbit, kind) for kind in step_time.BYTES
                )
                images = gpus * job.images_per_gpu
                rows.append(
                    [size, str(gpus), f"{gbit:g}" if gbit else "-", _ms(plain.compute_s)]
                    + [_ms(plain.gradients_s), _ms(plain.seconds), _rate(images / plain.seconds)]
                    + [_percent(plain.compute_s / plain.seconds)]
                    + [_percent(plain.exposed_s / plain.seconds), _ms(packed.seconds)]
                    + [_rate(images / packed.seconds)]
                    + [_percent(packed.compute_s / packed.seconds)]
                )
    return rows


def agreement_rows(job: ScalingJob) -> Rows:
    """Table of the agreement of workers, which a step hides where it takes longer itself."""
    rows = [["GPUs", "agreement ms", *(f"{size}: images a GPU that hide it" for size in job.sizes)]]
    for gpus in job.gpus:
        seconds = step_time.agreement_s(gpus, job.message_us / 1e6)
        hide = [str(step_time.images_to_hide(seconds, rate)) for rate in rates_of(job).values()]
        rows.append([str(gpus), _ms(seconds), *hide])
    return rows


def loader_rows(job: ScalingJob) -> Rows:
    """Table of the cores that decode the images of a host's GPUs."""
    rows = [
        ["psvit_2d", "images/s of a host's GPUs", "cores: crop and flip", "DeiT's augmentation"]
    ]
    for size, rate in rates_of(job).items():
        host = rate * job.gpus_per_host
        rows.append(
            [
                size,
                _rate(host),
                *(
                    str(math.ceil(host / rate_per_core))
                    for rate_per_core in job.loader_images_per_s
                ),
            ]
        )
    return rows


def search_rows(job: ScalingJob) -> Rows:
    """Table of searches whose trials train the first size on ImageNet and report every epoch."""
    size, rate = next(iter(rates_of(job).items()))
    rows = [
        ["GPUs", "workers a trial", "trials at once", "GiB on the head", f"s an epoch of {size}"]
        + ["reports/s", "% of MLflow's time", "s an epoch where MLflow is the limit"]
    ]
    for gpus in job.gpus:
        for workers in sorted({n for n in (1, job.gpus_per_host, *job.gpus) if n <= gpus}):
            trials = gpus // workers
            mib = job.head_base_mib + (job.head_trial_mib * trials if workers > 1 else 0)
            epoch_s = IMAGES / (rate * workers)
            report_s = job.mlflow_report_ms / 1000
            rows.append(
                [str(gpus), str(workers), str(trials), f"{mib / GIB:.1f}", f"{epoch_s:.3g}"]
                + [f"{trials / epoch_s:.3g}", _percent(trials / epoch_s * report_s)]
                + [f"{trials * report_s:.3g}"]
            )
    return rows


def candidate_rows(job: ScalingJob) -> Rows:
    """Table of one-shot searches with generations of AutoFormer's size, and of four candidates for
    each actor."""
    rows = [["actors", "population", "candidates/s", "of an actor alone"]]
    proposing_ms, asking_ms = job.driver_ms

    def rate(actors: int, population: int) -> float:
        return candidates_per_s(
            actors,
            population,
            candidate_s=job.candidate_ms / 1000,
            asking_s=asking_ms / 1000,
            proposing_s=proposing_ms / 1000,
        )

    for actors in (1, 2, *job.gpus):
        for population in sorted({POPULATION, max(POPULATION, 4 * actors)}):
            per_s = rate(actors, population)
            times = per_s / rate(1, POPULATION)
            rows.append([str(actors), str(population), f"{per_s:.3g}", f"{times:.3g}"])
    return rows


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def _rate(per_s: float) -> str:
    return f"{per_s:.0f}"


def _percent(part: float) -> str:
    return f"{100 * part:.0f}"


if __name__ == "__main__":
    command_line.run(ScalingJob, work)
