"""What tests share: small data sets, tiny runs, and two ways to run cvexp, in this process and in one of its own."""

from __future__ import annotations

import contextlib
import json
import multiprocessing.pool
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlparse

import mlflow
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from cvexp.composition import check, compose_yaml
from cvexp.config import TrackingConfig

DATA = Path(os.environ.get("CVEXP_DATA", Path(__file__).parents[2] / "shared" / "data"))

# The smallest run that has everything: two epochs of four steps with a backbone of half a million parameters.
TINY = [
    "backbone.name=test_resnet",
    "dataset.train_images=12",
    "dataset.val_images=6",
    "dataset.test_images=0",
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
    "dataset.val_images=3",
    "dataset.test_images=0",
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

TRACKING = TrackingConfig(
    folder="outputs",
    experiment="cvexp",
    log_every_n_steps=1,
    system_metrics=False,
    upload_checkpoints="end",
    progress_seconds=8.0,
)

# The classes of the Freiburg course, and those of PASCAL VOC that are animals or people.
FIVE = ["person", "bicycle", "car", "cat", "dog"]
SIX = ["person", "cat", "cow", "dog", "horse", "sheep"]


def write_coco(root: Path, train: int = 8, val: int = 4) -> Path:
    """Write a COCO data set of noise with one cat or dog in each image."""
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


CAT, DOG = 17, 18  # category ids


def write_coco_objects(root: Path, categories: list[int | None]) -> Path:
    """Write a COCO data set with an object of the category in each validation image, or with none."""
    write_coco(root, val=len(categories))
    path = root / "annotations/instances_val2017.json"
    content = json.loads(path.read_text())
    shape = {"bbox": [5, 5, 40, 45], "segmentation": [[5, 5, 45, 5, 45, 50, 5, 50]]}
    objects = zip(content["annotations"], categories, strict=True)
    kept = [{**old, **shape, "category_id": category} for old, category in objects if category is not None]
    path.write_text(json.dumps({**content, "annotations": kept}))
    return root


def add_dogs(root: Path, large: int) -> None:
    """Give each training image of a COCO data set a cat of the old size and a tiny dog, and one image a large dog."""
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] = CAT
    for image in range(len(content["images"])):
        side = 40 if image == large else 9
        corners = [0, 0, side, 0, side, side, 0, side]
        own = {"id": 100 + image, "image_id": image, "category_id": DOG, "iscrowd": 0}
        content["annotations"].append({**own, "bbox": [0, 0, side, side], "segmentation": [corners]})
    path.write_text(json.dumps(content))


