"""Train many small runs while their MLflow server is restarted, and watch memory, open files and temporary files.

    python experiments/soak.py [--runs 200] [--restarts 5] [--seed 0] [--backend sqlite:///server.db]

Half of the runs train one after another in one process for each task, and then the other half four at a time
(`hydra/launcher=joblib`). The server is stopped at random moments for 5 to 60 seconds. In the end, every run must have
finished, with as many metrics, pictures and other files as the other runs of its task, and nothing may wait in an
outbox. For each sweep, this prints what was in use near its start and at its end: memory and descriptors of the
processes that train and of the server, and the number of temporary files. The exit status is 1 if a run is missing or
incomplete.
Expected: 200 of 200 complete.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

import psutil
from mlflow import MlflowClient

SETTINGS = (
    "backbone.name=test_resnet dataset.train_images=240 dataset.val_images=12 dataset.test_images=0 dataset.root=data "
    "loader.num_workers=1 loader.batch_size=8 trainer.accelerator=cpu tracking.upload_checkpoints=epoch"
)
TASKS = {
    "dino": "trainer.max_epochs=12 task.global_size=32 task.local_size=16 task.hidden_dim=32 task.out_dim=32",
    "multiclass": "trainer.max_epochs=24 dataset.image_size=64 task.decoder_channels=8 task.atrous_rates=[1,2,3]",
}


class Sample(NamedTuple):
    """What was in use at a moment: bytes, descriptors and files."""

    training_memory: int
    training_descriptors: int
    server_memory: int
    server_descriptors: int
    temporary_files: int


class Server:
    """An MLflow server that is stopped and started again."""

    def __init__(self, backend: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        self.command += ["--backend-store-uri", backend, "--artifacts-destination", "artifacts"]
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        with Path("server.log").open("a") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, start_new_session=True)
        for _ in range(1200):
            with suppress(OSError):
                urllib.request.urlopen(f"{self.address}/health").close()
                return
            time.sleep(0.1)
        raise RuntimeError("the server does not answer, see server.log")

    def stop(self) -> None:
        """Stop the server and all of its processes."""
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait()


def use_of(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Return the memory and the number of descriptors of a process and its descendants."""
    memory = descriptors = 0
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for each in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                memory += each.memory_info().rss
                descriptors += each.num_fds()
    return memory, descriptors


def train(words: list[str], server: Server) -> list[Sample]:
    """Run a sweep, and return samples of what is in use, ten seconds apart."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": server.address, "TMPDIR": str(Path("tmp").absolute())}
    samples = []
    with Path("sweeps.log").open("a") as log:
        sweep = subprocess.Popen([sys.executable, "-m", "cvexp", "-m", *words], env=environment, stdout=log, stderr=log)
        while sweep.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                sweep.wait(10)
            temporary = sum(len(names) for _, _, names in os.walk("tmp"))
            samples.append(Sample(*use_of(sweep), *use_of(server.process), temporary))
    print(f"the sweep ended with exit status {sweep.returncode}", flush=True)
    return samples


def disturb(server: Server, moments: list[float], lengths: list[float], has_ended: threading.Event) -> None:
    """Stop the server at some moments, in seconds from now, for some time."""
    began = time.monotonic()
    for moment, length in zip(moments, lengths, strict=True):
        if has_ended.wait(max(0.0, began + moment - time.monotonic())):
            return
        server.stop()
        has_ended.wait(length)
        server.start()
        print(f"{time.monotonic() - began:.0f} s: the server was away for {length:.0f} s", flush=True)


def growth(samples: list[Sample]) -> str:
    """Say what was in use after the first tenth of the samples, and at the end."""
    tenth = max(1, len(samples) // 10)
    early, late = samples[tenth : 2 * tenth] or samples, samples[-tenth - 1 : -1] or samples
    lines = []
    for name in Sample._fields:
        first, last = (median(getattr(sample, name) for sample in part) for part in (early, late))
        scale, unit = (1e6, "MB") if name.endswith("memory") else (1, "")
        lines.append(f"  {name.replace('_', ' ')}: {first / scale:.0f} -> {last / scale:.0f} {unit}".rstrip())
    return "\n".join(lines)


def count(client: MlflowClient, run_id: str) -> tuple[int, ...]:
    """Return the numbers of values of metrics, and of files in each folder of the artifacts, of a run."""
    run = client.get_run(run_id)
    # The metrics of the best epoch are recorded whenever there is a better one, which depends on the seed.
    names = [name for name in run.data.metrics if not name.startswith(("system/", "best/"))]
    values = sum(len(client.get_metric_history(run_id, name)) for name in names)
    folders = ("checkpoints", "embeddings", "images", "curves", "data")
    return len(names), values, *(len(client.list_artifacts(run_id, folder)) for folder in folders)


def check(address: str, num_runs: int) -> bool:
    """Print how many runs are complete, and return whether all are."""
    client = MlflowClient(address)
    experiment = client.get_experiment_by_name("cvexp")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "tags.role != 'sweep'", max_results=10 * num_runs)
    finished = [run for run in found if run.info.status == "FINISHED"]
    counts = {run.info.run_id: (run.data.tags["task"], *count(client, run.info.run_id)) for run in finished}
    usual = {task: Counter(c for c in counts.values() if c[0] == task).most_common(1)[0][0] for task in TASKS}
    complete = [run_id for run_id, counted in counts.items() if counted == usual[str(counted[0])]]
    print(f"{len(complete)} of {num_runs} runs complete; {len(found)} started, {len(finished)} finished")
    for run_id in counts.keys() - set(complete):
        print(f"  {run_id}: {counts[run_id]}, but others have {usual[str(counts[run_id][0])]}")
    waiting = list(Path("outputs/outbox").glob("*/*.json"))
    print(f"{len(waiting)} entries wait in outboxes")
    return len(complete) == len(found) == num_runs and not waiting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--hours", type=float, default=2.0, help="in which the restarts happen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="sqlite:///server.db")
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    folder = tempfile.mkdtemp(prefix="soak-")
    os.chdir(folder)
    Path("tmp").mkdir()
    print(folder, flush=True)
    server = Server(arguments.backend)
    has_ended = threading.Event()
    moments = sorted(rng.uniform(0, arguments.hours * 3600 - 60) for _ in range(arguments.restarts))
    lengths = [rng.uniform(5, 60) for _ in moments]
    disturbance = threading.Thread(target=disturb, args=(server, moments, lengths, has_ended))
    disturbance.start()
    half = arguments.runs // (2 * len(TASKS))
    try:
        for launcher in ([], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=4"]):
            for task, settings in TASKS.items():
                first = 0 if not launcher else half
                seeds = f"seed=range({first},{first + half})"
                samples = train([f"task={task}", *SETTINGS.split(), *settings.split(), seeds, *launcher], server)
                how = "four at a time" if launcher else "one after another"
                print(f"{task}, {how}:", growth(samples), sep="\n", flush=True)
    finally:
        has_ended.set()
        disturbance.join()
    is_complete = check(server.address, arguments.runs)
    server.stop()
    sys.exit(0 if is_complete else 1)


if __name__ == "__main__":
    main()
