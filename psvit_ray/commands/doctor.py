"""Checks a cluster host by host: whether a run would go well there, and what to do where not.

    ray job submit --working-dir . -- python jobs/doctor.py --storage s3://bucket/psvit \
        --tracking-uri http://mlflow:5000 --data s3://bucket/photos --arch psvit_2d_tiny
    psvit doctor --recipe digits      # this machine alone

Flags are those of the training that is to follow. Writes nothing that stays. Exit code 0: all well,
1: something is not, 2: a wrong flag.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from psvit_ray.commands import command_line
from psvit_ray.commands.fitting import fitted
from psvit_ray.commands.options import DoctorJob
from psvit_ray.data.sources.image_source import Source
from psvit_ray.report.summary import aligned
from psvit_ray.runtime.cluster import cluster, host_calls
from psvit_ray.runtime.doctor import doctor
from psvit_ray.runtime.doctor.bandwidth import MeasuredStep
from psvit_ray.runtime.doctor.doctor import CheckContext, Finding
from psvit_ray.runtime.tracking import store_uri
from psvit_ray.storage.folder import Folder
from psvit_ray.training.config import Configuration
from psvit_ray.training.source import check_fits


def work(job: DoctorJob) -> int:
    storage = Folder.at(job.storage)
    uri = store_uri.resolve_uri(job.tracking_uri, storage)
    cluster.join(verbose=job.verbose)
    hosts = host_calls.alive_hosts()
    source = doctor.load_source_on(job.train, hosts[0])
    subject = CheckContext(
        hosts=hosts,
        driver=hosts[0],
        storage=storage,
        tracking_uri=uri,
        source=source,
        per_worker=cluster.amounts_per_worker(job.resources),
        step=None,
    )
    if isinstance(source, Source):
        subject = replace(subject, step=measured_step(job, source, len(subject.training)))
    findings = list(doctor.examine(subject))
    print(findings_table(findings))
    faults = failures(findings)
    print("", *faults, sep="\n") if faults else print(f"\nall well (hosts: {len(hosts)})")
    return 1 if faults else 0


def measured_step(job: DoctorJob, source: Source, places: int) -> MeasuredStep:
    """Raises ValueError for a network or a batch that the data does not go with."""
    job, _ = fitted(job, source)
    configuration = Configuration(
        spec=command_line.resolve_arch(job.arch, job.base, source), train=job.train
    )
    check_fits(configuration, source)
    return MeasuredStep(configuration, job.workers or max(places, 1), len(source.train))


def findings_table(findings: Sequence[Finding]) -> str:
    """A row for each host, a column for each check; - stands where a host was not asked."""
    cells = {
        (finding.host, finding.check): finding.message if finding.ok else "FAILS"
        for finding in findings
    }
    hosts, checks = (list(dict.fromkeys(part)) for part in zip(*cells, strict=True))
    rows = [[host, *(cells.get((host, check), "-") for check in checks)] for host in hosts]
    return aligned([["host", *checks], *rows])


def failures(findings: Iterable[Finding]) -> list[str]:
    """A line for each fault: hosts, what is wrong, what to do. Hosts with one fault share it."""
    hosts: dict[tuple[str, str, str], list[str]] = {}
    for finding in findings:
        if not finding.ok:
            fault = (finding.check, finding.message, finding.advice)
            hosts.setdefault(fault, []).append(finding.host)
    return [
        f"{', '.join(names)}: {check}: {message}; {advice}"
        for (check, message, advice), names in hosts.items()
    ]
