"""The sweeper that searches for the best settings with Optuna, in a study that survives interruptions.

Optuna is imported only when a search starts, because it is optional.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from cvexp.errors import UserError
from cvexp.keys import require, require_one_of
from cvexp.metrics import selection
from cvexp.redaction import hide_secrets
from cvexp.sweeps.outcome import Job
from cvexp.sweeps.sweeper import Sweeper
from cvexp.tracking import study

if TYPE_CHECKING:
    from cvexp.suggestions.words import Command
    from cvexp.tracking.sweep import SweepRun


class Search(Sweeper):
    """Searches a space of settings with Optuna.

    If a search is interrupted and started again, it goes on: the trials that were running are continued under their
    numbers, and finished ones count.

    Args:
        skip_finished, params: See :class:`Sweeper`. `params` also contains the search space.
        n_trials: The number of trials of the whole study.
        n_jobs: The number of trials that are given to the launcher at a time.
        sampler, pruner: Names of a sampler and a pruner; see `cvexp.tracking.study`.
        sampler_args, pruner_args: Their further arguments.
        seed: Seed of the sampler.
        direction: ``"minimize"``, ``"maximize"``, or None to decide by `task.monitor`.
        storage: Where the study is stored, as a URL of a database.
        study_name: The name of the study; None gives each search its own.
    """

    def __init__(
        self,
        skip_finished: bool,
        params: Mapping[str, Any] | None,
        n_trials: int,
        n_jobs: int,
        sampler: str,
        sampler_args: Mapping[str, Any],
        pruner: str,
        pruner_args: Mapping[str, Any],
        seed: int,
        direction: str | None,
        storage: str,
        study_name: str | None,
    ) -> None:
        super().__init__(skip_finished, params)
        require(n_trials >= 1, "hydra.sweeper.n_trials", n_trials, "at least 1")
        require(n_jobs >= 1, "hydra.sweeper.n_jobs", n_jobs, "at least 1")
        require_one_of("hydra.sweeper.sampler", sampler, study.SAMPLERS)
        require_one_of("hydra.sweeper.pruner", pruner, study.PRUNERS)
        require_one_of("hydra.sweeper.direction", direction or "minimize", ("minimize", "maximize"))
        self.n_trials, self.n_jobs = n_trials, n_jobs
        self.sampler, self.sampler_args = sampler, dict(sampler_args)
        self.pruner, self.pruner_args = pruner, dict(pruner_args)
        self.seed, self.direction = seed, direction
        self.storage, self.study_name = storage, study_name
        self.best: int | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        settings = OmegaConf.to_container(config.hydra.sweeper, resolve=False)
        assert isinstance(settings, dict)
        storage = str(settings["storage"])
        hidden = hide_secrets(storage)
        if hidden != storage:
            raise UserError(
                f"hydra.sweeper.storage: got {hidden!r}, but launchers write the settings of jobs into files; put the "
                "address into an environment variable, and give 'hydra.sweeper.storage=${oc.env:STUDY_STORAGE}'"
            )
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def identity(self) -> Any:
        return ["optuna", self.study_name]

    def run_all(self, run: SweepRun, overrides: Sequence[str]) -> None:
        try:
            from cvexp.sweeps import space
            from cvexp.sweeps.trials import Study
        except ImportError as error:
            raise UserError(
                "hydra/sweeper=optuna: this needs a package; install it with: pip install 'cvexp[optuna]'"
            ) from error
        fixed, distributions = space.split(overrides)
        trials = Study(self, self.study_name or f"sweep-{run.id}", distributions, self._direction(fixed))
        self.further_environment = study.environment(trials.name, self.pruner, self.pruner_args)

        def job(number: int, drawn: Mapping[str, object]) -> Job:
            return Job(number, (*fixed.values(), *(space.as_override(key, value) for key, value in drawn.items())))

        self.outcomes += trials.outcomes_before(run, job)
        while drawn := trials.next():
            jobs = {number: job(number, values) for number, values in drawn.items()}
            alike: dict[tuple[str, ...], int] = {}  # of several trials with equal settings, one is run
            for number in jobs:
                alike.setdefault(jobs[number].overrides, number)
            ran = {outcome.number: outcome for outcome in self.run_jobs(run, [jobs[i] for i in alike.values()])}
            for number in jobs:
                trials.tell(number, ran[alike[jobs[number].overrides]])
        self.best = trials.report_best(run)

    def next_command(self, run: SweepRun) -> Command | None:
        from cvexp.suggestions.rules import after_sweep

        ids = [outcome.run_id for outcome in self.outcomes if outcome.number == self.best]
        return after_sweep(run.store, ids, self.latest) if self.latest is not None else None

    def _direction(self, fixed: Mapping[str, str]) -> str:
        if self.direction:
            return self.direction
        composed = OmegaConf.select(self.master, "task.monitor", default="val/loss")
        monitor = fixed.get("task.monitor", f"={composed}").partition("=")[2]
        return selection.direction(monitor)
