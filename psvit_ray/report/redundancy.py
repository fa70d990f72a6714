"""The redundancy of a network as files, and the sharing that it suggests."""

from __future__ import annotations

import math
from pathlib import Path

from psvit_ray.arch.cost import count_macs
from psvit_ray.arch.spec import ArchSpec, Value, parse_pattern
from psvit_ray.model.attention_similarity import Redundancy, mean_to_leader
from psvit_ray.report.redundancy_picture import redundancy_png
from psvit_ray.report.summary import aligned
from psvit_ray.text import csv_file

JSON = "redundancy.json"


class SharingProposal(Value):
    """Content of `redundancy.json`: what was measured of which network, and the sharing proposed
    for it."""

    model: str
    data: str
    seed: int
    """Seed that drew the images."""
    num_unreadable: int
    threshold: float | None
    """Similarity from which on layers share; None where the number of followers was given."""
    max_group: int | None
    pattern: str
    """Pattern of the proposed sharing."""
    spec: ArchSpec | None
    """Spec of the network as it was measured; None where no ArchSpec describes it."""
    redundancy: Redundancy

    @property
    def proposed(self) -> ArchSpec | None:
        """The network with the proposed sharing; None where no ArchSpec describes it."""
        return self.spec and self.spec.with_pattern(self.pattern)


def followers(pattern: str) -> int:
    """Number of layers that use another layer's attention map."""
    return sum(size - 1 for groups in parse_pattern(pattern) for size in groups)


def write(proposal: SharingProposal, folder: Path) -> None:
    """Writes `redundancy.json`, `redundancy.csv` (the matrix, then the tokens' similarity, a row
    for each layer; empty where there is none) and `redundancy.png`."""
    (folder / JSON).write_text(proposal.model_dump_json(indent=2) + "\n", encoding="utf-8")
    measured = proposal.redundancy
    heading = ["layer", *map(str, range(1, len(measured.similarity) + 1)), "tokens"]
    rows = [
        [layer, *("" if math.isnan(value) else value for value in [*row, tokens])]
        for layer, (row, tokens) in enumerate(
            zip(measured.similarity, measured.token_similarity, strict=True), start=1
        )
    ]
    (folder / "redundancy.csv").write_bytes(csv_file.csv_bytes(heading, rows))
    title = f"{proposal.model}: {measured.num_images:,} hold-out images of {proposal.data}"
    (folder / "redundancy.png").write_bytes(redundancy_png(measured, proposal.pattern, title))


def summary(proposal: SharingProposal) -> str:
    """Text for a terminal: each layer with its leader, and the pattern."""
    measured = proposal.redundancy
    lines = [["layer", "map as the one before", "leader", "map as the leader", "tokens"]]
    layer = 0
    for size in (size for groups in parse_pattern(proposal.pattern) for size in groups):
        for leader, member in ((layer, layer + i) for i in range(size)):
            row = measured.similarity[member]
            before = row[member - 1] if member else math.nan
            borrows = member > leader
            lines.append(
                [
                    str(member + 1),
                    _number(before),
                    str(leader + 1) if borrows else "-",
                    _number(row[leader]) if borrows else "-",
                    _number(measured.token_similarity[member]),
                ]
            )
        layer += size
    return f"{aligned(lines)}\n\n{_proposal_line(proposal)}"


def _proposal_line(proposal: SharingProposal) -> str:
    borrowing = followers(proposal.pattern)
    alike = mean_to_leader(proposal.redundancy.similarity, proposal.pattern)
    rule = "" if proposal.threshold is None else f" under threshold {proposal.threshold:g}"
    text = (
        f"sharing{rule}: {proposal.pattern}\n{borrowing} of {len(proposal.redundancy.similarity)} "
    )
    text += "layers borrow a map"
    if borrowing:
        text += f", {alike:.3f} similar to their leaders' on average"
    if proposal.spec and proposal.proposed:
        proposed_macs, measured_macs = count_macs(proposal.proposed), count_macs(proposal.spec)
        share = proposed_macs / measured_macs
        text += f"; {proposed_macs / 1e6:,.4g} MMACs, {share:.3f} of the network's"
    return text


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
