"""Measure how long each job takes to start in an MLflow store with many finished runs, and what of it the store costs.

    python experiments/large_store.py FOLDER [runs=10000] [repeats=3] [only=compare,report]
    MLFLOW_TRACKING_URI=http://127.0.0.1:5000 python experiments/large_store.py FOLDER database=postgresql:///mlflow

It trains tiny runs, and copies the rows of the finished ones until there are 10 000. The copies are older than the real
runs, and alike except for their seeds, so that every search finds many, and have the same artifacts. Then each job is
started, and stopped where its work begins: a training at its first step, and a job on finished runs when it has chosen
them and read what they recorded. Printed are the median seconds since the command, those that the imports take, and
those in MLflow's client, with the number of its calls.

The first line measures SQLite: FOLDER/small has only the real runs, FOLDER/large also has the copies, and the jobs take
turns in both. The second line measures a server that had no runs; with runs=0, nothing is copied in its database. Both
can be started again, with another selection of jobs.
Expected (two cores, SQLite): 6 to 7 s for most jobs, 4.4 to 5.4 s of them imports, of which torch and mlflow take 3 s;
MLflow takes 1 s, and 1.6 s for task=compare; a large store costs less than 1 s more than a small one.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import sqlalchemy
from mlflow import MlflowClient
from PIL import Image
from sqlalchemy import Connection

NUM_SEEDS = 5
ONE_STEP = ["trainer.max_epochs=1", "trainer.max_steps=1", "trainer.accelerator=cpu", "loader.num_workers=0"]
SMALL = [
    *("backbone.name=test_resnet", "dataset.train_images=12", "dataset.val_images=6", "dataset.test_images=0"),
    *("loader.batch_size=4", "tracking.system_metrics=false", *ONE_STEP),
]
VIEWS = ["task.global_size=32", "task.local_size=16", "task.local_crops=1", "task.out_dim=32"]
MASKS = ["dataset.image_size=64", "task.decoder_channels=8", "task.atrous_rates=[1,2,3]"]
DINO, MULTICLASS, ATTENTION = (
    ["task=dino", *VIEWS, *SMALL],
    ["task=multiclass", *MASKS, *SMALL],
    ["task=attention", *MASKS, *SMALL],
)
REAL = [DINO, DINO, MULTICLASS, ATTENTION, ["task=neighbors"], ["task=probe"], ["task=compare"], ["task=report"]]


class Job(NamedTuple):
    """A job to measure: its words, and the function with which its work begins."""

    words: Sequence[str]
    begins: str = "pytorch_lightning.Trainer:fit"


JOBS = {
    "dino": Job(DINO),
    "latest:dino": Job([*MULTICLASS, "backbone.weights=latest:dino"]),
    "latest:dino, other seed": Job([*MULTICLASS, "backbone.weights=latest:dino", "seed=99"]),
    "compare": Job(["task=compare"], "cvexp.tasks.compare:time_images"),
    "report": Job(["task=report"], "cvexp.tasks.report:write"),
    "neighbors": Job(["task=neighbors"], "cvexp.tasks.neighbors:choose_queries"),
    "predict": Job(["task=predict", "task.images=[{photo}]"], "cvexp.tasks.predict:predict"),
    "embed": Job(["task=embed", "task.images=[{photo}]"], "cvexp.tasks.embed:embed_files"),
    "features": Job(["task=features"], "cvexp.tasks.features:fit_colors"),
    "export": Job(["task=export"], "cvexp.tasks.export:prepare"),
    "probe": Job(["task=probe"], "cvexp.tasks.probe:compute_features"),
    "register": Job(["task=register", "task.model=shapes"], "cvexp.tasks.register:prepare"),
    "demo": Job(["task=demo"], "cvexp.demo.server:serve"),
    "study": Job(["task=study", "task.steps=1", "task.starts=[random]", "task.fractions=[1]", "task.seeds=[{number}]"]),
    "sweep": Job(["-m", *MULTICLASS, "seed={number},1{number}"]),
    "resume": Job(["resume={killed}"]),
    "continue": Job(["run={finished}", "trainer.max_epochs=2", "trainer.max_steps=2"]),
}


class Measured(NamedTuple):
    """Seconds until the work of a job began, those of the imports and in MLflow's client, and its number of calls."""

    total: float
    imports: float
    store: float
    calls: float


def start_job(started: float, begins: str, words: list[str]) -> None:
    """Start a job in this process, which ends when the work begins, and print what was measured as JSON.

    Args:
        started: When the process was started, in seconds since 1970.
        begins: The function with which the work begins.
        words: The command line.
    """
    from cvexp.app import main as run_job
    from cvexp.tracking import store  # noqa: F401, imported by each job

    path, _, name = begins.partition(":")
    module, _, last = path.rpartition(".")
    owner = importlib.import_module(path) if last.islower() else getattr(importlib.import_module(module), last)
    imports = time.time() - started
    spent = {"seconds": 0.0, "calls": 0, "depth": 0}

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def call(*arguments: Any, **keywords: Any) -> Any:
            began = time.perf_counter()
            spent["depth"] += 1
            try:
                return method(*arguments, **keywords)
            finally:
                spent["depth"] -= 1
                if not spent["depth"]:
                    spent["seconds"] += time.perf_counter() - began
                    spent["calls"] += 1

        return call

    def stop(*_: Any, **__: Any) -> None:
        print(json.dumps([time.time() - started, imports, spent["seconds"], spent["calls"]]), flush=True)
        os._exit(0)

    for method_name, method in list(vars(MlflowClient).items()):
        if callable(method) and (method_name == "__init__" or not method_name.startswith("_")):
            setattr(MlflowClient, method_name, timed(method))
    setattr(owner, name, stop)
    sys.argv = ["cvexp", *words]
    run_job()


