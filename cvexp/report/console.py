"""Output in the terminal."""

from __future__ import annotations

import os

from rich.console import Console

from cvexp import processes
from cvexp.redaction import for_terminal

# Markup and emoji codes are off because a class may be called [red] or :cat:. Only the first process prints.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False, quiet=processes.rank() > 0)


def print_line(text: str, style: str | None = None) -> None:
    """Print a line, without secrets and control characters.

    If several jobs print at once, their lines start with their numbers.
    """
    is_one_of_many = os.environ.get("TTY_COMPATIBLE") == "0" and os.environ.get("CVEXP_JOB")
    prefix = f"job {os.environ['CVEXP_JOB']}: " if is_one_of_many else ""
    console.print(for_terminal(prefix + text), style=style)
