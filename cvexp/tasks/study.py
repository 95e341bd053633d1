"""`task=study`: does pretraining pay on these images, and how many labels does it save?

A study is a sweep with its own sweeper, `cvexp.sweeps.study.Study`, which the command line selects. This module has its
configuration.
"""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from cvexp import plugins
from cvexp.config import RunConfig, TaskConfig
from cvexp.errors import UserError
from cvexp.keys import choice, number, require, require_one_of
from cvexp.tracking.run import ReadOnlyRun

PROBE = "probe"  # the method where there are no masks

ALL = "all"  # in task.overrides

LENGTHS = ("steps", "time")


@dataclass(kw_only=True)
class Config(TaskConfig):
    starts: list[str] = MISSING
    methods: list[str] | None = choice(of=lambda owner: [*methods(), PROBE])
    fractions: list[float] = number(above=0, at_most=1)
    seeds: list[int] = number(0)
    hours: float | None = number(above=0)
    equal: str = choice(*LENGTHS)
    steps: int | None = number(1)
    pretraining_steps: int | None = number(1)
    validations: int = number(1)
    at_once: int = number(1)
    stop: bool = MISSING
    overrides: dict[str, list[str]] | None = MISSING
    samples: int = number(100)
    confidence: float = number(0.5, below=1)

    def __post_init__(self) -> None:
        for key in ("starts", "fractions", "seeds"):
            values = getattr(self, key)
            require(len(values) > 0, f"task.{key}", values, "a list of at least one")
            require(len(set(values)) == len(values), f"task.{key}", values, "free of repetitions")
        is_mixed = self.methods is not None and PROBE in self.methods and len(self.methods) > 1
        require(not is_mixed, "task.methods", self.methods, "either probe or segmentation methods")
        for task in self.overrides or ():
            require_one_of("task.overrides", task, [*pretrainings(), *methods(), PROBE, ALL])


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
