"""What a run records waits on disk until the store has it: nothing is lost, nothing comes twice, nothing stalls."""

import errno
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
from filelock import Timeout
from matplotlib.figure import Figure
from mlflow.exceptions import MlflowException
from requests import HTTPError, Response

from cvexp.checkpoints import write_through
from cvexp.errors import UserError
from cvexp.tracking import delivery
from cvexp.tracking.delivery import is_permanent
from cvexp.tracking.outbox import Outbox, send, set_aside
from cvexp.tracking.run import Run
from cvexp.tracking.store import Store, connect
from cvexp.tracking.system import SystemMetrics
from cvexp.tracking.waiting import deliver_waiting
from tests.helpers import TRACKING, Outcome


@pytest.fixture
def opened() -> Store:
    return connect(TRACKING)


def new_run(opened: Store) -> Run:
    run_id = str(opened.client.create_run(opened.experiment_id()).info.run_id)
    return Run(opened, run_id, Path("outputs"), TRACKING)


@pytest.fixture
def run(opened: Store) -> Iterator[Run]:
    run = new_run(opened)
    yield run
    run._delivery.stop()


class Gate:
    """Makes a store slow, or lets it fail, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.is_open, self.error, self.reached = threading.Event(), error, threading.Event()
        monkeypatch.setattr(delivery, "send", self._guard(send))

    def _guard(self, original: Callable[..., None]) -> Callable[..., None]:
        def guarded(*arguments: Any) -> None:
            self.reached.set()
            if self.error is not None and not self.is_open.is_set():
                raise self.error
            assert self.is_open.wait(60)
            original(*arguments)

        return guarded


def test_entries_come_in_order_and_their_files_belong_to_them(tmp_path: Path) -> None:
    outbox, file = Outbox(tmp_path / "outbox"), tmp_path / "a file.txt"
    outbox.lock(seconds=0)
    for number in range(12):
        file.write_text(str(number))
        outbox.put("file", {"name": file.name, "folder": None}, file)
    texts = [(entry.folder / "a file.txt").read_text() for entry in Outbox(tmp_path / "outbox").entries()]
    assert texts == [str(number) for number in range(12)]
    for entry in outbox.entries():
        outbox.remove(entry)
    outbox.unlock()
    assert not (tmp_path / "outbox").exists()


def test_an_outbox_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    outbox.lock(seconds=0)
    with pytest.raises(Timeout):
        Outbox(tmp_path / "outbox").lock(seconds=0)
    outbox.put("tag", {"key": "a", "value": "b"})
    outbox.unlock()
    Outbox(tmp_path / "outbox").lock(seconds=0)


def test_who_waits_for_an_outbox_gets_it_although_it_was_deleted_in_between(tmp_path: Path) -> None:
    first, second = Outbox(tmp_path / "outbox"), Outbox(tmp_path / "outbox")
    first.lock(seconds=0)
    waiting = threading.Thread(target=second.lock, args=(60,))
    waiting.start()
    waiting.join(0.2)  # long enough to wait for the lock, though nothing depends on it
    first.unlock()
    waiting.join(60)
    second.put("tag", {"key": "a", "value": "b"})
    assert [entry.values["key"] for entry in second.entries()] == ["a"]


def test_what_a_killed_process_left_half_written_is_removed_and_what_was_refused_stays(tmp_path: Path) -> None:
    outbox, file = Outbox(tmp_path / "outbox"), tmp_path / "file"
    outbox.lock(seconds=0)
    file.write_text("content")
    for _ in range(2):
        outbox.put("file", {"name": "file", "folder": None}, file)
    waiting, refused = outbox.entries()
    set_aside(refused.path)
    (outbox.folder / "000000003").mkdir()  # it was killed while it copied a file
    (outbox.folder / "000000003" / "file").write_text("con")
    (outbox.folder / "000000003.unfinished").write_text("{")
    outbox.unlock()
    again = Outbox(outbox.folder)
    again.lock(seconds=0)
    assert sorted(path.name for path in again.folder.iterdir() if path.name != "lock") == [
        *("000000001", "000000001.json", "000000002", "000000002.refused")
    ]
    again.put("file", {"name": "file", "folder": None}, file)
    again.remove(waiting)
    again.restore_refused()
    assert [entry.path.stem for entry in again.entries()] == ["000000002", "000000003"]
    assert all((entry.folder / "file").read_text() == "content" for entry in again.entries())


def test_a_new_checkpoint_takes_the_place_of_one_that_waits_and_needs_no_space(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    outbox.lock(seconds=0)
    for step in (1, 2):
        for name in ("best.ckpt", "last.ckpt"):
            unfinished = tmp_path / "unfinished"
            unfinished.write_text(f"{name} {step}")
            unfinished.replace(tmp_path / name)
            outbox.put("checkpoint", {"name": name, "step": step}, tmp_path / name)
    entries = list(outbox.entries())
    assert [(entry.folder / entry.values["name"]).read_text() for entry in entries] == ["best.ckpt 2", "last.ckpt 2"]
    assert all((entry.folder / entry.values["name"]).stat().st_nlink == 2 for entry in entries)
    outbox.unlock()
    another = Outbox(outbox.folder)  # of a resumed run
    another.lock(seconds=0)
    another.put("checkpoint", {"name": "best.ckpt", "step": 3}, tmp_path / "best.ckpt")
    assert [entry.values["step"] for entry in another.entries()] == [2, 3]


def test_a_full_disk_leaves_no_half_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outbox, file = Outbox(tmp_path / "outbox"), tmp_path / "file"
    file.write_text("content")
    outbox.lock(seconds=0)
    outbox.put("tag", {"key": "a", "value": "b"})
    before = sorted(path.name for path in outbox.folder.rglob("*"))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for method in ("write_text", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, full)
            with pytest.raises(OSError, match="No space"):
                outbox.put("file", {"name": "file", "folder": None}, file)
        assert sorted(path.name for path in outbox.folder.rglob("*")) == before


def test_each_entry_is_written_through_once_unless_it_was_delivered_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, file = Outbox(tmp_path / "outbox"), tmp_path / "file"
    file.write_text("content")
    outbox.lock(seconds=0)
    for _ in range(2):
        outbox.put("file", {"name": "file", "folder": None}, file)
    first, second = outbox.entries()
    written: list[Path] = []

    def write(path: Path) -> None:
        outbox.remove(second)
        write_through(path)
        written.append(path)

    monkeypatch.setattr("cvexp.tracking.outbox.write_through", write)
    outbox.persist()
    assert written == [first.folder / "file", first.folder, first.path, outbox.folder]
    outbox.put("tag", {"key": "a", "value": "b"})
    outbox.persist()
    assert [path.name for path in written[4:]] == ["000000003.json", "outbox"]


def test_entries_that_a_crash_damaged_are_set_aside(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    outbox.lock(seconds=0)
    for key in "abc":
        outbox.put("tag", {"key": key, "value": ""})
    (outbox.folder / "000000002.json").write_bytes(b"\0\0\0")
    (outbox.folder / "000000004.unfinished").write_text('{"kind": "tag"')  # killed while it was written
    assert [entry.values["key"] for entry in outbox.entries()] == ["a", "c"]
    assert (outbox.folder / "000000002.refused").exists()


def test_many_metrics_arrive_with_their_own_times(run: Run, opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(range(1000, 10000))
    monkeypatch.setattr("cvexp.tracking.run.time.time", lambda: next(times))
    for step in range(2500):
        run.log_metrics({"a": step / 3, "inf": float("inf")}, step)
    assert run.history("a") == [(step, step / 3) for step in range(2500)]
    assert run.metrics()["a"] == 2499 / 3
    assert run.drain()
    recorded = opened.client.get_metric_history(run.id, "a")
    assert sorted((metric.step, metric.value, metric.timestamp) for metric in recorded) == [
        (step, step / 3, (1000 + step) * 1000) for step in range(2500)
    ]
    assert len(opened.client.get_metric_history(run.id, "inf")) == 2500


def record(run: Run, folder: Path) -> None:
    """Record something of each kind."""
    run.log_metrics({"a": 1.5}, 3)
    run.log_image("picture", Figure((1, 1)), 3)
    run.log_figure(Figure((1, 1)), "curves/curve.png")
    run.log_json({"ä": [1, None]}, "sub/values.json")
    run.log_text("R&D <b>", "text.md")
    (folder / "an array.npz").write_bytes(b"bytes")
    run.log_file(folder / "an array.npz", "embeddings")
    run.set_tag("key", "R&D")
    inputs = {
        "context": "train",
        "name": "data",
        "digest": "1",
        "source_type": "local",
        "source": "{}",
        "profile": "{}",
    }
    run.log_inputs([inputs])


def content(opened: Store, run_id: str) -> dict[str, Any]:
    """Return all that the store has of a run, without times and random names."""
    recorded = opened.client.get_run(run_id)
    artifacts = Path(urlparse(recorded.info.artifact_uri).path)
    paths = [path for path in artifacts.rglob("*") if path.is_file()]
    files = {path.relative_to(artifacts).as_posix(): path.read_bytes() for path in paths}
    assert recorded.inputs is not None
    return {
        "metrics": {
            name: [(metric.step, metric.value) for metric in opened.client.get_metric_history(run_id, name)]
            for name in recorded.data.metrics
        },
        "tags": {key: value for key, value in recorded.data.tags.items() if key != "mlflow.runName"},
        "inputs": [(each.dataset.name, each.tags[0].value) for each in recorded.inputs.dataset_inputs],
        "files": {name.partition("+timestamp")[0] + Path(name).suffix: value for name, value in files.items()},
        "number of files": len(files),
        "status": recorded.info.status,
    }


def test_what_is_sent_twice_is_recorded_once(opened: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed after the store has taken something, and before it notes that, sends it again."""
    once, twice = new_run(opened), new_run(opened)
    record(once, tmp_path)
    once.close("FINISHED")
    once.release()

    def send_twice(*arguments: Any) -> None:
        send(*arguments)
        send(*arguments)

    monkeypatch.setattr(delivery, "send", send_twice)
    record(twice, tmp_path)
    twice.close("FINISHED")
    twice.release()
    expected, got = content(opened, once.id), content(opened, twice.id)
    assert expected == got
    assert expected["number of files"] == 6
    assert expected["metrics"] == {"a": [(3, 1.5)]}
    assert not list(Path("outputs/outbox").iterdir())


