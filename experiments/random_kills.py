"""Kill training runs at random moments, resume them, and compare everything they recorded with undisturbed runs.

    python experiments/random_kills.py [--kills 20] [--seed 0]

Each training task trains once undisturbed. Then runs are killed, one task after the other: `kill -9` of all processes
of the run, at a moment drawn from its whole life, from the start of Python to the last picture. A run that MLflow knows
is resumed; one that was killed before is started again. In the end, the checkpoints, all metrics but those of the
machine, and all pictures and other files must be equal bit by bit. The exit status is 1 if anything differs.
Expected: 20 of 20 equal, in 11 minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlparse

import torch
from mlflow import MlflowClient
from mlflow.entities import Run

COMMON = "backbone.name=test_resnet dataset.train_images=12 dataset.val_images=6 dataset.test_images=0"
COMMON += " loader.num_workers=1 trainer.max_epochs=20 trainer.accelerator=cpu tracking.log_every_n_steps=1"
SMALL_DECODER = "dataset.image_size=64 task.decoder_channels=8 task.atrous_rates=[1,2,3] loader.batch_size=4"
SETTINGS = {
    "dino": "task.global_size=32 task.local_size=16 task.hidden_dim=32 task.bottleneck_dim=16 task.out_dim=32 "
    "loader.batch_size=8",
    "simclr": "task.size=32 task.hidden_dim=32 loader.batch_size=8",
    "multiclass": SMALL_DECODER,
    "attention": SMALL_DECODER,
}
EQUAL = "equal"
OF_THE_MACHINE = ("speed/", "system/")
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
OF_THE_RUN = ("config.yaml", "checkpoints/")  # files that name the run, or whose content is compared instead


class Killed(NamedTuple):
    """What a killed run left.

    Attributes:
        run_id: The run to resume; None if MLflow does not know it, or it has no configuration.
        state: How far it was, in words.
        is_finished: Whether only the end of the process was left.
    """

    run_id: str | None
    state: str
    is_finished: bool = False


class Undisturbed(NamedTuple):
    """What an undisturbed run recorded, by name, and the seconds that it took."""

    record: dict[str, Any]
    seconds: float


def arguments(task: str, folder: Path) -> list[str]:
    return [f"task={task}", *COMMON.split(), *SETTINGS[task].split(), f"dataset.root={folder}/data"]


def start(folder: Path, words: list[str]) -> subprocess.Popen[bytes]:
    """Start a run as the leader of a group of processes, with its output in a file."""
    with (folder / "output").open("ab") as output:
        command = [sys.executable, "-m", "cvexp", *words, f"tracking.folder={folder}"]
        return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)


def finish(folder: Path, words: list[str]) -> float:
    """Run a command to its end, and return the seconds that it took.

    Raises:
        RuntimeError: with what it printed, if it fails.
    """
    started = time.monotonic()
    if start(folder, words).wait():
        raise RuntimeError((folder / "output").read_text()[-3000:])
    return time.monotonic() - started


def kill_after(seconds: float, folder: Path, words: list[str]) -> bool:
    """Start a run and kill it with all of its processes, unless it ends before. Return whether it was killed."""
    process = start(folder, words)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


def runs(folder: Path) -> tuple[MlflowClient, list[Run]]:
    """Return all runs in a tracking folder, which may have no database yet."""
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    if not (folder / "mlflow.db").exists():
        return client, []
    experiment = client.get_experiment_by_name("cvexp")
    return client, [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def artifacts(run: Run) -> Path:
    return Path(unquote(urlparse(run.info.artifact_uri).path))


def look_at(folder: Path) -> Killed:
    """Say what a killed run left."""
    _, found = runs(folder)
    if not found:
        return Killed(None, "no run in MLflow")
    (run,) = found
    if not (artifacts(run) / "config.yaml").exists():
        return Killed(None, "no configuration")
    files = [path.name for path in (artifacts(run) / "checkpoints").glob("*")]
    last = artifacts(run) / "checkpoints" / "last.ckpt"
    state = f"{torch.load(last, weights_only=True)['global_step']} steps saved" if last.exists() else "no checkpoint"
    if "unfinished" in files:
        state += ", one half written"
    return Killed(run.info.run_id, state, is_finished=run.info.status == "FINISHED")


def record(folder: Path) -> dict[str, Any]:
    """Return everything that the finished run in a folder recorded, by name."""
    client, found = runs(folder)
    (run,) = [run for run in found if run.info.status == "FINISHED"]
    values: dict[str, Any] = {f"tag {key}": run.data.tags.get(key) for key in ("selected", "warning", "collapse")}
    for name in run.data.metrics:
        if not name.startswith(OF_THE_MACHINE):
            history = client.get_metric_history(run.info.run_id, name)
            values[f"metric {name}"] = [(metric.step, metric.value) for metric in history]
    for path in sorted(artifacts(run).rglob("*")):
        name = path.relative_to(artifacts(run)).as_posix()
        if path.is_file() and not name.startswith(OF_THE_RUN):
            key = re.sub(rf"timestamp.\d+.{UUID}", "", name)  # in the names of pictures
            content = re.sub(UUID.encode(), b"", path.read_bytes())  # in web pages
            values.setdefault(f"file {key}", []).append(content)
        elif path.suffix == ".ckpt":
            content = torch.load(path, weights_only=True)
            content.pop("cvexp")  # names the run and its folders
            content["loops"].pop("validate_loop")  # counts whether this process validated before the training
            values[f"file {name}"] = content
        elif path.is_file() and name != "config.yaml":
            values[f"file {name}"] = "should not be there"
    return values


def differences(one: Any, other: Any, name: str = "") -> list[str]:
    """Return the names of all differences between two nested values, whose tensors are compared bit by bit."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys(), key=str)
        return [text for key in keys for text in differences(one.get(key), other.get(key), f"{name} {key}".strip())]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        is_equal = one.dtype == other.dtype and torch.equal(one, other)
    else:
        is_equal = type(one) is type(other) and bool(one == other)
    return [] if is_equal else [name]


