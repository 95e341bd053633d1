"""The first run that this process opened, which is that of the sweep if it runs the jobs of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cvexp.tracking.run import ReadOnlyRun
    from cvexp.tracking.sweep import SweepRun

opened: list[ReadOnlyRun | SweepRun] = []  # empty before, and never more than one


def note_opened(run: ReadOnlyRun | SweepRun) -> None:
    """Note a run, unless another one came before."""
    if not opened:
        opened.append(run)
