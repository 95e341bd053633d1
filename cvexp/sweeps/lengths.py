"""How long the runs of a study train."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from cvexp import data
from cvexp.config import RunConfig
from cvexp.errors import UserError
from cvexp.sweeps.outcome import DONE, Job, Outcome
from cvexp.sweeps.study_jobs import StudyJobs
from cvexp.tasks.study import Config
from cvexp.tracking.sweep import SweepRun
from cvexp.training.pretraining import PretrainingConfig

FILE = "study/lengths.json"

# Shares of the budget after the speeds are measured. The rest is for runs that take longer than expected.
PRETRAINING_SHARE = 0.3
LABELS_SHARE = 0.5

SECONDS_AROUND = 20.0  # that a run takes besides training and validation
SECONDS_TO_MEASURE = 90.0  # the speed of a task

FEWEST_STEPS = 50  # with less, it is better to have fewer runs


class Length(NamedTuple):
    """The length of a run.

    Attributes:
        steps: Number of optimizer steps.
        validations: Number of validations.
    """

    steps: int
    validations: int

    def overrides(self) -> list[str]:
        per_epoch = math.ceil(self.steps / self.validations)
        return [
            f"trainer.max_steps={self.steps}",
            f"trainer.steps_per_epoch={per_epoch}",
            f"trainer.max_epochs={math.ceil(self.steps / per_epoch)}",
        ]


class Measured(NamedTuple):
    """The speed of a task, and what the time of its runs depends on.

    Attributes:
        images_per_second: Speed of the training.
        batch_size: Images per optimizer step.
        num_validated: Images of a validation, each of which takes about a third of the time of training on it.
    """

    images_per_second: float
    batch_size: int
    num_validated: int

    @property
    def step(self) -> float:
        """The time of an optimizer step in seconds."""
        return self.batch_size / self.images_per_second

    def rest(self, validations: int) -> float:
        """Return the time of a run without its optimizer steps, in seconds."""
        return SECONDS_AROUND + (validations + 1) * self.num_validated / 3 / self.images_per_second


def steps_in(seconds: float, measured: Sequence[Measured], validations: int) -> int:
    """Return how many optimizer steps the runs of several tasks may have if all of them take so long in total."""
    rest = sum(task.rest(validations) for task in measured)
    return max(int((seconds - rest) / sum(task.step for task in measured)), FEWEST_STEPS)


def choose_lengths(
    run: SweepRun,
    study: Config,
    configs: Mapping[str, RunConfig],
    jobs: StudyJobs,
    run_jobs: Callable[[SweepRun, Sequence[Job]], list[Outcome]],
) -> dict[str, Length]:
    """Choose how long the runs of each task are, and record this. A study that is started again keeps the choice.

    Args:
        run: The study's run.
        study: The configuration of the study.
        configs: The configuration of each task's runs.
        jobs: Makes the jobs that measure speeds.
        run_jobs: Runs them.

    Returns:
        Lengths by task. Tasks that keep those of their configuration are left out.

    Raises:
        UserError: if a speed can't be measured.
    """
    recorded = run.store.read_if_there(run.id, FILE, _read)
    if recorded is not None:
        return recorded
    pretrainings = [task for task in configs if configs[task].role == "pretraining"]
    methods = [task for task in configs if configs[task].role == "segmentation"]
    given = {
        **dict.fromkeys(pretrainings, study.pretraining_steps),
        **dict.fromkeys(methods, study.steps),
    }
    lengths = {task: Length(steps, study.validations) for task, steps in given.items() if steps is not None}
    is_open = study.hours is not None and len(lengths) < len(given)
    measured: dict[str, Measured] = {}
    if is_open and study.hours is not None and 3600 * study.hours < SECONDS_TO_MEASURE * len(given):
        raise UserError(
            f"task.hours: {study.hours:g} hours are less than it takes to measure the speed of {', '.join(given)}; "
            "give more, or set the lengths with task.steps= and task.pretraining_steps="
        )
    if is_open or study.equal == "time":
        measured = _measure(run, configs, [*pretrainings, *methods] if is_open else methods, jobs, run_jobs)
    if study.hours is not None and is_open:
        lengths = {**fit(study.hours, study, measured, pretrainings, methods), **lengths}
    for method in methods:
        lengths.setdefault(method, _own_length(configs[method]))
    if study.equal == "time":
        lengths |= equal_time({method: lengths[method] for method in methods}, measured)
    run.log_json({task: length._asdict() for task, length in lengths.items()}, FILE)
    return lengths


def _read(path: Path) -> dict[str, Length]:
    saved = json.loads(path.read_text())
    return {str(task): Length(int(values["steps"]), int(values["validations"])) for task, values in saved.items()}


def fit(
    hours: float, study: Config, measured: Mapping[str, Measured], pretrainings: Sequence[str], methods: Sequence[str]
) -> dict[str, Length]:
    """Return lengths with which the study ends in time: equal time for pretraining, equal steps for runs on labels.

    The pretraining runs of a seed are given to the launcher together, so part of it may be idle meanwhile.
    """
    budget = (3600 * hours - SECONDS_TO_MEASURE * len(measured)) / len(study.seeds)  # seconds
    lengths = {}
    for task in pretrainings:
        own = PRETRAINING_SHARE * budget / math.ceil(len(pretrainings) / study.at_once)
        lengths[task] = Length(steps_in(own, [measured[task]], study.validations), study.validations)
    share = LABELS_SHARE if pretrainings else LABELS_SHARE + PRETRAINING_SHARE
    in_turn = math.ceil(len(methods) * len(study.starts) * len(study.fractions) / study.at_once)
    if methods:
        total = share * budget / in_turn * len(methods)  # of a run of each method
        steps = steps_in(total, [measured[method] for method in methods], study.validations)
        lengths |= dict.fromkeys(methods, Length(steps, study.validations))
    return lengths


def equal_time(lengths: Mapping[str, Length], measured: Mapping[str, Measured]) -> dict[str, Length]:
    """Change the numbers of steps so that all methods train for the mean of their times."""
    seconds = {task: length.steps * measured[task].step for task, length in lengths.items()}
    mean = sum(seconds.values()) / max(len(seconds), 1)
    return {
        task: length._replace(steps=max(round(length.steps * mean / seconds[task]), 1))
        for task, length in lengths.items()
    }


def _own_length(config: RunConfig) -> Length:
    """Return the length that a segmentation run has on all labeled images."""
    splits = data.load(config.dataset, "segmentation")
    per_epoch = max(len(splits.train.images) // config.loader.batch_size, 1)
    trainer = config.trainer
    steps = min(trainer.max_epochs * per_epoch, trainer.max_steps or 2**31)
    return Length(steps, min(trainer.max_epochs, steps))


def _measure(
    run: SweepRun,
    configs: Mapping[str, RunConfig],
    tasks: Sequence[str],
    jobs: StudyJobs,
    run_jobs: Callable[[SweepRun, Sequence[Job]], list[Outcome]],
) -> dict[str, Measured]:
    """Measure the speeds of tasks on the launcher."""
    measured = {}
    for task in tasks:  # as many at a time as later, because they slow each other down
        outcomes = run_jobs(run, jobs.benchmarks(task))
        for outcome in outcomes:
            if outcome.status not in DONE:
                raise UserError(f"task={task}: its speed could not be measured ({outcome.error or outcome.status})")
        runs = [run.store.run(outcome.run_id, "study") for outcome in outcomes]
        speed = fmean(run.data.metrics["benchmark/images_per_second"] for run in runs)
        measured[task] = Measured(speed, configs[task].loader.batch_size, _num_validated(configs[task]))
    return measured


def _num_validated(config: RunConfig) -> int:
    """Return the number of images of a validation."""
    if config.role == "segmentation":
        return len(data.load(config.dataset, "segmentation").val.images)
    splits = data.load(config.dataset, "pretraining")
    assert isinstance(config.task, PretrainingConfig)
    return 2 * len(splits.val) + min(config.task.knn_bank, len(splits.train))
