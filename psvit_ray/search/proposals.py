"""Which configuration to try next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from psvit_ray.arch.space import Parameter
from psvit_ray.arch.spec import Value
from psvit_ray.search.config import SearchConfig
from psvit_ray.search.record import Kind, Record
from psvit_ray.training.config import Configuration, TrainConfig


class Proposal(Value):
    """A configuration to train. `params` are its flat parameters, overrides among them; every
    proposal of a search has the same names, with 0 where one does not apply."""

    kind: Kind
    params: dict[str, Parameter]
    configuration: Configuration


class Proposals:
    """Unfinished configurations of an earlier start first, then DeiT baselines, first points of the
    space, and what TPE makes of the outcomes. Nothing over the limits, nothing twice."""

    def __init__(
        self, config: SearchConfig, train: TrainConfig, records: Iterable[Record] = ()
    ) -> None: ...

    def ask(self) -> Proposal | None:
        """The next to train. None: `num_trials` were proposed, or the space is used up."""
        raise NotImplementedError

    def tell(self, key: str, top1: float | None) -> None:
        """What came of a configuration: top-1 in percent; None or NaN if it failed."""


class FixedProposals:
    """A list of configurations, each once; those that are unfinished in `records` among them."""

    def __init__(
        self, configurations: Sequence[Configuration], records: Iterable[Record] = ()
    ) -> None: ...

    def ask(self) -> Proposal | None:
        raise NotImplementedError

    def tell(self, key: str, top1: float | None) -> None: ...
