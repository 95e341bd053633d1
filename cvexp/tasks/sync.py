"""`task=sync`: deliver to MLflow's store what waits in the tracking folder, because the store was away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cvexp import progress
from cvexp.config import RunConfig, TaskConfig
from cvexp.console import print_line
from cvexp.errors import UserError
from cvexp.tracking.store import Store
from cvexp.tracking.waiting import deliver_waiting


@dataclass(kw_only=True)
class Config(TaskConfig):
    is_recorded: ClassVar[bool] = False


def main(config: RunConfig, store: Store) -> None:
    """Deliver what waits, and print what became of it.

    Raises:
        UserError: naming the runs of which something still waits.
    """
    problems = []
    with progress.step("delivering"):
        for run_id, num_entries, problem in deliver_waiting(store, config.tracking.folder, tries_refused=True):
            print_line(f"run {run_id}: {num_entries} records delivered")
            if problem:
                problems.append(f"run {run_id}: {problem}")
    if problems:
        raise UserError("tracking.folder: something still waits, of " + "; of ".join(problems))
    print_line(f"nothing waits in {config.tracking.folder} any more: {store.address} has it all")
