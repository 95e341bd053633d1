"""Output in the terminal."""

from __future__ import annotations

from rich.console import Console

from cvexp import processes
from cvexp.redaction import hide_secrets

# Markup and emoji codes are off because a class may be called [red] or :cat:. Only the first process prints.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False, quiet=processes.rank() > 0)


def print_line(text: str, style: str | None = None) -> None:
    """Print a line, with secrets hidden."""
    console.print(hide_secrets(text), style=style)
