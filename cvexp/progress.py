"""Progress of steps that may take long: bars on a terminal, and elsewhere a line whenever nothing else was printed.

Only the first of several processes that train together shows its progress.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from cvexp.console import console, print_line
from cvexp.redaction import for_terminal

Item = TypeVar("Item")

BAR_WIDTH = 30  # characters
REFRESHES = 5  # of the bars, per second


class Step:
    """Something that may take long.

    Args:
        title: What it is, in words.
        total: How many parts it has; None if that is unknown.
        done: How many of them are done at the start.
        unit: What the parts are, such as ``"images"``.

    Attributes:
        status: Further words, such as the loss.
    """

    def __init__(self, title: str, total: int | None = None, done: int = 0, unit: str = "") -> None:
        self.title, self.total, self.done, self.unit = title, total, done, unit
        self.status = ""
        self._first_done = done
        self._started = time.monotonic()
        self._end: float | None = None

    def advance(self, num_parts: int = 1) -> None:
        """Note that further parts are done."""
        self.done += num_parts

    def expect(self, seconds: float) -> None:
        """Say how long the rest takes, where the number of parts does not tell."""
        self._end = time.monotonic() + seconds

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.monotonic() - self._started

    @property
    def seconds_left(self) -> float | None:
        """How long it will probably take; None if that is unknown, or it takes longer than expected."""
        if self._end is not None:
            left = self._end - time.monotonic()
            return left if left > 0 else None
        newly_done = self.done - self._first_done
        if self.total is None or newly_done <= 0:
            return None
        return self.seconds / newly_done * max(self.total - self.done, 0)

    def describe(self) -> str:
        """Say how far it is, and how long it will take."""
        count = "" if self.total is None else f"{self.done:,}/{self.total:,} {self.unit}".strip()
        left = self.seconds_left
        duration = f"{clock(self.seconds)} so far" if left is None else f"{clock(left)} left"
        return ", ".join(words for words in (count, self.status, duration) if words)


def clock(seconds: float) -> str:
    """Format a duration as hours, minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


class _Display:
    """Shows the steps in progress.

    Attributes:
        steps: The steps; each one is a part of the one before it.
        silence: After how many silent seconds a line is printed; None shows nothing at all, not even bars.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.silence: float | None = 8.0
        self._lock = threading.Lock()
        self._bars: Live | None = None
        self._spinner = Spinner("dots")
        self._ended: threading.Event | None = None

    def add(self, begun: Step) -> None:
        with self._lock:
            self.steps.append(begun)
            self._start()

    def remove(self, begun: Step) -> None:
        """Remove a step, and those within it that an error has left."""
        with self._lock:
            if begun in self.steps:
                del self.steps[self.steps.index(begun) :]
            if not self.steps:
                self._stop()

    def configure(self, silence: float | None) -> None:
        with self._lock:
            self._stop()
            self.silence = silence
            if self.steps:
                self._start()

    def _start(self) -> None:
        if self.silence is None or self._bars is not None or self._ended is not None:
            return
        if console.is_interactive and console.is_terminal:  # the latter changes if jobs run at the same time
            self._bars = Live(get_renderable=self._draw, console=console, transient=True, refresh_per_second=REFRESHES)
            self._bars.start()
        else:
            self._ended = threading.Event()
            threading.Thread(
                target=self._print_lines, args=(self._ended, self.silence), name="progress", daemon=True
            ).start()

    def _stop(self) -> None:
        if self._bars is not None:
            self._bars.stop()
        if self._ended is not None:
            self._ended.set()
        self._bars = self._ended = None

    def _draw(self) -> Table:
        """Draw a row for each step with a known number of parts, and for the innermost one."""
        rows = Table.grid(padding=(0, 1))
        steps = self.steps[:]
        for step in steps:
            if step.total is None and step is not steps[-1]:
                continue
            is_known = step.total is not None
            bar = ProgressBar(step.total, step.done, width=BAR_WIDTH) if is_known else self._spinner
            words = [
                Text(for_terminal(text), overflow="ellipsis", no_wrap=True) for text in (step.title, step.describe())
            ]
            rows.add_row(words[0], bar, words[1])
        return rows

    def _print_lines(self, ended: threading.Event, silence: float) -> None:
        began = time.monotonic()
        while True:
            silent = time.monotonic() - max(console.printed, began)
            if ended.wait(max(silence - silent, 0.0)):
                return
            steps = self.steps[:]
            if steps and time.monotonic() - max(console.printed, began) >= silence:
                print_line(f"{steps[-1].title}: {steps[-1].describe()}")
                began = time.monotonic()


_display = _Display()


def configure(silence: float | None) -> None:
    """Choose how steps are shown.

    Args:
        silence: After how many silent seconds a line is printed where there is no terminal; None shows no lines and no
            bars.
    """
    if silence != _display.silence:
        _display.configure(silence)


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Show nothing during the block, because other processes show their progress in the same place."""
    silence = _display.silence
    configure(None)
    try:
        yield
    finally:
        configure(silence)


def begin(title: str, total: int | None = None, done: int = 0, unit: str = "") -> Step:
    """Begin a step, and show it until :func:`end`. The arguments are those of :class:`Step`."""
    begun = Step(title, total, done, unit)
    if not console.quiet:
        _display.add(begun)
    return begun


def end(begun: Step) -> None:
    """End a step, if it has not ended."""
    _display.remove(begun)


@contextlib.contextmanager
def step(title: str, total: int | None = None, unit: str = "") -> Iterator[Step]:
    """Show a step during the block. The arguments are those of :class:`Step`."""
    begun = begin(title, total, unit=unit)
    try:
        yield begun
    finally:
        end(begun)


def track(items: Iterable[Item], title: str, total: int | None = None, unit: str = "") -> Iterator[Item]:
    """Yield items, and show how many of them are done.

    Args:
        items: The items.
        title: What is done with them.
        total: Their number; None for the length of `items`.
        unit: What they are.
    """
    with step(title, len(items) if total is None else total, unit) as begun:  # type: ignore[arg-type]
        for item in items:
            yield item
            begun.advance()
