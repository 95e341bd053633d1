"""Two processes that train one model, started by torchrun on the CPU."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import TINY, Outcome, finish, runs, store, torchrun, training_losses

# A backbone without batch norm, whose statistics would be those of each process's own part of the batch.
DINO = [*TINY, "backbone.name=test_vit", "task.eval_size=32", "dataset.train_images=24"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_like_one_with_the_same_global_batch(cvexp: Callable[..., Outcome]) -> None:
    steps = ["trainer.max_steps=20", "trainer.max_epochs=20"]
    finish(torchrun("trainer=ddp", *DINO, *steps, "tracking.folder=two"), seconds=500)
    assert cvexp(*DINO, *steps, "tracking.folder=one").code == 0
    two, one = training_losses(Path("two")), training_losses(Path("one"))
    assert len(two) == 20
    assert two == pytest.approx(one, abs=1e-4)
    folders = [path for path in Path("two").glob("runs/*/*") if path.is_dir()]
    assert len(folders) == 1
    assert len(list(Path("two").glob("**/cvexp.log"))) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("task", ["multiclass", "attention"])
def test_segmentation_trains_in_two_processes(task: str) -> None:
    settings = ["backbone=resnet_mini", "dataset.train_images=12", "dataset.val_images=6", "dataset.image_size=64"]
    settings += ["task.decoder_channels=8", "loader.batch_size=6", "loader.num_workers=0", "trainer.max_steps=3"]
    finish(torchrun("trainer=ddp", f"task={task}", *settings, "tracking.system_metrics=false"), seconds=500)
    (run,) = runs()
    assert run.info.status == "FINISHED"
    assert {"best/miou", "train/loss", "val/loss"} <= set(run.data.metrics)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_stop_at_the_same_step_and_are_resumed() -> None:
    process = torchrun("trainer=ddp", *DINO, "trainer.max_epochs=30")
    while process.poll() is None and not list(Path("outputs").glob("artifacts/*/artifacts/checkpoints/last.ckpt")):
        time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    (run,) = runs()
    assert run.info.status == "KILLED"
    last_step = max(metric.step for metric in store().get_metric_history(run.info.run_id, "train/loss"))
    finish(torchrun(f"resume={run.info.run_id}"), seconds=500)
    (run,) = runs()
    assert run.info.status == "FINISHED"
    history = [metric.step for metric in store().get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(history) == list(range(len(history)))
    assert max(history) > last_step


@pytest.mark.parametrize(
    ("environment", "arguments", "message"),
    [
        ({}, ["trainer=ddp"], "start several with: torchrun"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, [], "there are 2 processes; add trainer=ddp"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, ["task=compare", "trainer=ddp"], "compare runs in one process"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, ["-m", "seed=0,1", "trainer=ddp"], "a sweep runs in one process"),
    ],
)
def test_what_does_not_fit_several_processes_is_refused(
    cvexp: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    arguments: list[str],
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    outcome = cvexp(*arguments)
    assert outcome.code == 1
    assert message in outcome.message
