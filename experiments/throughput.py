"""Is the training step kept busy? The script compares the images per second of `fit` and of the bare step.

    python experiments/throughput.py task.global_size=96 task.local_size=48 trainer.max_steps=60
    python experiments/throughput.py task=multiclass

The bare step is the module's loss, backward pass, clipping and optimizer step on one batch already in memory. `fit`
adds augmentation, loading, callbacks and logging. Any pretraining or segmentation task and any override can be used.
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import cvexp
from cvexp import data, plugins
from cvexp.tracking.opening import open_run
from cvexp.training.fit import fit
from cvexp.training.module import TrainingModule


def bare_step_speed(module: TrainingModule, batch: Any, seconds: float = 30.0) -> float:
    """Measure how many images per second the training step alone processes."""
    optimizer = module.configure_optimizers()
    clip_norm = module.config.optimizer.clip_norm
    num_images, started = 0, 0.0
    while not num_images or time.perf_counter() - started < seconds:
        loss, _ = module.step(batch)
        optimizer.zero_grad()
        loss.backward()
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(module.trained_network().parameters(), clip_norm)
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        module.after_optimizer_step(module.done)
        if not started:  # the first step is a warmup
            started = time.perf_counter()
        else:
            num_images += len(batch[1])
    return num_images / (time.perf_counter() - started)


def main() -> None:
    os.environ["CVEXP_START"] = "throughput"
    with tempfile.TemporaryDirectory() as folder:
        config = cvexp.compose(f"tracking.folder={folder}", *sys.argv[1:])
        splits = data.load(config.dataset, config.task.role)
        with open_run(config, Path(folder)) as run:
            module = plugins.load("task", config.task.name).Method(config, splits, run)
            fit(module, run, monitor="val/loss")
            speeds = [value for _, value in run.history("speed/images_per_second")]
            waits = [value for _, value in run.history("speed/data_wait")]
            batch = module.on_after_batch_transfer(next(iter(module.train_dataloader())), 0)
            bare = bare_step_speed(module.train(), batch)
    print(f"bare step {bare:.1f} images/s, fit {max(speeds):.1f} images/s, ratio {max(speeds) / bare:.2f}; ", end="")
    print(f"waited {min(waits):.1%}")


if __name__ == "__main__":
    main()