def save_image(path: Path, mode: str = "RGB", size: tuple[int, int] = (48, 40), seed: int | None = None) -> None:
    """Save an image of noise, which differs from those at other paths unless they have the same seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32("/".join(path.parts[-4:]).encode()) if seed is None else seed
    pixels = np.random.RandomState(seed).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def save_mask(path: Path, *rows: int) -> None:
    """Save a mask of 48 x 40 px with a band for each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.repeat(np.array(rows, dtype=np.uint8), 40 // len(rows))[:, None].repeat(48, 1)).save(path)


def make_voc(root: Path, mask: np.ndarray, mode: str = "P", masks: str = "SegmentationClass") -> Path:
    """Write a PASCAL VOC data set of two images, `a` to train and `b` to validate, with the same mask."""
    for folder in ("JPEGImages", masks, "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for seed, (split, name) in enumerate((("train", "a"), ("val", "b"))):
        pixels = np.random.RandomState(seed).randint(0, 256, (*mask.shape, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
        image = Image.fromarray(mask.astype(np.uint8))
        if mode == "P":
            image.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
        image.save(root / masks / f"{name}.png")
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(f"{name}\n")
    return root


def dataset(name: str, root: Path | str | None = None, **keys: object) -> Any:
    """Return the configuration of a data source, from its YAML."""
    overrides = [f"dataset={name}"] + ([] if root is None else [f"dataset.root={root}"])
    composed = compose_yaml(overrides)
    OmegaConf.set_struct(composed, False)
    for key, value in keys.items():
        composed.dataset[key] = value
    return check(composed).dataset


def code_blocks(page: str, language: str) -> list[str]:
    """Return the code blocks of a language in a page of the documentation."""
    text = (Path(__file__).parents[1] / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


class Outcome(NamedTuple):
    """How a run of `main` ended: its exit status, and what it printed."""

    code: int
    message: str


def start(
    *arguments: str, is_group: bool = False, environment: Mapping[str, str] | None = None, **variables: str
) -> subprocess.Popen[str]:
    """Start `python -m cvexp` in a process of its own, which can lead a group of processes as in a terminal."""
    return subprocess.Popen(
        [sys.executable, "-m", "cvexp", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {}), **variables},
        start_new_session=is_group,
    )


# Imports once, and then runs each job in a process of its own, all at the same time.
_AT_ONCE = """
import json, os, sys
import cvexp.app, cvexp.tracking.opening, cvexp.training.fit, cvexp.tasks.dino, cvexp.tasks.multiclass
jobs = json.loads(sys.argv[1])
for words in jobs:
    if os.fork() == 0:
        sys.argv = ["cvexp", *words]
        try:
            cvexp.app.main()
            os._exit(0)
        except BaseException as error:
            print(error, flush=True)
            os._exit(1)
sys.exit(any([os.wait()[1] for _ in jobs]))
"""


def start_at_once(jobs: Sequence[Sequence[str]]) -> subprocess.Popen[str]:
    """Start several jobs at the same time, each in a process of its own, in one process that waits for them."""
    return subprocess.Popen(
        [sys.executable, "-c", _AT_ONCE, json.dumps(jobs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def forked_pool() -> multiprocessing.pool.Pool:
    """Two processes for functions of tests, which have imported what those need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers", "cvexp.data"])
    return context.Pool(2)


TWO_PROCESSES = ["--nproc-per-node=2", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]


def torchrun(*arguments: str, launcher: Sequence[str] = TWO_PROCESSES) -> subprocess.Popen[str]:
    """Start `python -m cvexp` in two processes that train together, or in others that torchrun's options say."""
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "cvexp", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def training_losses(folder: Path) -> list[float]:
    """Return the losses of the only run in a folder, which must have finished."""
    (run,) = runs(folder)
    assert run.info.status == "FINISHED"
    history = store(folder).get_metric_history(run.info.run_id, "train/loss")
    return [metric.value for metric in sorted(history, key=lambda metric: metric.step)]


def assert_close_runs(first: Path, second: Path, tolerance: float = 1e-4) -> dict[str, list[tuple[int, float]]]:
    """Fail unless the only runs of two stores measured nearly the same at the same steps, and return it by metric.

    Before training, the networks are equal, so their validation must be exactly equal.
    """
    measured = []
    for folder in (first, second):
        (run,) = runs(folder)
        assert run.info.status == "FINISHED"
        measured.append({name: sorted(history) for name, history in histories(folder, run).items()})
    one, other = measured
    assert one.keys() == other.keys()
    for name, history in one.items():
        steps, values = zip(*history, strict=True)
        other_steps, other_values = zip(*other[name], strict=True)
        assert steps == other_steps, name
        assert values == pytest.approx(other_values, abs=tolerance), name
        if name.startswith("val/"):
            assert history[0] == other[name][0], name
    return one


def finish(process: subprocess.Popen[str], seconds: float = 240) -> str:
    """Wait for a process and give what it printed; fail unless it ended well."""
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output
    return output


def store(folder: Path = Path("outputs")) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{(folder / 'mlflow.db').absolute()}")


def runs(folder: Path = Path("outputs")) -> list[mlflow.entities.Run]:
    """Return all runs, the newest first."""
    client = store(folder)
    experiment = client.get_experiment_by_name("cvexp")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def checkpoint(run: mlflow.entities.Run, name: str = "last") -> dict[str, torch.Tensor]:
    """Read the tensors of a checkpoint of a run on this machine."""
    path = Path(unquote(urlparse(run.info.artifact_uri).path)) / "checkpoints" / f"{name}.ckpt"
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def histories(folder: Path, run: mlflow.entities.Run) -> dict[str, list[tuple[int, float]]]:
    """Return all metrics but those that measure the machine."""
    client = store(folder)
    return {
        name: [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
        if not name.startswith(("speed/", "system/"))
    }


def assert_equal_runs(first: Path, second: Path) -> None:
    """Fail unless the only runs of two stores have the same weights, metrics and pictures."""
    (one,), (other,) = runs(first), runs(second)
    assert (one.info.status, other.info.status) == ("FINISHED", "FINISHED")
    expected, got = checkpoint(one), checkpoint(other)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[key], got[key]) for key in expected)
    assert histories(first, one) == histories(second, other)
    pictures = [
        sorted(p.path.split("timestamp")[0] for p in store(f).list_artifacts(r.info.run_id, "images"))
        for f, r in ((first, one), (second, other))
    ]
    assert pictures[0] == pictures[1]


def interrupted_at(
    step: int,
    number: signal.Signals,
    method: type[Any],
    cvexp: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    """Start a run that gets a signal in a step, and see that it ends after that, with a checkpoint."""
    original = method.training_step

    def training_step(self: Any, batch: object, batch_idx: int) -> object:
        if self.global_step == step - 1:
            os.kill(os.getpid(), number)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(method, "training_step", training_step)
        interrupted = cvexp(*arguments, "tracking.folder=interrupted")
    assert interrupted.code == 128 + number
    (run,) = runs(Path("interrupted"))
    assert run.info.status == "KILLED"
    path = Path(urlparse(run.info.artifact_uri).path) / "checkpoints" / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == step


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@contextlib.contextmanager
def serving(
    command: Sequence[str], health: str, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a server in a folder, with further environment variables, and wait until it answers at an address."""
    folder = folder or Path.cwd()
    # MLflow's servers would otherwise start several processes for jobs.
    variables = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **(environment or {})}
    with (folder / "server.log").open("a") as log:
        server = subprocess.Popen(command, cwd=folder, env=variables, stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(health).close()
                break
            assert server.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.1)
        yield server
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


@contextlib.contextmanager
def mlflow_server(*arguments: str, port: str = "") -> Iterator[str]:
    """A real MLflow server on this machine, by its address; at a free port unless one is given."""
    port = port or free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--port", port, "--workers", "1", *arguments]
    with serving(command, f"{address}/health"):
        yield address
