"""Work on many files at once, with a bar on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from typing import TypeVar

from rich import progress
from rich.console import Console

Item = TypeVar("Item")
Result = TypeVar("Result")

console = Console(stderr=True)


def bar() -> progress.Progress:
    """A bar that goes when its work is done, and isn't there where nobody would see it."""
    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.TextColumn("{task.fields[status]}"),
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def in_parallel(
    executor: Executor, work: Callable[[Item], Result], items: Sequence[Item], title: str
) -> Iterator[Result]:
    """The results for all items, in their order; what is not yet begun is dropped when the caller stops."""
    with bar() as shown:
        row = shown.add_task(title, total=len(items), status="")
        try:
            for done, result in enumerate(executor.map(work, items), 1):
                yield result
                shown.update(row, completed=done, status=f"{done}/{len(items)}")
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
