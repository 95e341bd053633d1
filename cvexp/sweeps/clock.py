"""The time that a study takes, also over several starts of it."""

from __future__ import annotations

import time
from statistics import median

from cvexp.tracking.sweep import SweepRun

TAG = "study.seconds"


class Clock:
    """Adds up the time of a study, and knows how long its runs take.

    Args:
        run: The study's run, which remembers the time of earlier starts.
        hours: The budget; None for no limit.
    """

    def __init__(self, run: SweepRun, hours: float | None) -> None:
        self.run = run
        self.budget = None if hours is None else 3600 * hours
        self.before = float(run.store.run(run.id, "study").data.tags.get(TAG, 0))
        self.started = time.monotonic()
        self.durations: dict[str, list[float]] = {}  # of finished runs, by task

    @property
    def seconds(self) -> float:
        """The time so far."""
        return self.before + time.monotonic() - self.started

    def save(self) -> None:
        """Remember the time so far, in case the study is interrupted."""
        self.run.store.client.set_tag(self.run.id, TAG, f"{self.seconds:.1f}")

    def note(self, task: str, run_id: str) -> None:
        """Note how long a finished run took."""
        info = self.run.store.client.get_run(run_id).info
        self.durations.setdefault(task, []).append((info.end_time - info.start_time) / 1000)

    def allows(self, tasks: list[str], at_once: int) -> bool:
        """Return whether further runs of these tasks probably end in time."""
        if self.budget is None:
            return True
        known = [median(self.durations[task]) for task in tasks if task in self.durations]
        return self.seconds + sum(known) / min(at_once, len(tasks)) <= self.budget
