"""How processes that are not the first one record their end."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from cvexp import processes
from cvexp.composition import compose
from cvexp.errors import Interrupted, UserError
from cvexp.tracking.opening import open_run
from cvexp.tracking.run import ReadOnlyRun
from cvexp.tracking.store import connect
from cvexp.tracking.watchdog import failure_recorded, watched
from tests.helpers import TINY, runs, store


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ReadOnlyRun:
    """A run as the second of two processes sees it."""
    tracking = compose(*TINY).tracking
    opened = connect(tracking)
    run_id = opened.client.create_run(opened.experiment_id()).info.run_id
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    return ReadOnlyRun(opened, run_id, Path("folder"), tracking)


def end(run: ReadOnlyRun, error: BaseException) -> tuple[str, str]:
    """End a process by an error, and return the status and the error of the run."""
    with pytest.raises(type(error)), failure_recorded(run):
        raise error
    recorded = runs()[0]
    return recorded.info.status, recorded.data.tags.get("error", "")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UserError("a.jpg is broken"), ("FAILED", "process 1: UserError: a.jpg is broken")),
        (ZeroDivisionError("a bug"), ("FAILED", "process 1: ZeroDivisionError: a bug")),
        (Interrupted(signal.SIGTERM), ("KILLED", "")),
        (KeyboardInterrupt(), ("KILLED", "")),
    ],
)
def test_the_end_of_a_process_is_recorded(run: ReadOnlyRun, error: BaseException, expected: tuple[str, str]) -> None:
    assert end(run, error) == expected


def test_what_the_first_process_recorded_stays(run: ReadOnlyRun) -> None:
    store().set_terminated(run.id, "KILLED")
    store().set_tag(run.id, "error", "an earlier one")
    assert end(run, UserError("another")) == ("KILLED", "an earlier one")


def test_signals_are_noted_and_the_former_handlers_come_back(run: ReadOnlyRun) -> None:
    former = signal.getsignal(signal.SIGTERM)
    with watched(run):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert run.noted_signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == former


@pytest.mark.usefixtures("run")
def test_a_process_that_can_not_see_the_run_says_what_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "from_first", lambda _: ("0" * 32, Path("elsewhere")))
    with (
        pytest.raises(UserError, match=r"process 1 needs the run 0+: choose a tracking.folder on a file system"),
        open_run(compose(*TINY), Path("elsewhere")),
    ):
        pass