def test_a_store_that_is_away_until_the_end_gets_the_same_record_later(
    opened: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed, run = new_run(opened), new_run(opened)
    record(undisturbed, tmp_path)
    undisturbed.close("FINISHED")
    undisturbed.release()
    with monkeypatch.context() as patch:
        Gate(patch, MlflowException("gone for lunch"))
        started = time.monotonic()
        record(run, tmp_path)
        run.close("FINISHED")
        run.release()
        assert time.monotonic() - started < 20  # MLflow's client would wait for minutes
    assert "gone for lunch" in caplog.text
    assert "python -m cvexp task=sync" in caplog.text
    assert opened.client.get_run(run.id).info.status == "RUNNING"
    num_entries = len(list(Path(f"outputs/outbox/{run.id}").glob("*.json")))
    assert list(deliver_waiting(opened, "outputs", tries_refused=False)) == [(run.id, num_entries, "")]
    assert content(opened, run.id) == content(opened, undisturbed.id)
    assert not list(Path("outputs/outbox").iterdir())


def test_nothing_stalls_while_the_store_is_slow_and_a_message_says_so(
    run: Run, opened: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(delivery, "SLOW", 0.0)
    caplog.set_level(logging.INFO, "cvexp")
    gate = Gate(monkeypatch)
    record(run, tmp_path)
    assert gate.reached.wait(10)
    run.set_tag("after", "that")  # would block if it waited for the store
    assert "waits in" in caplog.text
    assert "after" not in opened.client.get_run(run.id).data.tags
    gate.is_open.set()
    assert run.drain()
    assert opened.client.get_run(run.id).data.tags["after"] == "that"
    assert "takes again" in caplog.text


def test_an_invalid_request_is_an_error_and_nothing_else_waits_for_it(run: Run, opened: Store) -> None:
    run.log_metrics({"a&b": 1.0}, 0)
    run.flush()
    run.set_tag("key", "value")
    with pytest.raises(MlflowException, match="a&b"):
        run.drain()
    assert run._delivery.drain()
    assert opened.client.get_run(run.id).data.tags["key"] == "value"
    (refused,) = Path(f"outputs/outbox/{run.id}").glob("*.refused")
    assert "a&b" in json.loads(refused.read_text())["values"]["metrics"][0][0]


def test_a_run_that_was_deleted_is_one_message_and_can_be_restored(
    opened: Store, cvexp: Callable[..., Outcome]
) -> None:
    run = new_run(opened)
    opened.client.delete_run(run.id)
    run.log_metrics({"a": 1.0}, 0)
    with pytest.raises(UserError, match=f"mlflow runs restore --run-id {run.id}"):
        run.drain()
    with pytest.raises(UserError, match="deleted"):
        run.close("FAILED")
    run.release()
    refused = cvexp("task=sync")
    assert refused.code == 1
    assert run.id in refused.message
    opened.client.restore_run(run.id)
    outcome = cvexp("task=sync")
    assert outcome.code == 0, outcome.message
    assert opened.client.get_metric_history(run.id, "a")[0].value == 1.0
    assert opened.client.get_run(run.id).info.status == "FAILED"


def test_sync_does_not_touch_what_belongs_to_another_store(opened: Store, cvexp: Callable[..., Outcome]) -> None:
    outbox = Outbox(Path("outputs/outbox/0123456789abcdef0123456789abcdef"))
    outbox.lock(seconds=0)
    outbox.put("tag", {"key": "a", "value": "b"})
    outbox.unlock()
    outcome = cvexp("task=sync")
    assert outcome.code == 1
    assert "does not know the run" in outcome.message
    assert len(outbox) == 1
    assert len(outcome.message.strip().splitlines()) == 1


def test_sync_leaves_alone_what_a_process_works_on(run: Run, cvexp: Callable[..., Outcome]) -> None:
    run._delivery.stop()
    run.set_tag("a", "b")
    outcome = cvexp("task=sync")
    assert outcome.code == 1
    assert "still working" in outcome.message


@pytest.mark.parametrize(
    ("status", "permanent"),
    [(400, True), (404, True), (413, True), (401, False), (403, False), (429, False), (502, False)],
)
def test_what_a_server_may_take_later_is_tried_again(status: int, permanent: bool) -> None:
    response = Response()
    response.status_code = status
    assert is_permanent(HTTPError(response=response)) == permanent


def test_kinds_of_errors() -> None:
    assert is_permanent(TypeError("a bug"))
    assert not is_permanent(OSError(errno.ENOSPC, "full"))
    assert not is_permanent(MlflowException("API request failed"))
    assert is_permanent(MlflowException.invalid_parameter_value("no"))


def test_an_error_of_the_system_metrics_is_left_to_the_training(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    uncaught: list[Any] = []
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    monkeypatch.setattr(Run, "log_metrics", full)
    monkeypatch.setattr(threading, "excepthook", uncaught.append)
    metrics = SystemMetrics(run)
    metrics._thread.join(60)
    assert not metrics._thread.is_alive()
    assert not uncaught


def test_metrics_may_be_logged_by_several_threads(run: Run, opened: Store) -> None:
    def log(name: str) -> None:
        for step in range(300):
            run.log_metrics({name: np.float32(step)}, step)
            if step % 50 == 0:
                run.flush()

    threads = [threading.Thread(target=log, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert run.drain()
    for name in "abc":
        assert sorted(metric.step for metric in opened.client.get_metric_history(run.id, name)) == list(range(300))


def test_a_resumed_run_records_nothing_twice(opened: Store, tmp_path: Path) -> None:
    first = new_run(opened)
    record(first, tmp_path)
    assert first.drain()
    first._delivery.stop()
    first.log_metrics({"b": 1.0}, 5)  # waits on disk when the process is killed
    first.flush()
    first.release()
    again = Run(opened, first.id, Path("outputs"), TRACKING)
    again.reload()
    assert again.history("b") == [(5, 1.0)]
    again.log_metrics({"a": 2.0, "b": 2.0}, 3)
    again.log_metrics({"b": 3.0}, 6)
    again.log_image("picture", Figure((1, 1)), 3)
    again.close("FINISHED")
    again.release()
    assert opened.client.get_metric_history(first.id, "a")[0].value == 1.5
    assert opened.history(first.id, "b") == [(5, 1.0), (6, 3.0)]
    assert len(opened.files(first.id, "images")) == 2
