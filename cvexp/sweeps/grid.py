"""The sweeper that runs every combination of the swept values, once each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from cvexp.errors import UserError
from cvexp.sweeps.outcome import Job
from cvexp.sweeps.sweeper import Sweeper

if TYPE_CHECKING:
    from cvexp.tracking.sweep import SweepRun


class Grid(Sweeper):
    """Runs every combination.

    Args:
        skip_finished, params: See :class:`Sweeper`.
        max_batch_size: The largest number of jobs given to the launcher at a time; None gives it all.
    """

    def __init__(
        self, skip_finished: bool, params: Mapping[str, Any] | None, max_batch_size: int | None, **unknown: Any
    ) -> None:
        super().__init__(skip_finished, params)
        for key in unknown:
            raise UserError(
                f"hydra.sweeper.{key}: this sweeper tries every combination and has no such key; a search with Optuna "
                "may have it: add hydra/sweeper=optuna, or +search=NAME"
            )
        self.max_batch_size = max_batch_size

    def identity(self) -> str:
        return "grid"

    def run_all(self, run: SweepRun, overrides: Sequence[str]) -> None:
        jobs = [Job(number, combination) for number, combination in enumerate(combinations(overrides))]
        size = self.max_batch_size or len(jobs)
        for first in range(0, len(jobs), size):
            self.run_jobs(run, jobs[first : first + size])


def combinations(overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """List the combinations of swept values, without repetitions, each as overrides.

    Raises:
        HydraException: if an override is not a list of values.
    """
    choices: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element()
        if not override.is_sweep_override():
            choices[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise HydraException(
                f"{key}: an interval has no list of values; give some, or search it with hydra/sweeper=optuna"
            )
    return list(dict.fromkeys(itertools.product(*choices.values())))
