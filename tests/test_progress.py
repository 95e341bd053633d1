"""Long steps say what they do, how far they are, and how long they will take; quick ones say nothing."""

from __future__ import annotations

import io
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cvexp import progress
from cvexp.console import Handler, console, print_line

SILENCE = 0.05  # seconds


@pytest.fixture(autouse=True)
def _impatient() -> Iterator[None]:
    progress.configure(SILENCE)
    yield
    progress.configure(8.0)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, which takes a few hundredths of a second on an idle machine."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_what_takes_longer_than_expected_says_how_long_it_has_taken() -> None:
    step = progress.Step("training", 10, unit="steps")
    step.expect(100)
    assert step.describe() == "0/10 steps, 0:01:40 left"
    step.expect(-1)
    assert step.describe() == "0/10 steps, 0:00:00 so far"


class Screen(io.StringIO):
    """What a terminal receives."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    shown = Screen()
    monkeypatch.setattr(console, "_file", shown)
    monkeypatch.setattr(console, "is_interactive", True)
    monkeypatch.setattr(console, "_width", 120)
    monkeypatch.setattr(console, "_height", 40)
    return shown


def test_a_long_step_says_how_far_it_is_and_a_quick_one_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress.track(range(3), "quick"):
        pass
    printed = ""
    with progress.step("reading <&> ü", 40, unit="images") as step:
        step.done = 10
        step.status = "loss 1.0"
        while printed.count("\n") < 2:
            printed += capsys.readouterr().out
    lines = printed.splitlines()
    pattern = r"reading <&> ü: 10/40 images, loss 1\.0, \d:\d\d:\d\d left"
    assert all(re.fullmatch(pattern, line) for line in lines), lines
    assert not [thread for thread in threading.enumerate() if thread.name == "progress" and not _ends(thread)]


def _ends(thread: threading.Thread) -> bool:
    thread.join(5)
    return not thread.is_alive()


def test_other_lines_make_lines_of_progress_unnecessary(capsys: pytest.CaptureFixture[str]) -> None:
    progress.configure(2.0)
    with progress.step("busy"):
        for _ in range(100):
            print_line("something else")
            threading.Event().wait(0.001)
    assert "busy" not in capsys.readouterr().out


def test_the_innermost_step_is_shown_and_an_error_ends_all(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with progress.step("outer", 2):
            progress.begin("inner")  # and nobody ends it
            wait_until(lambda: "inner" in capsys.readouterr().out)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    with progress.step("next"):
        wait_until(lambda: capsys.readouterr().out.startswith("next: "))


@pytest.mark.parametrize(
    ("done", "seconds", "left"), [(0, 30.0, None), (10, 30.0, 90.0), (40, 30.0, 0.0), (41, 30.0, 0.0)]
)
def test_the_time_left_follows_from_the_speed(done: int, seconds: float, left: float | None) -> None:
    step = progress.Step("", 40)
    step.done, step._started = done, time.monotonic() - seconds
    assert step.seconds_left == (None if left is None else pytest.approx(left, abs=0.5))


def test_what_was_done_before_says_nothing_about_the_speed() -> None:
    step = progress.Step("", 40, done=20)
    step._started -= 10
    assert step.seconds_left is None
    step.advance(5)
    assert step.seconds_left == pytest.approx(30, abs=0.5)
    step.expect(7)
    assert step.seconds_left == pytest.approx(7, abs=0.5)


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01")])
def test_clock(seconds: float, text: str) -> None:
    assert progress.clock(seconds) == text


def test_a_terminal_gets_a_bar_that_disappears_and_log_records_above_it(screen: Screen) -> None:
    logger = logging.getLogger("test_progress")
    handler = Handler()
    logger.addHandler(handler)
    with progress.step("hidden while another one is in it"), progress.step("rows [red] :cat:", 4) as step:
        step.advance()
        wait_until(lambda: "1/4" in screen.getvalue())
        logger.warning("a record")
        wait_until(lambda: "a record\n" in screen.getvalue())
    logger.removeHandler(handler)
    text = screen.getvalue()
    assert "rows [red] :cat:" in text
    assert "━" in text
    assert "hidden" not in text
    assert text.endswith("\x1b[2K")  # the last row is erased


def test_null_shows_nothing(capsys: pytest.CaptureFixture[str], screen: Screen) -> None:
    with progress.step("already begun"):
        progress.configure(None)
        shown = screen.getvalue()
        with progress.step("unseen", 3) as step:
            step.advance()
            threading.Event().wait(5 * SILENCE)
        assert screen.getvalue() == shown
    progress.configure(SILENCE)
    with progress.step("seen"):
        wait_until(lambda: "seen" in screen.getvalue())


def test_all_processes_but_the_first_are_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "quiet", True)
    with progress.step("unseen", 3) as step:
        step.advance()
        assert "progress" not in [thread.name for thread in threading.enumerate()]
        threading.Event().wait(3 * SILENCE)
    assert capsys.readouterr().out == ""
