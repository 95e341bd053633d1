"""Output in the terminal."""

from __future__ import annotations

import logging
import os
import time
from typing import Any

from rich.console import Console

from cvexp import processes
from cvexp.redaction import for_terminal


class _Console(Console):
    """A console that knows when it last printed something.

    Attributes:
        printed: The time of that, as `time.monotonic` tells it.
    """

    printed = 0.0

    def print(self, *objects: Any, **options: Any) -> None:
        self.printed = time.monotonic()
        super().print(*objects, **options)


# Markup and emoji codes are off because a class may be called [red] or :cat:. Only the first process prints.
console = _Console(highlight=False, soft_wrap=True, markup=False, emoji=False, quiet=processes.rank() > 0)


def print_line(text: str, style: str | None = None) -> None:
    """Print a line, without secrets and control characters.

    If several jobs print at once, their lines start with their numbers.
    """
    is_one_of_many = os.environ.get("TTY_COMPATIBLE") == "0" and os.environ.get("CVEXP_JOB")
    prefix = f"job {os.environ['CVEXP_JOB']}: " if is_one_of_many else ""
    console.print(for_terminal(prefix + text), style=style)


class Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Prints log records in the terminal, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        if console.quiet:  # the other processes log their warnings
            super().emit(record)
            return
        try:
            console.print(self.format(record))
        except Exception:  # as in `StreamHandler.emit`: a record that can't be printed does not end the run
            self.handleError(record)
