"""An interrupted run goes on, and ends as if nothing had happened."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import (
    TINY,
    TINY_SEGMENTATION,
    Outcome,
    assert_equal_runs,
    checkpoint,
    finish,
    histories,
    interrupted_at,
    runs,
    start,
    store,
)
from tests.tasks.test_simclr import TINY as TINY_SIMCLR

pytestmark = pytest.mark.slow  # most of these tests train, or start servers or processes


EPOCHS = 3
SETTINGS = [*TINY, f"trainer.max_epochs={EPOCHS}", "loader.num_workers=1"]


def wait_for_file(folder: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    """Wait until there is a file that matches; fail if the process ends before."""
    while not list(folder.glob(pattern)):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)


def test_killed_twice_it_ends_bit_equal(cvexp: Callable[..., Outcome]) -> None:
    assert cvexp(*SETTINGS, "tracking.folder=undisturbed", "dataset.root=data").code == 0
    generator = random.Random(time.time_ns())
    folder = Path("killed")
    arguments = [*SETTINGS, "tracking.folder=killed", "dataset.root=data"]
    for epoch in range(2):
        process = start(*arguments)
        # Somewhere between the end of one epoch's validation and, at the latest, that of the next but one.
        wait_for_file(folder, f"artifacts/*/artifacts/embeddings/epoch-000{epoch}.npz", process)
        time.sleep(generator.random() * 0.5)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert runs(folder)[0].info.status == "RUNNING"  # nobody was left to say otherwise
        arguments = ["tracking.folder=killed", f"resume={runs(folder)[0].info.run_id}"]
    assert cvexp(*arguments).code == 0
    assert_equal_runs(Path("undisturbed"), folder)


def test_killed_while_the_store_is_created_it_starts_again() -> None:
    process = start(*TINY, "trainer.max_steps=1")
    wait_for_file(Path("outputs"), "mlflow.unfinished-*", process)
    process.kill()
    process.communicate()
    assert not Path("outputs/mlflow.db").exists()
    finish(start(*TINY, "trainer.max_steps=1"))
    assert [run.info.status for run in runs()] == ["FINISHED"]
    assert not list(Path("outputs").glob("mlflow.unfinished*"))


@pytest.mark.parametrize(  # in steps inside an epoch, at its end, and after it, of 4 steps each
    ("step", "number"), [(2, signal.SIGINT), (2, signal.SIGTERM), (4, signal.SIGINT), (5, signal.SIGTERM)]
)
def test_interrupted_at_a_step_it_ends_bit_equal(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals
) -> None:
    from cvexp.tasks.dino import DINO

    arguments = [*TINY, "dataset.root=data"]
    assert cvexp(*arguments, "tracking.folder=undisturbed").code == 0
    lines: list[str] = []
    monkeypatch.setattr("cvexp.training.progress.print_line", lambda text, **_: lines.append(text))
    interrupted_at(step, number, DINO, cvexp, monkeypatch, arguments)
    assert cvexp("tracking.folder=interrupted", f"resume={runs(Path('interrupted'))[0].info.run_id}").code == 0
    assert_equal_runs(Path("undisturbed"), Path("interrupted"))
    of_epochs = [line.partition("  ")[0] for line in lines if re.match(r"epoch \d/\d  ", line)]
    assert of_epochs == ["epoch 1/2", "epoch 2/2"]


@pytest.mark.parametrize("task", ["multiclass", "attention"])
def test_an_interrupted_segmentation_ends_bit_equal_without_what_it_started_from(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    from cvexp.models.backbone import create_backbone
    from cvexp.training.segmentation import SegmentationTraining

    torch.save(create_backbone("test_resnet").state_dict(), "start.pth")
    arguments = [f"task={task}", *TINY_SEGMENTATION, "dataset.root=data", "backbone.weights=start.pth"]
    assert cvexp(*arguments, "tracking.folder=undisturbed").code == 0
    interrupted_at(2, signal.SIGTERM, SegmentationTraining, cvexp, monkeypatch, arguments)  # of 3 steps an epoch
    Path("start.pth").unlink()
    outcome = cvexp("tracking.folder=interrupted", f"resume={runs(Path('interrupted'))[0].info.run_id}")
    assert outcome.code == 0, outcome.message
    assert_equal_runs(Path("undisturbed"), Path("interrupted"))


@pytest.mark.parametrize("task", ["simclr", "multiclass", "attention"])
def test_after_a_loader_process_was_killed_a_run_ends_bit_equal(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    from cvexp.data.batches import Batches

    original = Batches.__getitem__

    def killed(self: Batches, keys: Sequence[tuple[int, int]]) -> Any:
        if torch.utils.data.get_worker_info() is not None and keys[0][0] == 1:  # in the second epoch
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, keys)

    settings = TINY_SIMCLR if task == "simclr" else TINY_SEGMENTATION
    arguments = [f"task={task}", *settings, "loader.num_workers=1", "dataset.root=data"]
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__getitem__", killed)
        outcome = cvexp(*arguments, "tracking.folder=disturbed")
    assert outcome.code == 1
    (run,) = runs(Path("disturbed"))
    assert run.info.status == "FAILED"
    resume = [f"resume={run.info.run_id}", "tracking.folder=disturbed"]
    assert "loader: a worker process " in outcome.message  # PyTorch's words for what became of it differ
    assert "if the machine ran out of memory, lower loader.num_workers" in outcome.message
    assert outcome.message.strip().endswith(f"resume the run with: python -m cvexp {' '.join(resume)}")
    assert cvexp(*resume).code == 0
    assert cvexp(*arguments, "tracking.folder=undisturbed").code == 0
    assert_equal_runs(Path("undisturbed"), Path("disturbed"))


def test_a_picture_of_which_only_half_was_written_is_drawn_again(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow writes two files for each picture, and the run was killed between them."""
    from cvexp.training.segmentation import SegmentationTraining

    arguments = ["task=multiclass", *TINY_SEGMENTATION, "task.picture_every_n_epochs=1", "dataset.root=data"]
    assert cvexp(*arguments, "tracking.folder=undisturbed").code == 0
    interrupted_at(4, signal.SIGTERM, SegmentationTraining, cvexp, monkeypatch, arguments)  # of 3 steps an epoch
    (picture,) = Path("interrupted").glob("artifacts/*/artifacts/images/predictions+step+3+*.png")
    shutil.copy(picture, picture.with_name(picture.name.replace("step+3", "step+6")))
    assert cvexp("tracking.folder=interrupted", f"resume={runs(Path('interrupted'))[0].info.run_id}").code == 0
    assert_equal_runs(Path("undisturbed"), Path("interrupted"))


