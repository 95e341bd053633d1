"""The time that a study takes, also over several starts of it."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from statistics import fmean, median

from cvexp.tracking.description import RESUMED
from cvexp.tracking.sweep import SweepRun

TAG = "study.seconds"


class Clock:
    """Adds up the time of a study, and knows how long its runs take.

    Args:
        run: The study's run, which remembers the time of earlier starts.
        hours: The budget; None for no limit.
        at_once: Number of runs at a time.
    """

    def __init__(self, run: SweepRun, hours: float | None, at_once: int) -> None:
        self.run = run
        self.at_once = at_once
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
        """Note how long a finished run took, unless it was interrupted, because then its time includes the break."""
        run = self.run.store.client.get_run(run_id)
        if RESUMED not in run.data.tags:
            self.durations.setdefault(task, []).append((run.info.end_time - run.info.start_time) / 1000)

    def allows(self, *batches: Sequence[str]) -> bool:
        """Return whether further runs of these tasks probably end in time. Each batch waits for the one before."""
        return self.budget is None or self.seconds + sum(map(self.needed, batches)) <= self.budget

    def needed(self, tasks: Sequence[str]) -> float:
        """Return how many seconds runs of these tasks take. Tasks of which no run has finished are left out."""
        known = [median(self.durations[task]) for task in tasks if task in self.durations]
        return fmean(known) * math.ceil(len(known) / self.at_once) if known else 0.0