def go_on(killed: Killed, task: str, folder: Path, expected: dict[str, Any]) -> str:
    """Let a killed run go on, and return whether it ends like an undisturbed one, or how it differs."""
    try:
        if not killed.is_finished:
            finish(folder, [f"resume={killed.run_id}"] if killed.run_id else arguments(task, folder))
    except RuntimeError as error:
        return f"failed: {error}"
    differing = differences(expected, record(folder))
    return f"differs in: {'; '.join(differing)}" if differing else EQUAL


def train(task: str, folder: Path) -> Undisturbed:
    """Train undisturbed."""
    folder.mkdir()
    seconds = finish(folder, arguments(task, folder))
    result = Undisturbed(record(folder), seconds)
    print(f"{task}: undisturbed {seconds:.1f} s, {len(result.record)} records", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    undisturbed: dict[str, Undisturbed] = {}
    num_equal = num_again = 0
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(options.kills):
            task = list(SETTINGS)[number % len(SETTINGS)]
            if task not in undisturbed:
                undisturbed[task] = train(task, Path(temporary, task))
            folder, was_killed = Path(temporary), False
            while not was_killed:  # on a busy machine, a run may also be faster than the undisturbed one
                moment = generator.random() * undisturbed[task].seconds
                folder = Path(tempfile.mkdtemp(dir=temporary))
                was_killed = kill_after(moment, folder, arguments(task, folder))
            killed = look_at(folder)
            num_again += killed.run_id is None
            how = "had finished" if killed.is_finished else "resumed" if killed.run_id else "started again"
            result = go_on(killed, task, folder, undisturbed[task].record)
            num_equal += result == EQUAL
            print(f"{number + 1:3} {task:10} {moment:5.1f} s  {killed.state:40} {how:14} {result}", flush=True)
    print(f"{num_equal} of {options.kills} end equal; {num_again} were started again, because MLflow did not know them")
    sys.exit(num_equal < options.kills)


if __name__ == "__main__":
    main()
