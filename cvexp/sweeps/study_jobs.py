"""The jobs of a study: their overrides and their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from cvexp.errors import UserError, nearest
from cvexp.metrics.comparison import RANDOM
from cvexp.redaction import hide_secrets
from cvexp.sweeps.outcome import Job
from cvexp.sweeps.plan import Cell, Plan
from cvexp.sweeps.sweeper import quoted
from cvexp.tasks.study import ALL, PROBE, Config, pretrainings

SET_BY_STUDY = {  # and the keys by which a study sets them
    "seed": "task.seeds",
    "backbone.weights": "task.starts",
    "dataset.fraction": "task.fractions",
    "dataset.fraction_seed": "task.seeds",
    "trainer.max_steps": "task.steps",
    "trainer.steps_per_epoch": "task.steps",
    "trainer.max_epochs": "task.steps, or of one task with task.overrides",
}
MEANINGLESS = ("name", "resume", "run", "runs", "benchmark")


def shared_overrides(overrides: Sequence[str]) -> tuple[str, ...]:
    """Return the overrides of a study that go to all of its runs.

    Raises:
        UserError: for keys that the study sets itself, and for several values.
    """
    shared = []
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.key_or_group
        if override.is_sweep_override():
            raise UserError(f"{key}: a study takes one value; it crosses only starts, methods, fractions and seeds")
        if key in SET_BY_STUDY:
            raise UserError(f"{key}: a study sets it for each of its runs; set {SET_BY_STUDY[key]}")
        if key in MEANINGLESS:
            raise UserError(f"{key}: a study does not use it; leave it out")
        if key not in ("task", "experiment") and not key.startswith("task."):
            shared.append(str(override.input_line))
    return tuple(shared)


def check_starts(starts: Sequence[str]) -> None:
    """Raise a UserError for a start that is neither a known word, nor weights that have an address, nor a file."""
    words = [RANDOM, "timm", *pretrainings()]
    for start in starts:
        if start not in words and ":" not in start and not Path(start).is_file():
            raise UserError(f"task.starts: there is no file or start {start!r}; {nearest(start, words)}")


class StudyJobs:
    """Makes the jobs of a study.

    Args:
        study: The configuration of the study.
        common: The overrides that all runs share.
        plan: What is crossed.
        pretrained: The starts that the study pretrains itself.

    Attributes:
        lengths: The overrides that set how long the runs of a task are, by task.
        of_probes: Further overrides of probes, with which all starts get images of the same size.
    """

    def __init__(self, study: Config, common: Sequence[str], plan: Plan, pretrained: Sequence[str]) -> None:
        self.study, self.common, self.plan, self.pretrained = study, tuple(common), plan, list(pretrained)
        self.lengths: dict[str, list[str]] = {}
        self.of_probes: list[str] = []

    @property
    def tasks(self) -> list[str]:
        """The tasks of the jobs."""
        return [*self.pretrained, *self.plan.methods]

    def of_seeds(self, seeds: Sequence[int]) -> list[str]:
        """Return the task of each run of some seeds."""
        cells = [cell.method for seed in seeds for group in self.plan.round(seed, (), {}) for cell in group]
        return [*self.pretrained * len(seeds), *cells]

    def overrides(self, task: str) -> tuple[str, ...]:
        """Return the overrides of all runs of a task."""
        given = self.study.overrides or {}
        own: tuple[str, ...] = (*given.get(ALL, ()), *given.get(task, ()))
        if task == PROBE:
            own = ("task.controls=[]", *self.of_probes, *own)
        return (*own, f"task={task}", *self.common, *self.lengths.get(task, ()))

    def pretraining(self, start: str, seed: int) -> Job:
        number = self.pretrained.index(start) * len(self.plan.seeds) + self.plan.seeds.index(seed)
        return Job(number, (*self.overrides(start), f"seed={seed}", _name(start, f"seed{seed}")))

    def on_labels(self, cell: Cell, source: str | None = None) -> Job:
        """Return the job of a cell.

        Args:
            cell: The cell.
            source: The run that pretrained its start, if the study did.
        """
        weights = f"runs:/{source}/checkpoints/best.ckpt" if source else cell.start
        own = [
            f"backbone.weights={'null' if cell.start == RANDOM else quoted(weights)}",
            f"dataset.fraction={cell.fraction}",
            f"seed={cell.seed}",
            _name(cell.method, cell.start, f"{100 * cell.fraction:g}%", f"seed{cell.seed}"),
        ]
        number = len(self.pretrained) * len(self.plan.seeds) + self.plan.number(cell)
        return Job(number, (*self.overrides(cell.method), *own))

    def benchmark(self, task: str) -> Job:
        """Return the job that measures the speed of a task."""
        number = len(self.pretrained) * len(self.plan.seeds) + self.plan.num_cells + self.tasks.index(task)
        return Job(number, (*self.overrides(task), "benchmark=true"))


def _name(*parts: str) -> str:
    """Return the override that names a run."""
    return f"name={quoted(hide_secrets('-'.join(parts))[:250])}"
