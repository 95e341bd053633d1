"""What a run records waits in an outbox, a folder on disk, until MLflow's store has taken it.

An outbox is `tracking.folder`/outbox/RUN_ID. Each entry is a JSON file with a consecutive number, and if it contains a
file, a folder with the same number. An entry is complete as soon as its JSON file exists, so a process may be killed
at any time. Every entry can be sent twice without harm, because it has its own timestamps and file names.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

from cvexp.checkpoints import write_through
from cvexp.errors import UserError

OUTBOXES = "outbox"  # the folder of all outboxes
LOCK_SECONDS = 60.0  # for which a resumed run waits for a process that delivers what the run left
LOCK = "lock"  # a file in an outbox, which is locked by the process that fills or empties it
REFUSED = ".refused"  # suffix of an entry that was set aside
UNFINISHED = ".unfinished"  # suffix of an entry that is being written
STEP = "checkpoint.step"  # tag: the step of the checkpoint last.ckpt that the store has


class Entry(NamedTuple):
    """An entry of an outbox.

    Attributes:
        path: Its JSON file.
        kind: What it is: ``"metrics"``, ``"tag"``, ``"file"``, ``"checkpoint"``, ``"inputs"`` or ``"end"``.
        values: Plain values, depending on its kind.
    """

    path: Path
    kind: str
    values: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The folder of the entry's file, if it has one."""
        return self.path.with_suffix("")


class Outbox:
    """The outbox of a run. Several threads may use it.

    Args:
        folder: Where it is. It exists from :meth:`lock` to :meth:`unlock`, and longer if something waits in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writing = threading.Lock()
        self._file_lock = FileLock(folder / LOCK, thread_local=False)
        self._last_number = 0
        self._checkpoints: dict[str, Entry] = {}  # by file name: the newest entry with it
        self._unsaved: list[Path] = []  # what may not be on the disk yet

    def lock(self, seconds: float) -> None:
        """Reserve the outbox for this process, and remove what a killed one left half-written.

        The system releases the lock however the process ends.

        Args:
            seconds: How long to wait for another process that has reserved it.

        Raises:
            filelock.Timeout: if it still has.
        """
        while not self._file_lock.is_locked:
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):  # another process has just emptied and deleted the outbox
                self._file_lock.acquire(timeout=seconds)
        entries = {path.stem for path in (*self._paths(".json"), *self._paths(REFUSED))}
        self._last_number = max(map(int, entries), default=0)
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in entries:
                shutil.rmtree(path)
            elif path.suffix == UNFINISHED:
                path.unlink()
        self._checkpoints = {entry.values["name"]: entry for entry in self.entries() if entry.kind == "checkpoint"}

    def unlock(self) -> None:
        """Release the outbox, and delete it if nothing waits in it."""
        if not any(path.name != LOCK for path in self.folder.glob("*")):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._file_lock.release()

    def put(self, kind: str, values: Mapping[str, Any], file: Path | None = None) -> None:
        """Write an entry.

        Args:
            kind, values: See :class:`Entry`.
            file: A file that the entry contains. It is copied, or linked if it is a checkpoint, which never changes.

        Raises:
            OSError: if the disk is full. The outbox is then as before.
        """
        with self._writing:
            self._last_number += 1
            entry = Entry(self.folder / f"{self._last_number:09d}.json", kind, dict(values))
            unfinished = entry.path.with_suffix(UNFINISHED)
            try:
                if file is not None:
                    entry.folder.mkdir()
                    (_link_or_copy if kind == "checkpoint" else shutil.copyfile)(file, entry.folder / file.name)
                unfinished.write_text(json.dumps({"kind": kind, "values": entry.values}))
                unfinished.replace(entry.path)
            except OSError:
                unfinished.unlink(missing_ok=True)
                shutil.rmtree(entry.folder, ignore_errors=True)
                raise
            self._unsaved += [entry.path] if file is None else [entry.folder / file.name, entry.folder, entry.path]
            if kind == "checkpoint":
                if former := self._checkpoints.get(values["name"]):
                    self.remove(former)  # it need not be sent any more
                self._checkpoints[values["name"]] = entry

    def entries(self) -> Iterator[Entry]:
        """Yield the entries in order. One that is removed in the meantime is left out.

        A file that is damaged, as after a crash of the machine, is set aside.
        """
        for path in self._paths(".json"):
            try:
                content = json.loads(path.read_text())
                yield Entry(path, content["kind"], content["values"])
            except FileNotFoundError:
                continue
            except ValueError:
                set_aside(path)

    def persist(self) -> None:
        """Write what waits through to the disk, so that it survives a crash of the machine."""
        with self._writing:
            unsaved, self._unsaved = self._unsaved, []
        for path in (*unsaved, self.folder):
            with contextlib.suppress(FileNotFoundError):  # it was delivered in the meantime
                write_through(path)

    def restore_refused(self) -> None:
        """Let what was set aside be tried again."""
        for path in self._paths(REFUSED):
            path.rename(path.with_suffix(".json"))

    def remove(self, entry: Entry) -> None:
        """Delete an entry."""
        entry.path.unlink(missing_ok=True)
        shutil.rmtree(entry.folder, ignore_errors=True)

    def __len__(self) -> int:
        return len(self._paths(".json"))

    def has_refused(self) -> bool:
        """Return whether an entry was set aside."""
        return bool(self._paths(REFUSED))

    def _paths(self, suffix: str) -> list[Path]:
        """List the files with a suffix in order. Unlike Path.glob, glob allows for folders that vanish meanwhile."""
        return [self.folder / name for name in sorted(glob.glob(f"*{suffix}", root_dir=self.folder))]


def open_outbox(tracking_folder: str, run_id: str) -> Outbox:
    """Reserve the outbox of a run for this process.

    Raises:
        UserError: if another process delivers what is in it, and does not end soon.
    """
    outbox = Outbox(Path(tracking_folder).absolute() / OUTBOXES / run_id)
    try:
        outbox.lock(LOCK_SECONDS)
    except Timeout as error:
        raise UserError(f"another process is delivering what the run {run_id} recorded; wait for it") from error
    return outbox


def set_aside(path: Path) -> None:
    """Rename the JSON file of an entry that can't be sent, so that it does not keep others from being sent."""
    with contextlib.suppress(FileNotFoundError):
        path.rename(path.with_suffix(REFUSED))


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