def measure(job: Job, names: dict[str, str], folder: Path) -> Measured:
    """Start a job in a process of its own."""
    words = [word.format(**names) for word in job.words]
    command = [sys.executable, __file__, f"--start={time.time()}", job.begins, *words, f"tracking.folder={folder}"]
    ran = subprocess.run(command, capture_output=True, text=True)
    line = next((line for line in ran.stdout.splitlines() if line.startswith("[") and line.count(",") == 3), None)
    if line is None:
        raise RuntimeError(f"{' '.join(words)}: {ran.stdout[-2000:]} {ran.stderr[-2000:]}")
    return Measured(*json.loads(line))


def make_runs(folder: Path) -> dict[str, str]:
    """Train tiny runs, run jobs on them, and return what the jobs name, unless an earlier start has done it.

    Returns:
        The ids of a finished run and of one that counts as killed, and the path of a photograph.
    """
    path = folder / "names.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    for words in REAL:
        subprocess.run(
            [sys.executable, "-m", "cvexp", *words, f"tracking.folder={folder}"], check=True, stdout=subprocess.DEVNULL
        )
    client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("cvexp")
    assert experiment is not None
    finished, killed = client.search_runs([experiment.experiment_id], "tags.task = 'dino'")
    client.set_terminated(killed.info.run_id, "KILLED")
    photo = folder / "photo.png"
    Image.effect_mandelbrot((80, 60), (-2, -1.5, 1, 1.5), 20).convert("RGB").save(photo)
    names = {"finished": finished.info.run_id, "killed": killed.info.run_id, "photo": str(photo)}
    path.write_text(json.dumps(names))
    return names


def copy_rows(database: Connection, num_runs: int) -> None:
    """Copy all rows of the finished runs until there are `num_runs` of these, each older than the one before."""

    def execute(text: str, values: Any = None) -> Any:
        return database.execute(sqlalchemy.text(text), values)

    ids = [row[0] for row in execute("SELECT run_uuid FROM runs WHERE status = 'FINISHED' ORDER BY start_time")]
    oldest = execute("SELECT min(start_time) FROM runs").scalar()
    execute(
        "CREATE TEMPORARY TABLE copies (old varchar(32), id varchar(32), number char(8), started bigint, seed text)"
    )
    if len(ids) >= num_runs:
        return
    rows = [
        {
            "old": ids[i % len(ids)],
            "id": f"{ids[i % len(ids)][:24]}{i:08x}",
            "number": f"{i:08x}",
            "started": oldest - 60_000 * (i + 1),
            "seed": f"{i % NUM_SEEDS}",
        }
        for i in range(num_runs - len(ids))
    ]
    execute("INSERT INTO copies VALUES (:old, :id, :number, :started, :seed)", rows)
    values = {
        "run_uuid": "c.id",
        "destination_id": "c.id",
        "input_uuid": "substr(r.input_uuid, 1, 24) || c.number",
        "start_time": "c.started",
        "value": "r.value",
    }
    of_run = "copies c ON c.old = r.run_uuid"
    sources = {
        "runs": of_run,
        "params": of_run,
        "tags": of_run,
        "metrics": of_run,
        "latest_metrics": of_run,
        "inputs": "copies c ON c.old = r.destination_id",
        "input_tags": "inputs i ON i.input_uuid = r.input_uuid JOIN copies c ON c.old = i.destination_id",
    }
    for table, source in sources.items():
        if table in ("params", "tags"):
            values["value"] = "CASE WHEN r.key = 'seed' THEN c.seed ELSE r.value END"
        else:
            values["value"] = "r.value"
        columns = [column["name"] for column in sqlalchemy.inspect(database).get_columns(table)]
        picked = ", ".join(values.get(column, f"r.{column}") for column in columns)
        execute(f"INSERT INTO {table} ({', '.join(columns)}) SELECT {picked} FROM {table} r JOIN {source}")


def show(name: str, stores: dict[str, list[Measured]]) -> None:
    """Print the median of what was measured of a job in each store."""
    parts = []
    for store, repeated in stores.items():
        total, imports, seconds, calls = (median(values) for values in zip(*repeated, strict=True))
        parts.append(f"{store}: {total:5.2f} s, imports {imports:.2f} s, MLflow {seconds:5.2f} s in {calls:.0f} calls")
    print(f"{name:24} {'   '.join(parts)}", flush=True)


def main() -> None:
    folder, *rest = sys.argv[1:]
    options = dict(word.split("=", 1) for word in rest)
    stores = ("server",) if "database" in options else ("small", "large")
    places = {store: Path(folder).absolute() / store for store in stores}
    num_runs, repeats = int(options.get("runs", 10_000)), int(options.get("repeats", 3))
    chosen = options["only"].split(",") if "only" in options else list(JOBS)
    names = {store: make_runs(place) for store, place in places.items()}
    address = options.get("database", f"sqlite:///{places.get('large')}/mlflow.db")
    with sqlalchemy.create_engine(address).begin() as database:
        copy_rows(database, num_runs)
    for name in chosen:
        measured: dict[str, list[Measured]] = {store: [] for store in places}
        for _ in range(repeats):
            for store, place in places.items():
                # another number each time, so that a sweep does not go on with an earlier one
                measured[store].append(
                    measure(JOBS[name], {**names[store], "number": str(time.time_ns() % 10**6)}, place)
                )
        show(name, measured)


if __name__ == "__main__":
    if sys.argv[1].startswith("--start="):
        start_job(float(sys.argv[1].partition("=")[2]), sys.argv[2], sys.argv[3:])
    else:
        main()
