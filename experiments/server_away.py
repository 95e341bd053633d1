"""Stop an MLflow server for a minute while a run trains, and compare the record and the time with undisturbed runs.

    python experiments/server_away.py [--rounds 2] [--seconds 60] [--backend sqlite:///server.db]

In each round, the same run trains three times: undisturbed, with the server away in the middle, and with the server
away from the last tenth of the epochs until the run has ended, after which `task=sync` delivers what waits. Metrics,
files, tags and inputs must be equal, apart from what a machine measures. Printed are the seconds of each command, those
from the first to the last validation, which say what the training lost, and those after the last validation. The exit
status is 1 if records differ.
Expected: equal records; the training loses less than 5 seconds. Two rounds take 15 minutes on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from mlflow import MlflowClient
from random_kills import OF_THE_MACHINE, UUID, differences
from soak import SETTINGS, TASKS, Server

EPOCHS = 60
WORDS = ["task=dino", *SETTINGS.split(), *TASKS["dino"].split(), f"trainer.max_epochs={EPOCHS}"]
LOSS = "val/loss"
# What names the run or its folder: of the files, only the names are compared.
FILES_OF_THE_RUN = ("config.yaml", "checkpoints/")
TAGS_OF_THE_RUN = ("command", "cvexp.config", "cvexp.folder")
KINDS = ("undisturbed", "away in the middle", "away at the end")


class Trained(NamedTuple):
    """A finished run: its record by name, and the seconds of its command, its training and what came after that."""

    record: dict[str, Any]
    command: float
    training: float
    after: float


def start(folder: Path, words: list[str], address: str) -> subprocess.Popen[bytes]:
    """Start cvexp in a folder, with its output in a file."""
    with (folder / "output").open("ab") as output:
        words = [*words, f"tracking.folder={folder}", f"tracking.experiment={folder.name}"]
        environment = {**os.environ, "MLFLOW_TRACKING_URI": address}
        command = [sys.executable, "-m", "cvexp", *words]
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment)


def the_run(client: MlflowClient, experiment: str) -> str | None:
    """Return the id of the only run of an experiment, or None if there is none yet."""
    found = client.get_experiment_by_name(experiment)
    runs = [] if found is None else client.search_runs([found.experiment_id])
    return runs[0].info.run_id if runs else None


def wait_for_epoch(epoch: int, client: MlflowClient, experiment: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server knows the validation of an epoch."""
    while process.poll() is None:
        run_id = the_run(client, experiment)
        if run_id is not None and len(client.get_metric_history(run_id, LOSS)) > epoch:
            return
        time.sleep(1)
    raise RuntimeError("the run ended early")


def record_of(client: MlflowClient, run_id: str) -> dict[str, Any]:
    """Return everything that a run recorded but what a machine measures and what names the run."""
    run = client.get_run(run_id)
    values: dict[str, Any] = {"status": run.info.status}
    values |= {f"tag {key}": value for key, value in run.data.tags.items() if key not in TAGS_OF_THE_RUN}
    inputs = run.inputs.dataset_inputs if run.inputs else []
    values["inputs"] = sorted((each.dataset.name, each.dataset.digest) for each in inputs)
    for name in run.data.metrics:
        if not name.startswith(OF_THE_MACHINE):
            history = client.get_metric_history(run_id, name)
            values[f"metric {name}"] = [(metric.step, metric.value) for metric in history]
    with tempfile.TemporaryDirectory() as folder:
        local = Path(client.download_artifacts(run_id, "", folder))
        for path in sorted(path for path in local.rglob("*") if path.is_file()):
            name = re.sub(rf"timestamp.\d+.{UUID}", "", path.relative_to(local).as_posix())  # in the names of pictures
            content = b"" if name.startswith(FILES_OF_THE_RUN) else re.sub(UUID.encode(), b"", path.read_bytes())
            values.setdefault(f"file {name}", []).append(hashlib.sha256(content).hexdigest())
    return values


def train(kind: str, number: int, server: Server, seconds: float) -> Trained:
    """Train once, while the server is away as the kind says."""
    folder = Path(f"{kind.replace(' ', '-')}-{number}").absolute()
    folder.mkdir()
    client = MlflowClient(server.address)
    began = time.monotonic()
    process = start(folder, WORDS, server.address)
    if kind == KINDS[1]:
        wait_for_epoch(EPOCHS // 4, client, folder.name, process)
        server.stop()
        time.sleep(seconds)
        server.start()
    elif kind == KINDS[2]:
        wait_for_epoch(EPOCHS * 9 // 10, client, folder.name, process)
        server.stop()
    process.wait()
    ended = time.time()
    command = time.monotonic() - began
    if kind == KINDS[2]:
        server.start()
        subprocess.run(
            [sys.executable, "-m", "cvexp", "task=sync", f"tracking.folder={folder}"],
            env={**os.environ, "MLFLOW_TRACKING_URI": server.address},
            check=True,
        )
    run_id = the_run(client, folder.name)
    assert run_id is not None, (folder / "output").read_text()[-2000:]
    times = [metric.timestamp / 1000 for metric in client.get_metric_history(run_id, LOSS)]
    return Trained(record_of(client, run_id), command, max(times) - min(times), ended - max(times))


def show(runs: dict[str, list[Trained]]) -> None:
    """Print the medians of each kind, and what its training lost by the absence of the server."""
    names = ("command", "training", "after")
    medians = {kind: [median(getattr(run, name) for run in runs[kind]) for name in names] for kind in runs}
    for kind, values in medians.items():
        lost = values[1] - medians[KINDS[0]][1]
        parts = [f"{name} {value:6.1f} s" for name, value in zip(names, values, strict=True)]
        print(f"{kind:20} {'  '.join(parts)}  the training lost {lost:+.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="for which the server is away in the middle")
    parser.add_argument("--backend", default="sqlite:///server.db")
    options = parser.parse_args()
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.chdir(tempfile.mkdtemp(prefix="server-away-"))
    server = Server(options.backend)
    runs: dict[str, list[Trained]] = {kind: [] for kind in KINDS}
    differing: list[str] = []
    try:
        for number in range(options.rounds):
            for kind in KINDS:
                trained = train(kind, number, server, options.seconds)
                runs[kind].append(trained)
                first = runs[KINDS[0]][0].record
                differing += [f"{kind}: {name}" for name in differences(first, trained.record)]
                print(
                    f"{number + 1} {kind:20} {trained.command:6.1f} s, training {trained.training:6.1f} s", flush=True
                )
        show(runs)
        values = sum(len(value) for name, value in first.items() if name.startswith("metric "))
        files = sum(len(value) for name, value in first.items() if name.startswith("file "))
        print(f"{values} values of metrics and {files} files of each run compared; differing: {differing or 'none'}")
    finally:
        server.stop()
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
