"""The trials of a search, in a stored study of Optuna."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from cvexp.console import print_line
from cvexp.errors import UserError
from cvexp.seeds import mix
from cvexp.sweeps import summary
from cvexp.sweeps.outcome import Job, Outcome
from cvexp.tracking import study
from cvexp.tracking.store import first_line

if TYPE_CHECKING:
    from cvexp.sweeps.search import Search
    from cvexp.tracking.sweep import SweepRun

WORDS = {TrialState.COMPLETE: "finished before", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed before"}


class Study:
    """A study, which is created unless it exists.

    Args:
        search: The settings of the search.
        name: The name of the study.
        distributions: The search space.
        direction: ``"minimize"`` or ``"maximize"``.

    Raises:
        UserError: if the study can't be opened.
    """

    def __init__(
        self, search: Search, name: str, distributions: Mapping[str, BaseDistribution], direction: str
    ) -> None:
        self.search = search
        self.name = name
        self.distributions = dict(distributions)
        self._told: set[int] = set()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            self.study = optuna.create_study(
                storage=search.storage,
                study_name=name,
                load_if_exists=search.skip_finished,
                direction=direction,  # type: ignore[arg-type]
                pruner=study.make_pruner(search.pruner, search.pruner_args),
            )
        except optuna.exceptions.DuplicatedStudyError as error:
            raise UserError(
                f"hydra.sweeper.study_name: there is already a study {name!r}; choose another name, or go on with it "
                "by leaving out hydra.sweeper.skip_finished=false"
            ) from error
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError, ImportError, ValueError) as error:
            raise UserError(f"hydra.sweeper.storage: it can't be used ({first_line(error)}); correct it") from error

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def outcomes_before(self, run: SweepRun, job: Callable[[int, Mapping[str, Any]], Job]) -> list[Outcome]:
        """Return what became of the trials that ended before this start of the search.

        Args:
            run: The parent run.
            job: Returns the job of a trial, given its number and its settings.
        """
        children = summary.children(run)
        return [
            summary.outcome_of(job(t.number, t.params), children.get(t.number), WORDS[t.state], run.swept)
            for t in self._trials(*WORDS)
        ]

    def next(self) -> dict[int, dict[str, Any]]:
        """Return the settings of the trials to run next, by number; empty at the end.

        Those that an earlier start of the search left running come first.
        """
        left = [trial for trial in self._trials(TrialState.RUNNING) if trial.number not in self._told]
        if left := left[: self.search.n_jobs]:
            return {trial.number: trial.params for trial in left}
        missing = self.search.n_trials - len(self._trials())
        asked = [self._ask() for _ in range(min(self.search.n_jobs, missing))]
        return {trial.number: trial.params for trial in asked}

    def _ask(self) -> optuna.Trial:
        # Each trial has its own seed, or else a search that goes on would repeat its first random numbers. Only a
        # quasi-random sequence needs one seed, and continues by itself.
        seed = self.search.seed
        if self.search.sampler != "qmc":
            seed = mix(seed, len(self._trials())) % 2**32
        arguments = {"seed": seed, **self.search.sampler_args}
        self.study.sampler = study.make_sampler(self.search.sampler, arguments)
        return self.study.ask(self.distributions)

    def tell(self, number: int, outcome: Outcome) -> None:
        """Store the result of a trial. One that was interrupted stays open for the next start of the search."""
        self._told.add(number)
        if outcome.status in ("stopped", "lost", "not run"):
            return
        if outcome.status == "pruned":
            self.study.tell(number, state=TrialState.PRUNED)
        elif outcome.value is None:
            self.study.tell(number, state=TrialState.FAIL)
        else:
            self.study.tell(number, outcome.value)

    def report_best(self, run: SweepRun) -> int | None:
        """Print the number of trials and the best one, and record it as the tag `best`.

        Returns:
            The number of the best trial; None if none is complete.
        """
        counts = {state: len(self._trials(state)) for state in TrialState}
        numbers = ", ".join(f"{count} {state.name.lower()}" for state, count in counts.items() if count)
        print_line(f"study {self.name}: {numbers}")
        if counts[TrialState.COMPLETE]:
            best = self.study.best_trial
            settings = " ".join(f"{key}={value}" for key, value in best.params.items())
            text = f"job {best.number}, {best.value:.4f}, with {settings}"
            print_line(f"best: {text}")
            run.store.client.set_tag(run.id, "best", text[:5000])
            return int(best.number)
        return None
