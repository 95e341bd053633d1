"""What tests share: small data sets, tiny runs, and two ways to run cvexp, in this process and in one of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from cvexp.composition import check, compose_yaml

DATA = Path(os.environ.get("CVEXP_DATA", Path(__file__).parents[2] / "shared" / "data"))

# The smallest run that has everything: two epochs of four steps with a backbone of half a million parameters.
TINY = [
    "backbone.name=test_resnet",
    "dataset.train_images=12",
    "dataset.val_images=6",
    "task.global_size=32",
    "task.local_size=16",
    "task.local_crops=1",
    "task.hidden_dim=32",
    "task.bottleneck_dim=16",
    "task.out_dim=32",
    "loader.batch_size=8",
    "loader.num_workers=0",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "tracking.system_metrics=false",
    "tracking.log_every_n_steps=1",
]

# The same for the tasks that segment.
TINY_SEGMENTATION = [
    "backbone.name=test_resnet",
    "dataset.train_images=12",
    "dataset.val_images=6",
    "dataset.image_size=64",
    "task.decoder_channels=8",
    "task.atrous_rates=[1,2,3]",
    "loader.batch_size=4",
    "loader.num_workers=0",
    "trainer.max_epochs=2",
    "trainer.accelerator=cpu",
    "tracking.system_metrics=false",
    "tracking.log_every_n_steps=1",
]


def write_coco(root: Path, train: int = 8, val: int = 4) -> Path:
    """A COCO data set of noise with one cat or dog in each image."""
    random = np.random.RandomState(0)
    (root / "annotations").mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        images, annotations = [], []
        (root / f"{split}2017").mkdir()
        for i in range(count):
            name = f"{split}{i}.jpg"
            Image.fromarray(random.randint(0, 256, (60, 80, 3), dtype=np.uint8)).save(root / f"{split}2017" / name)
            images.append({"id": i, "file_name": name, "width": 80, "height": 60})
            box = [5 + i, 5, 40, 45]
            polygon = [5 + i, 5, 45 + i, 5, 45 + i, 50, 5 + i, 50]
            own = {"id": i, "image_id": i, "category_id": 17 + i % 2, "iscrowd": 0}
            annotations.append({**own, "bbox": box, "segmentation": [polygon]})
        categories = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


def dataset(name: str, root: Path | str | None = None, **keys: object) -> Any:
    """Return the configuration of a data source, from its YAML."""
    overrides = [f"dataset={name}"] + ([] if root is None else [f"dataset.root={root}"])
    composed = compose_yaml(overrides)
    OmegaConf.set_struct(composed, False)
    for key, value in keys.items():
        composed.dataset[key] = value
    return check(composed).dataset


class Outcome(NamedTuple):
    """How a run of `main` ended: its exit status, and what it printed."""

    code: int
    message: str


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start `python -m cvexp` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "cvexp", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


def finish(process: subprocess.Popen[str], seconds: float = 240) -> str:
    """Wait for a process and give what it printed; fail unless it ended well."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output
    return output


def store(folder: Path = Path("outputs")) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{(folder / 'mlflow.db').absolute()}")


def runs(folder: Path = Path("outputs")) -> list[mlflow.entities.Run]:
    """All runs, the newest first."""
    client = store(folder)
    return list(client.search_runs([client.get_experiment_by_name("cvexp").experiment_id]))


@contextlib.contextmanager
def mlflow_server(*arguments: str, port: str = "") -> Iterator[str]:
    """A real MLflow server on this machine, by its address; at a free port unless one is given."""
    if not port:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--port", port, "--workers", "1", *arguments]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, start_new_session=True, **quiet) as server:  # type: ignore[call-overload]
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"{address}/health").close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield address
        finally:
            os.killpg(server.pid, signal.SIGTERM)
