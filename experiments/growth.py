"""Does the cost of an image stay the same when the data set grows, and the memory when the run gets longer?

    python experiments/growth.py            (needs about 1 GB in a temporary folder, deleted afterwards)

The script writes folders of 1 000 and of 100 000 small images, and measures for each, in a separate process: how many
images per second DINO trains on, with and without keeping decoded images, and how long it takes from the start of
Python to the first training step, without and with the validation of the untrained network. Then it trains
for 60 short epochs, and prints the memory of the process after each tenth.

Expected (two cores): 1150 and 1210 images/s with 1 000 images, without and with keeping them, and 1123 and 1105 with
100 000. The first step comes after 5.2 s (5.6 s with validation), and with 100 000 images after 7.9 s (17.3 s with
validation, which covers 10 000 images). The memory is 747 MiB after 10 epochs and 742 MiB after 60.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytorch_lightning as pl
from PIL import Image

import cvexp
from cvexp import data
from cvexp.tasks.dino import DINO
from cvexp.training.callbacks import Schedule
from cvexp.training.fit import make_trainer
from cvexp.training.speed import measure

SIZES = (1_000, 100_000)
SIDE = 48  # pixels
SETTINGS = ["+experiment=demo", "dataset=folder", "dataset.val_images=null", "dataset.min_crop_size=1"]


def write(root: Path, num_images: int) -> None:
    """Write images of noise in folders of a thousand. Each tenth image is written, the others are links to it."""
    random = np.random.RandomState(0)
    for i in range(num_images):
        path = root / "train" / f"{i // 1000:03d}" / f"{i:06d}.png"
        if i % 1000 == 0:
            path.parent.mkdir(parents=True)
        if i % 10 == 0:
            first = path
            Image.fromarray(random.randint(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(path)
        else:
            os.link(first, path)


def settings(root: Path) -> list[str]:
    return [*SETTINGS, f"dataset.root={root}", f"tracking.folder={root}/outputs", f"dataset.cache={root}/cache"]


def speed(root: Path, keep: str) -> float:
    """Return the images per second of training."""
    command = [sys.executable, __file__, "train", str(root), keep]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def train(root: str, keep: str) -> None:
    config = cvexp.compose(*settings(Path(root)), f"dataset.keep={keep}")
    print(measure(DINO(config, data.load(config.dataset, "pretraining")), seconds=5.0)["images_per_second"])


class FirstStep(pl.Callback):
    """Reports when the first training step begins, and stops."""

    def on_train_batch_start(self, trainer: pl.Trainer, module: object, batch: object, batch_idx: int) -> None:
        print(time.time())
        os._exit(0)


def start(root: Path, validates: bool) -> float:
    """Return the seconds from the start of Python to the first step of training."""
    started = time.time()
    command = [sys.executable, __file__, "first-step", str(root), str(int(validates))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) - started


def first_step(root: str, validates: str) -> None:
    config = cvexp.compose(*settings(Path(root)))
    module = DINO(config, data.load(config.dataset, "pretraining"))
    trainer = make_trainer(module, [Schedule(config), FirstStep()], enable_progress_bar=False)
    if validates == "1":
        trainer.validate(module, verbose=False)
    trainer.fit(module)


class MemoryOfEpochs(pl.Callback):
    """Prints the memory of this process after each tenth epoch."""

    def on_train_epoch_end(self, trainer: pl.Trainer, module: object) -> None:
        if trainer.current_epoch % 10 == 9:
            used = psutil.Process().memory_full_info().uss / 2**20
            print(f"  after epoch {trainer.current_epoch + 1}: {used:.0f} MiB", flush=True)


def epochs(root: str) -> None:
    overrides = [*settings(Path(root)), "trainer.max_epochs=60", "dataset.limit=300", "task.embed_every_n_epochs=5"]
    config = cvexp.compose(*overrides)
    module = DINO(config, data.load(config.dataset, "pretraining"))
    make_trainer(module, [Schedule(config), MemoryOfEpochs()], enable_progress_bar=False).fit(module)


def main() -> None:
    if len(sys.argv) > 1:
        {"train": train, "first-step": first_step, "epochs": epochs}[sys.argv[1]](*sys.argv[2:])
        return
    with tempfile.TemporaryDirectory() as folder:
        for num_images in SIZES:
            root = Path(folder) / str(num_images)
            write(root, num_images)
            speeds = ", ".join(f"keep={keep} {speed(root, keep):.0f} images/s" for keep in ("none", "ram"))
            starts = " and ".join(f"{start(root, validates):.1f} s" for validates in (False, True))
            print(f"{num_images} images: {speeds}; first step after {starts} (with validation)", flush=True)
        print("memory:")
        subprocess.run([sys.executable, __file__, "epochs", str(Path(folder) / str(SIZES[0]))], check=True)


if __name__ == "__main__":
    main()
