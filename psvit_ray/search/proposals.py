"""Which configuration a search tries next."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence

import optuna
from optuna.trial import TrialState

from psvit_ray.arch.cost import cost
from psvit_ray.arch.space import Parameter
from psvit_ray.arch.spec import Value
from psvit_ray.search.candidates import ConfigurationSpace
from psvit_ray.search.config import SearchConfig
from psvit_ray.search.record import FINAL_STATUSES, Kind, Record
from psvit_ray.search.tpe import OneSplitTPE
from psvit_ray.training.config import Configuration, TrainConfig
from psvit_ray.training.results import RANKING

ATTEMPTS = 10  # of TPE, which may ask for the same again and again, before one is drawn


class Proposal(Value):
    """A configuration to train.

    `params` are its flat parameters, overrides among them: every proposal of a search has the same
    names, with 0 where a parameter does not apply.
    """

    kind: Kind
    params: dict[str, Parameter]
    configuration: Configuration

    @property
    def key(self) -> str:
        return self.configuration.key

    @classmethod
    def of(cls, record: Record) -> Proposal:
        return cls(kind=record.kind, params=record.params, configuration=record.configuration)


class Proposals:
    """Proposals of a search by optuna's TPE (score up, MACs down).

    Configurations that an earlier start left unfinished come first, then DeiT baselines, large
    specs of the space, and what TPE suggests from the results. No proposal is over the limits, none
    comes twice. With one configuration in training at a time, equal seeds give equal proposals.
    Optuna's study lives in memory: the records hold all that a resume needs.

    Raises ValueError if no spec meets the limits, or if the overrides do not go with `train`.
    """

    def __init__(
        self, config: SearchConfig, train: TrainConfig, records: Iterable[Record] = ()
    ) -> None:
        records = list(records)
        self._num_trials = config.num_trials
        self._worst = RANKING[train.metric].worst
        self._candidates = ConfigurationSpace(config, train)
        # A new start must not draw again what the one before it drew.
        self._rng = random.Random(f"{config.search_seed} {len(records)}")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            directions=["maximize", "minimize"],
            # Parameters that come and go with others leave little to a joint density: it found
            # less in 18 to 60 trials than one density for each.
            sampler=OneSplitTPE(
                seed=self._rng.randrange(2**32), multivariate=False, constant_liar=True
            ),
        )
        self._proposed: set[str] = set()
        self._candidates_proposed = 0  # baselines may be none
        self._trials: dict[str, optuna.Trial] = {}
        self._outcomes: dict[str, float] = {}

        unfinished = [
            Proposal.of(record) for record in records if record.status not in FINAL_STATUSES
        ]
        for record in records:
            self._enter(record.configuration)
            if record.status in FINAL_STATUSES:
                self.tell(record.key, None if record.status == "failed" else record.score)
        baselines = self._candidates.baselines(min(config.baselines, config.num_trials - 1))
        first = self._candidates.first_points(random.Random(config.search_seed))
        self._unfinished = deque(unfinished)
        self._first = deque(
            [self._proposal("baseline", configuration) for configuration in baselines]
            + [self._proposal("first", configuration) for configuration in first]
        )

    def ask(self) -> Proposal | None:
        """The next proposal to train, or None once `num_trials` were proposed or the space is used
        up."""
        if self._unfinished:
            return self._unfinished.popleft()
        if len(self._proposed) >= self._num_trials:
            return None
        while self._first:
            proposal = self._first.popleft()
            if proposal.key not in self._proposed:
                self._enter(proposal.configuration)
                return proposal
        configuration = self._suggested() or self._drawn()
        return self._proposal("proposal", configuration) if configuration else None

    def tell(self, key: str, score: float | None) -> None:
        """Takes the result of a configuration: its score, higher where it is better, or None or NaN
        if it failed."""
        score = score if score is not None and math.isfinite(score) else self._worst
        self._outcomes[key] = score
        if trial := self._trials.pop(key, None):
            self._finish(trial, score)

    def _proposal(self, kind: Kind, configuration: Configuration) -> Proposal:
        params = self._candidates.params(configuration)
        return Proposal(kind=kind, params=params, configuration=configuration)

    def _suggested(self) -> Configuration | None:
        """What TPE makes of the outcomes, if it is new and within limits."""
        for _ in range(ATTEMPTS):
            trial, configuration = self._ask_study()
            key = configuration.key
            if not self._candidates.limits.allows(configuration.spec):
                self._finish(trial, self._worst)
            elif key in self._outcomes:
                self._finish(trial, self._outcomes[key])
            elif key in self._proposed:
                self._study.tell(trial, state=TrialState.FAIL)
            else:
                self._keep(trial, configuration)
                return configuration
        return None

    def _drawn(self) -> Configuration | None:
        """A random untried configuration, each as likely as any other, or None if none is left."""
        count = self._candidates.count
        if count is not None and self._candidates_proposed >= count:
            return None
        # So many that one which is left is found but for a chance of e^-100.
        for _ in range(100 * (1 + 2 * len(self._proposed))):
            configuration = self._candidates.draw(self._rng)
            if configuration.key not in self._proposed:
                self._enter(configuration)
                return configuration
        return None

    def _enter(self, configuration: Configuration) -> None:
        """Enters a configuration that TPE did not propose; TPE learns from it if it is of the
        space."""
        if configuration not in self._candidates:
            self._proposed.add(configuration.key)
            return
        self._study.enqueue_trial(self._candidates.params(configuration))
        trial, same = self._ask_study()
        assert same == configuration, (same, configuration)
        self._keep(trial, configuration)

    def _keep(self, trial: optuna.Trial, configuration: Configuration) -> None:
        self._proposed.add(configuration.key)
        self._candidates_proposed += 1
        self._trials[configuration.key] = trial

    def _ask_study(self) -> tuple[optuna.Trial, Configuration]:
        trial = self._study.ask()
        configuration = self._candidates.suggest(trial)
        macs, params = cost(configuration.spec)
        max_macs, max_params = self._candidates.limits.bounds
        trial.set_user_attr("macs", macs)
        # TPE learns from what is over the limits too, which costs no training.
        trial.set_constraint("macs", macs / max_macs - 1)
        trial.set_constraint("params", params / max_params - 1)
        return trial, configuration

    def _finish(self, trial: optuna.Trial, score: float) -> None:
        self._study.tell(trial, [score, trial.user_attrs["macs"] / 1e9])


class FixedProposals:
    """Proposals of the given configurations, each once, without those that ended in `records`.

    `kinds` gives the kind of a configuration by its key; the others are of kind "fixed".
    """

    def __init__(
        self,
        configurations: Sequence[Configuration],
        records: Iterable[Record] = (),
        kinds: Mapping[str, Kind] | None = None,
    ) -> None:
        self._kinds = kinds or {}
        ended = {record.key for record in records if record.status in FINAL_STATUSES}
        distinct = {
            configuration.key: configuration
            for configuration in configurations
            if configuration.key not in ended
        }
        self._waiting = deque(distinct.values())

    def ask(self) -> Proposal | None:
        if not self._waiting:
            return None
        configuration = self._waiting.popleft()
        spec, train = configuration.spec, configuration.train
        params: dict[str, Parameter] = {
            "patch_size": spec.patch_size,
            "num_stages": len(spec.stages),
            "depth": spec.depth,
            "seed": train.seed,
        }
        kind = self._kinds.get(configuration.key, "fixed")
        return Proposal(kind=kind, params=params, configuration=configuration)

    def tell(self, key: str, score: float | None) -> None: ...
