"""`task=study`: does pretraining pay on these images, and how many labels does it save?

A study is a sweep with its own sweeper, `cvexp.sweeps.study.Study`, which the command line selects. This module has its
configuration.
"""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from cvexp import plugins
from cvexp.config import RunConfig, TaskConfig, require, require_one_of
from cvexp.errors import UserError
from cvexp.tracking.run import ReadOnlyRun

PROBE = "probe"  # the method where there are no masks

ALL = "all"  # in task.overrides

LENGTHS = ("steps", "time")


@dataclass(kw_only=True)
class Config(TaskConfig):
    starts: list[str] = MISSING
    methods: list[str] | None = MISSING
    fractions: list[float] = MISSING
    seeds: list[int] = MISSING
    hours: float | None = MISSING
    equal: str = MISSING
    steps: int | None = MISSING
    pretraining_steps: int | None = MISSING
    validations: int = MISSING
    at_once: int = MISSING
    stop: bool = MISSING
    overrides: dict[str, list[str]] | None = MISSING
    samples: int = MISSING
    confidence: float = MISSING

    def __post_init__(self) -> None:
        for key in ("starts", "fractions", "seeds"):
            values = getattr(self, key)
            require(len(values) > 0, f"task.{key}", values, "a list of at least one")
            require(len(set(values)) == len(values), f"task.{key}", values, "free of repetitions")
        fits = all(0 < fraction <= 1 for fraction in self.fractions)
        require(fits, "task.fractions", self.fractions, "shares of the labeled images, above 0 and at most 1")
        require(min(self.seeds) >= 0, "task.seeds", self.seeds, "whole numbers from 0")
        for method in self.methods or ():
            require_one_of("task.methods", method, [*methods(), PROBE])
        is_mixed = self.methods is not None and PROBE in self.methods and len(self.methods) > 1
        require(not is_mixed, "task.methods", self.methods, "either probe or segmentation methods")
        for task in self.overrides or ():
            require_one_of("task.overrides", task, [*pretrainings(), *methods(), PROBE, ALL])
        require(self.hours is None or self.hours > 0, "task.hours", self.hours, "positive, or null")
        require_one_of("task.equal", self.equal, LENGTHS)
        for key in ("steps", "pretraining_steps"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"task.{key}", value, "positive, or null")
        for key in ("validations", "at_once"):
            require(getattr(self, key) >= 1, f"task.{key}", getattr(self, key), "at least 1")
        require(self.samples >= 100, "task.samples", self.samples, "at least 100")
        require(0.5 <= self.confidence < 1, "task.confidence", self.confidence, "from 0.5 to below 1")


def pretrainings() -> list[str]:
    """List the names of the pretraining methods."""
    return [name for name in plugins.known("task") if plugins.load("task", name).Config.role == "pretraining"]


def methods() -> list[str]:
    """List the names of the segmentation methods."""
    return [name for name in plugins.known("task") if plugins.load("task", name).Config.role == "segmentation"]


def main(config: RunConfig, run: ReadOnlyRun) -> None:
    """Refuse to run a study as a single run.

    Raises:
        UserError: always.
    """
    raise UserError("task: a study is a sweep of its own and can't be a job of another one; start it with task=study")
