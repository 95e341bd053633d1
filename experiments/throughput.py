"""Is the training step kept fed? Images per second of `fit` against those of the bare step, in one run.

    python experiments/throughput.py task.global_size=96 task.local_size=48 trainer.max_steps=60

The bare step is the same module's loss, backward pass, clipping, optimizer step and teacher update on one batch that
is ready; `fit` adds augmentation, loading, callbacks and logging. Takes the overrides of `python -m cvexp`.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir

from cvexp import data
from cvexp.composition import CONF, check
from cvexp.models.dino import update_teacher
from cvexp.tasks.dino import DINO
from cvexp.tracking import run as tracking
from cvexp.training import fit as training


def bare_step_speed(module: DINO, views: list[torch.Tensor], seconds: float = 30.0) -> float:
    """Images per second of the step alone."""
    optimizer = module.configure_optimizers()
    images, started = 0, 0.0
    while not images or time.perf_counter() - started < seconds:
        teacher_tbk, student_vbk = module.logits(views)
        loss = module.loss(teacher_tbk, student_vbk, 0.04)
        module.loss.update_center(teacher_tbk)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.student.parameters(), 3.0)
        optimizer.step()
        update_teacher(module.teacher, module.student, 0.99)
        if not started:  # the first step warms up
            started = time.perf_counter()
        else:
            images += len(views[0])
    return images / (time.perf_counter() - started)


def main() -> None:
    os.environ["CVEXP_START"] = "throughput"
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [f"tracking.folder={folder}", "task.embed_every_n_epochs=1000", *sys.argv[1:]]
        config = check(compose("config", overrides=overrides))
        splits = data.load(config.dataset, "pretraining")
        with tracking.open_run(config, Path(folder)) as run:
            module = DINO(config, splits, run)
            training.train(module, config, run, monitor="val/loss")
            speeds = [value for _, value in run.history("speed/images_per_second")]
            waits = [value for _, value in run.history("speed/data_wait")]
            views, _ = next(iter(module.train_dataloader()))
            bare = bare_step_speed(module.train(), views)
    fit = max(speeds)
    print(f"bare step {bare:.1f} images/s, fit {fit:.1f} images/s, ratio {fit / bare:.2f}; waited {min(waits):.1%}")


if __name__ == "__main__":
    main()
