"""The sweeper of `task=study`: crosses starts, methods, label fractions and seeds, and says what pretraining saves.

PyTorch and MLflow are imported only when a study starts, because Hydra's `--help` imports this module.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cvexp.config import flatten
from cvexp.errors import UserError
from cvexp.report.console import print_line
from cvexp.sweeps.outcome import DONE, Job
from cvexp.sweeps.plan import Plan
from cvexp.sweeps.sweeper import Sweeper

if TYPE_CHECKING:
    from cvexp.config import RunConfig
    from cvexp.sweeps.clock import Clock
    from cvexp.sweeps.lengths import Length
    from cvexp.sweeps.results import Results
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
        pretrained: The name and the id of each pretraining run.
    """

    task = "study"
    repeats_jobs = False  # its probes name the weights that they work on

    def __init__(self, skip_finished: bool, params: Mapping[str, Any] | None, **unknown: Any) -> None:
        super().__init__(skip_finished, params)
        self.pretrained: list[tuple[str, str]] = []
        for key in unknown:
            raise UserError(f"hydra.sweeper.{key}: a study has no such key; its own are those of task=study")

    def identity(self) -> str:
        return "study"

    def swept(self, overrides: Sequence[str]) -> list[str]:
        return ["task", "backbone.weights", "dataset.fraction", "seed"]

    def check(self, overrides: Sequence[str]) -> None:
        from cvexp import data
        from cvexp.sweeps.study_jobs import StudyJobs, check_starts, shared_overrides
        from cvexp.tasks.study import PROBE, pretrainings

        study: Config = self.compose(Job(0, tuple(overrides))).task  # type: ignore[assignment]
        common = shared_overrides(overrides)
        self._refuse_ignored_settings(overrides, common)
        check_starts(study.starts)
        methods = tuple(study.methods or self._default_methods(StudyJobs(study, common, Plan((), (), (), ()), [])))
        plan = Plan(methods, tuple(study.starts), tuple(study.fractions), tuple(study.seeds))
        self.jobs = StudyJobs(study, common, plan, [start for start in plan.starts if start in pretrainings()])
        self.configs = {task: self.compose(Job(0, self.jobs.overrides(task))) for task in self.jobs.tasks}
        sizes = [self.configs[start].task.eval_size for start in self.jobs.pretrained]  # type: ignore[attr-defined]
        self.jobs.of_probes = [f"task.eval_size={size}" for size in sizes[:1]]
        self.scored_config = self.configs[methods[0]]
        self.splits = data.load(self.scored_config.dataset, "pretraining" if methods == (PROBE,) else "segmentation")
        self.jobs.plan = plan._replace(starts=_available(plan.starts, self.scored_config))

    def run_all(self, run: SweepRun, overrides: Sequence[str]) -> None:
        from cvexp.sweeps.clock import Clock
        from cvexp.sweeps.lengths import choose_lengths
        from cvexp.sweeps.results import Results

        jobs, study = self.jobs, self.jobs.study
        results = Results(run, study, self.scored_config, self.splits)
        clock = Clock(run, study.hours, study.at_once)
        try:
            lengths = choose_lengths(run, study, self.configs, jobs, self.run_jobs)
            jobs.lengths = {task: length.overrides() for task, length in lengths.items()}
            _announce(jobs, lengths)
            for seed in jobs.plan.seeds:
                if not self._run_round(run, results, clock, seed):
                    break
                results.record(self.pretrained)
        finally:
            clock.save()
        results.record(self.pretrained)
        self.results = results

    def show_results(self) -> None:
        self.results.show()

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

    def _run_round(self, run: SweepRun, results: Results, clock: Clock, seed: int) -> bool:
        """Run all cells of a seed, and return whether there was time for all of them."""
        jobs = self.jobs
        settled = results.settled(jobs.plan) if jobs.study.stop else set()
        rest = jobs.plan.round(seed, settled, results.doubts())
        needed = {cell.start for group in rest for cell in group}
        sources = self._pretrain(run, [start for start in jobs.pretrained if start in needed], seed, clock)
        if sources is None:
            results.out_of_time = True
            return False
        while rest:
            batch = rest.pop(0)
            while rest and len(batch) % jobs.study.at_once > 0:  # or else some of the launcher would be idle
                batch += rest.pop(0)
            cells = [cell for cell in batch if cell.start not in jobs.pretrained or cell.start in sources]
            if not clock.allows([cell.method for cell in cells]):
                results.out_of_time = True
                return False
            ran = self.run_jobs(run, [jobs.on_labels(cell, sources.get(cell.start)) for cell in cells])
            for cell, outcome in zip(cells, ran, strict=True):
                if outcome.status in DONE:
                    results.add(cell, outcome.run_id)
                    clock.note(cell.method, outcome.run_id)
            clock.save()
            if any(outcome.status != "finished before" for outcome in ran):
                later = jobs.plan.seeds[jobs.plan.seeds.index(seed) + 1 :]
                minutes = clock.needed([*(cell.method for group in rest for cell in group), *jobs.of_seeds(later)]) / 60
                done = f"{len(results.runs)} of {_counted(jobs.plan.num_cells, 'run')} on labels done"
                print_line(f"study: {done}, at most about {minutes:.0f} min left", style="bold")
        return True

    def _pretrain(self, run: SweepRun, starts: Sequence[str], seed: int, clock: Clock) -> dict[str, str] | None:
        """Pretrain with a seed, and return the run of each start; None if there is no time for it."""
        if not clock.allows(list(starts)):
            return None
        ran = self.run_jobs(run, [self.jobs.pretraining(start, seed) for start in starts]) if starts else []
        sources = {}
        for start, outcome in zip(starts, ran, strict=True):
            if outcome.status in DONE:
                sources[start] = outcome.run_id
                self.pretrained.append((f"{start}, seed {seed}", outcome.run_id))
                clock.note(start, outcome.run_id)
        clock.save()
        return sources


def _announce(jobs: StudyJobs, lengths: Mapping[str, Length]) -> None:
    plan = jobs.plan
    crossed = ", ".join(
        _counted(len(values), word)
        for values, word in (
            (plan.methods, "method"),
            (plan.starts, "start"),
            (plan.fractions, "label fraction"),
            (plan.seeds, "seed"),
        )
    )
    print_line(f"study: {_counted(plan.num_cells, 'run')} on labels ({crossed})", style="bold")
    if jobs.pretrained:
        print_line(f"and {_counted(len(jobs.pretrained) * len(plan.seeds), 'pretraining run')}")
    if lengths:
        print_line("steps of a run: " + ", ".join(f"{task} {length.steps}" for task, length in lengths.items()))


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _available(starts: Sequence[str], config: RunConfig) -> tuple[str, ...]:
    """Return the starts without timm's weights if they can't be loaded.

    Raises:
        UserError: if no start is left.
    """
    from cvexp.models.backbone import BackboneError, create_backbone

    if "timm" not in starts:
        return tuple(starts)
    try:
        create_backbone(config.backbone.name, pretrained=True, **config.backbone.args)
        return tuple(starts)
    except BackboneError as error:
        if set(starts) == {"timm"}:
            raise UserError(f"task.starts: got [timm], but {error}; give others, such as [random,dino]") from error
        print_line(f"timm is left out of the starts: {error}", style="bold yellow")
        return tuple(start for start in starts if start != "timm")
