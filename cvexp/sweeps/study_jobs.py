"""The jobs of a study: their overrides and their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from cvexp.arguments import quoted
from cvexp.config import DatasetConfig
from cvexp.data.index import Splits
from cvexp.data.labeled import labeled_part
from cvexp.errors import UserError, nearest
from cvexp.metrics.comparison import RANDOM
from cvexp.redaction import hide_secrets
from cvexp.sweeps.outcome import Job
from cvexp.sweeps.plan import Cell, Plan
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


def check_overrides(study: Config) -> None:
    """Raise a UserError for keys in `task.overrides` that the study sets itself, or that mean nothing in its runs."""
    for task, words in (study.overrides or {}).items():
        for override in OverridesParser.create().parse_overrides(list(words)):
            key = override.key_or_group
            if key in SET_BY_STUDY and key != "trainer.max_epochs":
                raise UserError(f"task.overrides.{task}: a study sets {key} itself; set {SET_BY_STUDY[key]}")
            if key in MEANINGLESS:
                raise UserError(f"task.overrides.{task}: a study does not use {key}; leave it out")


def check_starts(starts: Sequence[str]) -> None:
    """Raise a UserError for a start that is neither a known word, nor weights that have an address, nor a file."""
    words = [RANDOM, "timm", *pretrainings()]
    for start in starts:
        if start not in words and ":" not in start and not Path(start).is_file():
            raise UserError(f"task.starts: there is no file or start {start!r}; {nearest(start, words)}")


def images_of(fractions: Sequence[float], splits: Splits, dataset: DatasetConfig) -> list[int]:
    """Return the number of training images of each label fraction.

    Raises:
        UserError: if a fraction is too small, so that the images would not be the share that it says.
    """
    numbers: dict[int, float] = {}
    for fraction in sorted(fractions):
        number = len(labeled_part(splits.train, replace(dataset, fraction=fraction)).images)
        wanted = round(fraction * len(splits.train.images))
        if number > wanted:
            raise UserError(
                f"task.fractions: {fraction:g} of {len(splits.train.images)} training images are {wanted}, but each "
                f"class keeps at least one, which makes {number}; choose larger ones"
            )
        if number in numbers:
            raise UserError(
                f"task.fractions: {numbers[number]:g} and {fraction:g} are the same {number} images; leave out one"
            )
        numbers[number] = fraction
    return [dict(zip(numbers.values(), numbers, strict=True))[fraction] for fraction in fractions]


class StudyJobs:
    """Makes the jobs of a study.

    Args:
        study: The configuration of the study.
        common: The overrides that all runs share.
        plan: What is crossed.
        pretrained: The starts that the study pretrains itself.
        are_own_last: Whether the overrides of a task replace those that all runs share, and not vice versa.

    Attributes:
        lengths: The overrides that set how long the runs of a task are, by task.
        of_probes: Further overrides of probes, with which all starts get images of the same size.
    """

    def __init__(
        self,
        study: Config,
        common: Sequence[str],
        plan: Plan,
        pretrained: Sequence[str],
        are_own_last: bool = True,
    ) -> None:
        self.study, self.common, self.plan, self.pretrained = study, tuple(common), plan, list(pretrained)
        self.are_own_last = are_own_last
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
        """Return the overrides of all runs of a task. Of several values of a key, the last one counts."""
        given = self.study.overrides or {}
        own = _with_one_experiment([*given.get(ALL, ()), *given.get(task, ())])
        parts = [*self.common, *own] if self.are_own_last else [*own, *self.common]
        of_probe = ["task.controls=[]", *self.of_probes] if task == PROBE else []
        return (f"task={task}", *of_probe, *parts, *self.lengths.get(task, ()))

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

    def benchmarks(self, task: str) -> list[Job]:
        """Return the jobs that measure the speed of a task, as many as run at a time."""
        first = len(self.pretrained) * len(self.plan.seeds) + self.plan.num_cells
        first += self.tasks.index(task) * self.study.at_once
        return [
            Job(first + i, (*self.overrides(task), "benchmark=true", f"seed={i}")) for i in range(self.study.at_once)
        ]


def _with_one_experiment(words: Sequence[str]) -> list[str]:
    """Join the experiments of several overrides. What those for all runs set replaces what those of a task set."""
    prefix = "+experiment="
    names = [word.removeprefix(prefix).strip("[]") for word in words if word.startswith(prefix)]
    if len(names) < 2:
        return list(words)
    return [f"{prefix}[{','.join(reversed(names))}]", *(word for word in words if not word.startswith(prefix))]


def _name(*parts: str) -> str:
    """Return the override that names a run."""
    return f"name={quoted(hide_secrets('-'.join(parts))[:250])}"
