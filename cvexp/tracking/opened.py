"""The runs that this process opened, in order: that of a sweep comes before those of its jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cvexp.tracking.run import ReadOnlyRun
    from cvexp.tracking.sweep import SweepRun

opened: list[ReadOnlyRun | SweepRun] = []
