"""What all sweepers share: which jobs are run, on which launcher, and what became of them.

PyTorch and MLflow are imported only when a sweep starts, because Hydra's `--help` imports this module.
"""

from __future__ import annotations

import contextlib
import json
import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins import sweeper
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from cvexp import progress
from cvexp.arguments import quoted
from cvexp.composition import check, refuse_secrets
from cvexp.config import RunConfig, TrackingConfig
from cvexp.console import print_line
from cvexp.errors import UserError
from cvexp.sweeps.outcome import DONE, Job, Outcome
from cvexp.sweeps.stopping import stopping_jobs

if TYPE_CHECKING:
    from cvexp.suggestions.words import Command
    from cvexp.sweeps.earlier import Data
    from cvexp.tracking.sweep import SweepRun

EXTRAS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm", "ray": "ray"}  # of our package

log = logging.getLogger("cvexp")


class Sweeper(sweeper.Sweeper):
    """Runs the jobs of a sweep under one parent run, and records what became of them.

    Args:
        skip_finished: Whether a sweep that is started again goes on where it stopped: jobs that have finished are not
            repeated, and interrupted ones are resumed.
        params: Further overrides, by key.

    Attributes:
        task: What the parent run is recorded as.
        repeats_jobs: Whether tasks that do not train are always repeated, because there may be new runs to work on.
        master: The configuration of the sweep, which its jobs override.
        outcomes: What became of the jobs so far.
        latest: The configuration of the latest job that was composed.
        further_environment: Further environment variables of the jobs.
    """

    task: ClassVar[str] = "sweep"
    repeats_jobs: ClassVar[bool] = True

    def __init__(self, skip_finished: bool, params: Mapping[str, Any] | None) -> None:
        self.skip_finished = skip_finished
        self.params = dict(params or {})
        self.outcomes: list[Outcome] = []
        self.latest: RunConfig | None = None
        self.further_environment: dict[str, str] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from cvexp.sweeps.earlier import Data

        self.context = hydra_context
        self.master = config
        try:
            self.launcher: Launcher = Plugins.instance().instantiate_launcher(
                hydra_context=hydra_context, task_function=task_function, config=config
            )
        except (RuntimeError, ImportError) as error:  # Hydra does not know the class
            name = str(config.hydra.runtime.choices.get("hydra/launcher"))
            if name not in EXTRAS:
                raise
            raise UserError(
                f"hydra/launcher={name}: this needs packages; install them with: pip install 'cvexp[{EXTRAS[name]}]'"
            ) from error
        self.known: Data = Data()

    def check(self, overrides: Sequence[str]) -> None:
        """Raise a UserError for wrong settings of the sweep itself, before anything is recorded."""

    @abstractmethod
    def run_all(self, run: SweepRun, overrides: Sequence[str]) -> None:
        """Run all jobs with :meth:`run_jobs`."""

    @abstractmethod
    def identity(self) -> Any:
        """Return what this sweep is besides its overrides, as JSON."""

    def swept(self, overrides: Sequence[str]) -> list[str]:
        """Return the keys that the jobs differ in."""
        parsed = OverridesParser.create().parse_overrides(list(overrides))
        return [override.key_or_group for override in parsed if override.is_sweep_override()]

    def sweep(self, arguments: list[str]) -> None:
        """Run a sweep.

        Raises:
            UserError: at the end, if some jobs did not finish.
        """
        from cvexp.suggestions import rules
        from cvexp.sweeps import summary
        from cvexp.tracking.description import command_line
        from cvexp.tracking.store import failures_explained
        from cvexp.tracking.sweep import open_sweep

        tracking = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrackingConfig), self.master.tracking))
        assert isinstance(tracking, TrackingConfig)
        progress.configure(tracking.progress_seconds)
        overrides = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        hydra_overrides = OmegaConf.to_container(self.master.hydra.overrides.hydra, resolve=False)
        assert isinstance(hydra_overrides, list)
        command = command_line([*arguments, *map(str, hydra_overrides)], is_sweep=True)
        identity = json.dumps([sorted(overrides), self.identity()])
        self.check(overrides)
        with (
            progress.step(self.task),
            failures_explained("once it works again, start the same command again"),
            open_sweep(
                tracking, overrides, command, self.swept(overrides), identity, self.skip_finished, self.task
            ) as run,
        ):
            try:
                self.run_all(run, overrides)
            finally:
                summary.report(run, self.outcomes)
                if any(outcome.is_failure for outcome in self.outcomes):
                    print_line("the same command goes on: it skips the jobs that have finished")
        self.show_results()
        self._raise_unless_done()
        rules.print_next(self.next_command(run))

    def show_results(self) -> None:
        """Print what the sweep found out, after the table of its jobs."""

    def next_command(self, run: SweepRun) -> Command | None:
        """Return the command that suggests itself after the sweep."""
        from cvexp.suggestions.rules import after_sweep

        ids = [outcome.run_id for outcome in self.outcomes if outcome.status in DONE]
        return after_sweep(run.store, ids, self.latest) if self.latest is not None else None

    def _raise_unless_done(self) -> None:
        """Raise a UserError that says what to do, unless all jobs are done."""
        unfinished = [outcome for outcome in self.outcomes if outcome.is_failure]
        if not unfinished:
            return
        running = [outcome for outcome in unfinished if outcome.status == "running"]
        if len(running) == len(unfinished):
            raise UserError(
                f"{len(running)} of {len(self.outcomes)} jobs are still running in other processes; start the same "
                "command again when they have ended"
            )
        first = next(outcome for outcome in unfinished if outcome.status != "running")
        raise UserError(
            f"{len(unfinished)} of {len(self.outcomes)} jobs did not finish, such as job {first.number} "
            f"({first.error or first.status}); if something is wrong, correct it, and start the sweep again"
        )

    def run_jobs(self, run: SweepRun, jobs: Sequence[Job]) -> list[Outcome]:
        """Run some jobs on the launcher, except those that have finished before, or that are running or wrong.

        Args:
            run: The parent run.
            jobs: The jobs, all different.

        Returns:
            What became of each job.
        """
        from cvexp.sweeps import summary

        settled = {job.number: outcome for job in jobs if (outcome := self._settle(run, job))}
        waiting = [job for job in jobs if job.number not in settled]
        if finished := [str(n) for n, outcome in settled.items() if outcome.status == "finished before"]:
            log.info("%d of %d jobs have finished before: %s", len(finished), len(jobs), ", ".join(finished))
        returned: list[JobReturn | None] = [None] * len(waiting)
        lost = "the sweep was interrupted"
        try:
            if waiting:
                returned = self._launch([self._launched(run, job) for job in waiting])
        except Exception as error:  # of the launcher, such as a job that its scheduler has lost
            lost = f"{type(error).__name__}: {error}".splitlines()[0].partition(". ")[0]
            log.error("the launcher failed: %s", lost)
        finally:
            launched = summary.collect(run, waiting, returned, lost)
            outcomes = [settled.get(job.number) or launched[job.number] for job in jobs]
            self.outcomes += outcomes
        return outcomes

    def _launch(self, jobs: Sequence[Sequence[str]]) -> list[JobReturn | None]:
        """Run jobs on the launcher."""
        name = self._launcher_name()
        if name == "submitit_slurm":
            logging.getLogger("submitit").setLevel(logging.ERROR)  # without accounting, it warns at each poll
            slurm_name = self.master.hydra.launcher.name
            print_line(f"see the jobs with: squeue --name={slurm_name}; stop them with: scancel --name={slurm_name}")
        with contextlib.ExitStack() as during:
            if name == "joblib":
                during.enter_context(stopping_jobs())
                during.enter_context(progress.paused())
            elif name != "basic":
                during.enter_context(progress.step(f"{len(jobs)} jobs with hydra/launcher={name}"))
            try:
                return list(self.launcher.launch(jobs, initial_job_idx=0))
            except BaseException:
                if name == "ray":
                    import ray

                    ray.shutdown()  # or else jobs would go on until this process ends
                raise

    def _launcher_name(self) -> str:
        return str(self.master.hydra.runtime.choices.get("hydra/launcher"))

    def compose(self, job: Job) -> RunConfig:
        """Compose and check the configuration of a job.

        Raises:
            HydraException: if an override names an unknown key or group.
            UserError: if a value is wrong, or the job can't continue the run that it names.
        """
        composed = self.context.config_loader.load_sweep_config(self.master, list(job.overrides))
        with open_dict(composed):
            del composed["hydra"]
        config = self.latest = check(composed)
        refuse_secrets(config)
        if config.continues:
            from cvexp.tracking.continuing import continued_config

            return continued_config(config, composed, job.overrides)
        return config

    def has_finished(self, run: SweepRun, job: Job) -> bool:
        """Return whether a job has finished before, so that :meth:`run_jobs` does not run it again."""
        from cvexp.sweeps.earlier import find_finished

        with contextlib.suppress(UserError):  # a wrong job is reported when its turn comes
            config = self.compose(job)
            return self.skip_finished and bool(find_finished(run.store, config, self.known, self.repeats_jobs))
        return False

    def _settle(self, run: SweepRun, job: Job) -> Outcome | None:
        """Return what became of a job if it need not run, or can't."""
        from cvexp.sweeps import summary
        from cvexp.sweeps.earlier import find_finished, find_running

        try:
            config = self.compose(job)
        except UserError as error:
            log.error("job %s can't run: %s", job.number, error)
            return summary.outcome_of(job, None, "failed", run.swept, str(error))
        if not self.skip_finished:
            return None
        if finished := find_finished(run.store, config, self.known, self.repeats_jobs):
            return summary.outcome_of(job, finished, "finished before", run.swept)
        if running := find_running(run.store, config):
            return summary.outcome_of(job, running, "running", run.swept)
        return None

    def _launched(self, run: SweepRun, job: Job) -> list[str]:
        """Return the overrides of a job on a launcher, whose process may have another environment."""
        environment = {**run.environment(job.number), **self.further_environment}
        if self._launcher_name() != "basic":
            environment["TTY_COMPATIBLE"] = "0"
        return [
            *job.overrides,
            f"hydra.sweep.dir={quoted(str(self.master.hydra.sweep.dir))}",
            f"hydra.sweep.subdir='{job.number}'",
            *(f"hydra.job.env_set.{key}={quoted(value)}" for key, value in environment.items()),
        ]
