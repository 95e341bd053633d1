"""Parallel work on many files."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, TypeVar

from cvexp import progress

Item = TypeVar("Item")
Result = TypeVar("Result")


class Background:
    """Runs functions in a thread, one after another. Leaving the block waits for them, and raises their first error.

    Args:
        max_waiting: Number of calls that may wait, which bounds the memory; further ones block.
    """

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self.executor = ThreadPoolExecutor(1)
        self.calls: deque[Future[Any]] = deque()

    def run(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function later. An error of an earlier call is raised here."""
        self.calls.append(self.executor.submit(function, *arguments))
        while len(self.calls) > self.max_waiting or (self.calls and self.calls[0].done()):
            self.calls.popleft().result()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *_: object) -> None:
        with self.executor:
            for call in self.calls:
                call.result()


def in_parallel(
    executor: Executor, function: Callable[[Item], Result], items: Sequence[Item], title: str
) -> Iterator[Result]:
    """Yield the results of a function for all items, in order. If the caller stops early, drop the remaining work.

    Args:
        executor: Runs the function. It is shut down at the end.
        function: Processes one item.
        items: The items to process.
        title: What is shown about the progress.
    """
    try:
        yield from progress.track(executor.map(function, items), title, len(items))
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