class Recorder(MlflowClient):
    """A client of MLflow that writes into an outbox what it would send.

    MLflow's own methods that log figures, images, texts and dictionaries call those that are replaced here.

    Args:
        uri: The address of the store, which is not contacted.
        outbox: Where to write.
        notify: What to call after writing.
    """

    def __init__(self, uri: str, outbox: Outbox, notify: Callable[[], None]) -> None:
        super().__init__(uri)
        self._outbox, self._notify = outbox, notify

    def put(self, kind: str, values: Mapping[str, Any], file: Path | None = None) -> None:
        """Write an entry, see :meth:`Outbox.put`."""
        self._outbox.put(kind, values, file)
        self._notify()

    def log_artifact(self, run_id: str, local_path: str, artifact_path: str | None = None) -> None:
        path = Path(local_path)
        self.put("file", {"name": path.name, "folder": artifact_path}, path)

    def set_tag(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> None:
        self.put("tag", {"key": key, "value": str(value)})


def send(client: MlflowClient, run_id: str, entry: Entry) -> None:
    """Send an entry of a run to the store.

    Args:
        client: The client of the store.
        run_id: MLflow's id of the run.
        entry: The entry.

    Raises:
        Exception: whatever MLflow and its connection raise.
    """
    values = entry.values
    if entry.kind == "metrics":
        metrics = [Metric(name, value, timestamp, step) for name, value, timestamp, step in values["metrics"]]
        client.log_batch(run_id, metrics=metrics)
    elif entry.kind == "tag":
        client.set_tag(run_id, values["key"], values["value"])
    elif entry.kind == "file":
        client.log_artifact(run_id, str(entry.folder / values["name"]), values["folder"])
    elif entry.kind == "checkpoint":
        client.log_artifact(run_id, str(entry.folder / values["name"]), "checkpoints")
        if values["step"] is not None:
            client.set_tag(run_id, STEP, values["step"])
    elif entry.kind == "inputs":
        client.log_inputs(run_id, [_dataset_input(**each) for each in values["inputs"]])
    elif entry.kind == "end":
        client.set_terminated(run_id, values["status"], values["time"])
    else:
        raise ValueError(f"{entry.path}: there is no kind {entry.kind!r} of entries")


def _dataset_input(context: str, **dataset: str) -> DatasetInput:
    return DatasetInput(Dataset(**dataset), [InputTag("mlflow.data.context", context)])
