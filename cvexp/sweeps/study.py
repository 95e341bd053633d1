"""The sweeper of `task=study`: crosses starts, methods, label fractions and seeds, and says what pretraining saves.

PyTorch and MLflow are imported only when a study starts, because Hydra's `--help` imports this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cvexp import progress
from cvexp.config import flatten
from cvexp.console import print_line
from cvexp.errors import UserError
from cvexp.sweeps.outcome import DONE, Job, Outcome
from cvexp.sweeps.plan import Plan, join
from cvexp.sweeps.sweeper import Sweeper

if TYPE_CHECKING:
    from cvexp.suggestions.words import Command
    from cvexp.sweeps.lengths import Length
    from cvexp.sweeps.study_jobs import StudyJobs
    from cvexp.tasks.study import Config
    from cvexp.tracking.sweep import SweepRun


class Study(Sweeper):
    """Runs a study.

    The order of the runs depends only on the results so far. A study that is started again therefore repeats its
    decisions, skips what has finished, and ends with the same result.

    Args:
        skip_finished, params: See :class:`Sweeper`.

    Attributes:
        jobs: Makes the jobs.
        configs: The configuration of each task's runs.
        scored_config: That of the first method, whose data are those of all methods.
        splits: These data.
        shares: The number of training images of each label fraction.
        left_out: Starts that are asked for, but can't be used.
        clock: The time of the study.
        step: Shows how far it is.
        results: Its results.
        pretrained: The name and the id of each pretraining run.
    """

    task = "study"
    repeats_jobs = False  # its probes name the weights that they work on

    def __init__(self, skip_finished: bool, params: Mapping[str, Any] | None, **unknown: Any) -> None:
        super().__init__(skip_finished, params)
        self.pretrained: list[tuple[str, str]] = []
        self.left_out: list[str] = []
        for key in unknown:
            raise UserError(f"hydra.sweeper.{key}: a study has no such key; its own are those of task=study")

    def identity(self) -> str:
        return "study"

    def swept(self, overrides: Sequence[str]) -> list[str]:
        return ["task", "backbone.weights", "dataset.fraction", "seed"]

    def check(self, overrides: Sequence[str]) -> None:
        from cvexp import data
        from cvexp.probing.dataset import load
        from cvexp.probing.networks import EVAL_SIZE
        from cvexp.sweeps import study_jobs
        from cvexp.tasks.study import PROBE, pretrainings

        study: Config = self.compose(Job(0, tuple(overrides))).task  # type: ignore[assignment]
        common = study_jobs.shared_overrides(overrides)
        self._refuse_ignored_settings(overrides, common)
        study_jobs.check_starts(study.starts)
        study_jobs.check_overrides(study)
        are_own_last = any(word.lstrip("+").startswith("task.overrides") for word in overrides)
        plan = Plan((), tuple(study.starts), tuple(study.fractions), tuple(study.seeds))
        pretrained = [start for start in plan.starts if start in pretrainings()]
        jobs = self.jobs = study_jobs.StudyJobs(study, common, plan, pretrained, are_own_last)
        jobs.plan = plan._replace(methods=tuple(study.methods or self._default_methods(jobs)))
        self.configs = {task: self.compose(Job(0, jobs.overrides(task))) for task in jobs.tasks}
        sizes = [self.configs[start].task.eval_size for start in pretrained]  # type: ignore[attr-defined]
        jobs.of_probes = [f"task.eval_size={size}" for size in [*sizes, EVAL_SIZE][:1]]
        self.scored_config = self.configs[jobs.plan.methods[0]]
        dataset = self.scored_config.dataset
        self.splits = load(dataset) if jobs.plan.methods == (PROBE,) else data.load(dataset, "segmentation")
        self.shares = study_jobs.images_of(plan.fractions, self.splits, dataset)
        jobs.plan = jobs.plan._replace(starts=self._available(plan.starts))

    def run_all(self, run: SweepRun, overrides: Sequence[str]) -> None:
        from cvexp.sweeps.clock import Clock
        from cvexp.sweeps.lengths import choose_lengths
        from cvexp.sweeps.results import Results

        jobs, study = self.jobs, self.jobs.study
        results = self.results = Results(run, study, self.scored_config, self.splits, self.shares)
        results.missing += self.left_out
        self.clock = Clock(run, study.hours, study.at_once)
        try:
            lengths = choose_lengths(run, study, self.configs, jobs, self.run_jobs)
            jobs.lengths = {task: length.overrides() for task, length in lengths.items()}
            _announce(jobs, lengths)
            with progress.step("study", jobs.plan.num_cells, unit="runs on labels") as self.step:
                for seed in jobs.plan.seeds:
                    self._run_seed(run, seed)
                    results.record(self.pretrained)
        finally:
            self.clock.save()

    def show_results(self) -> None:
        self.results.show()

    def next_command(self, run: SweepRun) -> Command | None:
        from cvexp.suggestions.rules import after_study

        return after_study(self.scored_config)

    def _refuse_ignored_settings(self, overrides: Sequence[str], common: Sequence[str]) -> None:
        """Raise a UserError if an experiment sets more than the study itself, because its runs would not get that."""
        chosen, plain = (
            flatten(asdict(self.compose(Job(0, tuple(words))))) for words in (overrides, ("task=study", *common))
        )
        differing = {key.partition(".")[0] for key in chosen.keys() | plain.keys() if chosen.get(key) != plain.get(key)}
        if groups := sorted(differing - {"task"}):
            raise UserError(
                f"experiment: it sets {', '.join(groups)}, but the file of a study sets only its task; put the rest "
                "into another file, and name that in task.overrides={all: ['+experiment=NAME']}"
            )

    def _default_methods(self, jobs: StudyJobs) -> list[str]:
        """Return both segmentation methods if the data have masks, and otherwise the probe."""
        from cvexp import data
        from cvexp.tasks.study import PROBE

        config = self.compose(Job(0, jobs.overrides("multiclass")))
        return ["multiclass", "attention"] if "segmentation" in data.uses(config.dataset) else [PROBE]

    def _run_seed(self, run: SweepRun, seed: int) -> None:
        """Run all cells of a seed for which there is time."""
        jobs, results = self.jobs, self.results
        settled = results.settled(jobs.plan) if jobs.study.stop else set()
        batches = join(jobs.plan.round(seed, settled, results.doubts()), jobs.study.at_once)
        needed = {cell.start for batch in batches for cell in batch}
        tasks = [cell.method for cell in batches[0]] if batches else []
        sources = self._pretrain(run, [start for start in jobs.pretrained if start in needed], seed, tasks)
        for i, batch in enumerate(batches):
            cells = [cell for cell in batch if cell.start not in jobs.pretrained or cell.start in sources]
            planned = [(cell.method, jobs.on_labels(cell, sources.get(cell.start))) for cell in cells]
            ran = self._run_in_time(run, planned)
            for cell, outcome in zip(cells, ran, strict=True):
                if outcome is not None and outcome.status in DONE:
                    results.add(cell, outcome.run_id)
                elif outcome is not None:
                    results.missing.append(str(cell))
            if any(outcome is not None and outcome.status != "finished before" for outcome in ran):
                later = jobs.plan.seeds[jobs.plan.seeds.index(seed) + 1 :]
                rest = [*(cell.method for batch in batches[i + 1 :] for cell in batch), *jobs.of_seeds(later)]
                left = self.clock.needed(rest)
                done = f"{len(results.runs)} of {jobs.plan.num_cells} runs on labels done"
                print_line(f"study: {done}, at most about {left / 60:.0f} min left", style="bold")
                self.step.expect(left)
            self.step.done = len(results.runs)

    def _pretrain(self, run: SweepRun, starts: Sequence[str], seed: int, then: Sequence[str]) -> dict[str, str]:
        """Pretrain with a seed, and return the run of each start that has one."""
        ran = self._run_in_time(run, [(start, self.jobs.pretraining(start, seed)) for start in starts], then)
        sources = {}
        for start, outcome in zip(starts, ran, strict=True):
            if outcome is not None and outcome.status in DONE:
                sources[start] = outcome.run_id
                self.pretrained.append((f"{start}, seed {seed}", outcome.run_id))
            elif outcome is not None:
                self.results.missing.append(f"the pretraining with {start}, seed {seed}")
        return sources

    def _run_in_time(
        self, run: SweepRun, planned: Sequence[tuple[str, Job]], then: Sequence[str] = ()
    ) -> list[Outcome | None]:
        """Run jobs, but none that has not finished before if there is no time for all of those.

        Args:
            run: The study's run.
            planned: The task of each job, and the job.
            then: The tasks of the runs that follow, for which there must be time, too.

        Returns:
            What became of each job; None if there was no time.
        """
        waiting = {job.number: task for task, job in planned if not self.has_finished(run, job)}
        if waiting and not self.results.out_of_time:
            self.results.out_of_time = not self.clock.allows(list(waiting.values()), then)
        jobs = [job for _, job in planned if not (self.results.out_of_time and job.number in waiting)]
        outcomes = dict(zip((job.number for job in jobs), self.run_jobs(run, jobs), strict=True))
        for task, job in planned:
            if job.number in outcomes and outcomes[job.number].status in DONE:
                self.clock.note(task, outcomes[job.number].run_id)
        self.clock.save()
        return [outcomes.get(job.number) for _, job in planned]

    def _available(self, starts: Sequence[str]) -> tuple[str, ...]:
        """Return the starts without timm's weights if they can't be loaded.

        Raises:
            UserError: if no start is left.
        """
        from cvexp.models.backbone import BackboneError, create_backbone

        if "timm" not in starts:
            return tuple(starts)
        backbone = self.scored_config.backbone
        try:
            create_backbone(backbone.name, pretrained=True, **backbone.args)
            return tuple(starts)
        except BackboneError as error:
            if set(starts) == {"timm"}:
                raise UserError(f"task.starts: got [timm], but {error}; give others, such as [random,dino]") from error
            print_line(f"timm is left out of the starts: {error}", style="bold yellow")
            self.left_out.append("timm, whose weights could not be loaded")
            return tuple(start for start in starts if start != "timm")


def _announce(jobs: StudyJobs, lengths: Mapping[str, Length]) -> None:
    from cvexp.report.sections.material import count

    plan = jobs.plan
    numbers = (len(plan.methods), len(plan.starts), len(plan.fractions), len(plan.seeds))
    crossed = ", ".join(map(count, numbers, ("method", "start", "label fraction", "seed")))
    print_line(f"study: {count(plan.num_cells, 'run')} on labels ({crossed})", style="bold")
    if jobs.pretrained:
        print_line(f"and {count(len(jobs.pretrained) * len(plan.seeds), 'pretraining run')}")
    if lengths:
        print_line("steps of a run: " + ", ".join(f"{task} {length.steps}" for task, length in lengths.items()))
