"""What a job asks of the store when it starts does not grow with the number of runs in it."""

from __future__ import annotations

import runpy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pytest
import sqlalchemy
from PIL import Image

from tests.helpers import Outcome, runs, store

pytestmark = pytest.mark.slow  # trains

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "experiments" / "large_store.py"))

NUM_RUNS = 450  # after copying, 150 of which compare could choose from
FIRST_PAGE = 20  # runs
COMPARED = 100  # runs, see MAX_CANDIDATES in task=compare
NUM_SEEDS = 5  # of the copies, so there are this many runs of each method to compare

COUNTED = ("search_runs", "get_run", "get_metric_history", "list_artifacts", "download_artifacts")
JOBS = [name for name in SCRIPT["JOBS"] if name not in ("study", "demo", "export", "register")]  # which take longer


class Begun(BaseException):
    """The work of a job begins."""


class Asked(NamedTuple):
    """What a job asked of the store: the number of requests of each kind, and of the runs that it was sent."""

    requests: Counter[str]
    num_runs: int


def ask(
    name: str, names: dict[str, str], number: int, cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> Asked:
    """Start a job, and stop it when its work begins."""
    requests: Counter[str] = Counter()
    sent: list[int] = []

    def counted(kind: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            answer = method(*arguments, **keywords)
            requests[kind] += 1
            sent.append(len(answer) if kind == "search_runs" else 0)
            return answer

        return call

    def begin(*_: object, **__: object) -> None:
        raise Begun

    job = SCRIPT["JOBS"][name]
    with monkeypatch.context() as patch:
        for kind in COUNTED:
            patch.setattr(mlflow.MlflowClient, kind, counted(kind, getattr(mlflow.MlflowClient, kind)))
        patch.setattr(job.begins.replace(":", "."), begin)
        with pytest.raises(Begun):
            cvexp(*(word.format(**names, number=number) for word in job.words))
    return Asked(requests, sum(sent))


def test_no_job_asks_for_more_in_a_large_store(cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    for words in SCRIPT["REAL"]:
        if words[0] not in ("task=probe", "task=report"):
            assert cvexp(*words).code == 0
    Image.new("RGB", (48, 40)).save("photo.png")
    finished, killed = (run.info.run_id for run in runs() if run.data.tags["task"] == "dino")
    store().set_terminated(killed, "KILLED")
    names = {"finished": finished, "killed": killed, "photo": "photo.png"}
    before = {name: ask(name, names, 10, cvexp, monkeypatch) for name in JOBS}
    with sqlalchemy.create_engine(f"sqlite:///{Path('outputs/mlflow.db').absolute()}").begin() as database:
        SCRIPT["copy_rows"](database, NUM_RUNS)
    assert len(runs()) >= NUM_RUNS
    for name in JOBS:
        asked, small = ask(name, names, 11, cvexp, monkeypatch), before[name]
        is_compare = name == "compare"
        more = asked.requests - small.requests
        assert more.total() <= (2 * NUM_SEEDS * len(COUNTED) if is_compare else 0), (name, more)
        assert asked.num_runs <= FIRST_PAGE * asked.requests["search_runs"] + is_compare * COMPARED, name