def test_resume_refuses_a_changed_configuration_and_shows_the_difference(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cvexp.training import module

    with monkeypatch.context() as patch:
        patch.setattr(module, "make_optimizer", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        assert cvexp(*TINY).code == 128 + signal.SIGTERM
    run_id = runs()[0].info.run_id
    refused = cvexp(f"resume={run_id}", "optimizer.lr=0.5", "task.out_dim=32", "backbone=vit_small")
    assert refused.code == 1
    assert "optimizer.lr was 0.001, now 0.5" in refused.message
    assert "backbone.name was test_resnet, now vit_small_patch16_224" in refused.message
    assert "task.out_dim" not in refused.message
    assert runs()[0].info.status == "KILLED"
    assert cvexp(f"resume={run_id}", *TINY).code == 0  # the same command again
    finished = cvexp(f"resume={run_id}")
    assert finished.code == 1
    assert "has finished" in finished.message


def test_a_run_that_still_goes_on_is_not_taken_over(cvexp: Callable[..., Outcome]) -> None:
    process = start(*TINY, "trainer.max_epochs=500")
    wait_for_file(Path("outputs"), "artifacts/*/artifacts/checkpoints/last.ckpt", process)
    refused = cvexp(f"resume={runs()[0].info.run_id}")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert refused.code == 1
    assert "still running in another process" in refused.message
    assert process.returncode == 128 + signal.SIGTERM
    assert f"resume={runs()[0].info.run_id}" in output
    assert runs()[0].info.status == "KILLED"


def test_a_run_stopped_after_its_last_step_goes_on_without_training(cvexp: Callable[..., Outcome]) -> None:
    assert cvexp(*TINY, "trainer.max_epochs=3", "trainer.max_steps=1").code == 0
    (run,) = runs()
    trained = checkpoint(run)
    store().set_terminated(run.info.run_id, "KILLED")
    outcome = cvexp(f"resume={run.info.run_id}")
    assert outcome.code == 0, outcome.message
    assert [step for step, _ in histories(Path("outputs"), run)["train/loss"]] == [0]
    assert all(torch.equal(trained[key], value) for key, value in checkpoint(run).items())
