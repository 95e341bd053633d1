"""The jobs of a sweep, and what became of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

DONE = ("finished", "finished before")  # statuses of jobs with a result


class Job(NamedTuple):
    """A job of a sweep.

    Attributes:
        number: The number of the job in its sweep, from 0.
        overrides: Its overrides.
    """

    number: int
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        number: The number of the job in its sweep, from 0.
        settings: The overrides that distinguish it from the other jobs.
        status: ``"finished"``, ``"finished before"``, ``"pruned"``, ``"failed"``, ``"failed before"``, ``"stopped"``,
            ``"running"`` if another process works on it, ``"lost"`` if its process has disappeared, or ``"not run"``.
        run_id: MLflow's id of its run; empty if there is none.
        metric: The metric that it is compared by (`cvexp.metrics.selection.objective`); empty if there is none.
        value: The metric at the selected epoch.
        error: Why it did not finish.
    """

    number: int
    settings: str
    status: str
    run_id: str = ""
    metric: str = ""
    value: float | None = None
    error: str = ""

    @property
    def is_failure(self) -> bool:
        return self.status in ("failed", "stopped", "running", "lost", "not run")

    def row(self) -> dict[str, Any]:
        """Return all attributes as JSON."""
        return asdict(self)
