"""What people see in the terminal."""

from __future__ import annotations

from rich.console import Console

from cvexp import processes
from cvexp.redaction import hide_secrets

# A class may be called [red] or :cat:, so neither means anything. Of several processes, the first one prints.
console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False, quiet=processes.rank() > 0)


def print_line(text: str, style: str | None = None) -> None:
    """Print a line without secrets."""
    console.print(hide_secrets(text), style=style)
