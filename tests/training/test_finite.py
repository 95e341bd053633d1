"""A loss or a weight that is not finite ends the run, and no checkpoint holds it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.trainer.connectors.accelerator_connector import _AcceleratorConnector
from torch import Tensor

from cvexp import plugins
from cvexp.training.finite import Losses
from cvexp.training.module import TrainingModule
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, assert_equal_runs, checkpoint, runs, torchrun
from tests.tasks.test_simclr import TINY as TINY_SIMCLR

SETTINGS = {"dino": TINY, "simclr": TINY_SIMCLR, "multiclass": TINY_SEGMENTATION, "attention": TINY_SEGMENTATION}


def test_the_first_step_is_remembered_without_waiting_for_the_device() -> None:
    losses = Losses()
    losses.note(torch.zeros((), device="meta"), 0)  # whose values can't be read
    losses = Losses()
    strategy = SingleDeviceStrategy("cpu")
    assert losses.first_step(strategy) is None
    for step, loss in enumerate([1.0, float("inf"), 2.0, float("nan")]):
        assert losses.first_step(strategy) == (None if step <= 1 else 1)
        losses.note(torch.tensor(loss), step)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["dino", "simclr", "multiclass", "attention"])
def test_a_loss_that_is_not_finite_ends_the_run_at_that_step(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    method = plugins.load("task", task).Method
    original = method.step
    kept: list[bytes] = []

    def step(self: TrainingModule, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = original(self, batch)
        if self.global_step == 5:
            (last,) = Path("disturbed").glob("artifacts/*/artifacts/checkpoints/last.ckpt")
            kept.append(last.read_bytes())
            loss = loss * float("inf")
        return loss, metrics

    arguments = [f"task={task}", *SETTINGS[task], "dataset.root=data"]
    with monkeypatch.context() as patch:
        patch.setattr(method, "step", step)
        outcome = cvexp(*arguments, "tracking.folder=disturbed", "tracking.log_every_n_steps=100")
    assert outcome.code == 1
    assert len(outcome.message.strip().splitlines()) == 1, outcome.message
    (run,) = runs(Path("disturbed"))
    assert "the training loss is nan or infinite in step 5, in epoch 2; lower optimizer.lr" in outcome.message
    assert f"backbone.weights=runs:/{run.info.run_id}/checkpoints/last.ckpt" in outcome.message
    assert run.info.status == "FAILED"
    assert "in step 5" in run.data.tags["error"]
    (last,) = Path("disturbed").glob("artifacts/*/artifacts/checkpoints/last.ckpt")
    assert [last.read_bytes()] == kept
    assert all(value.isfinite().all() for value in checkpoint(run).values())


@pytest.mark.slow
def test_weights_that_are_not_finite_are_not_saved(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the last step of an epoch, in a head that the validation loss does not show."""
    from cvexp.tasks.dino import DINO

    original = DINO.log_pictures

    def log_pictures(self: DINO) -> None:
        original(self)
        if self.global_step == 8:
            torch.nn.init.constant_(next(self.student.head.parameters()), float("nan"))

    arguments = [*TINY, "dataset.root=data"]
    with monkeypatch.context() as patch:
        patch.setattr(DINO, "log_pictures", log_pictures)
        outcome = cvexp(*arguments, "tracking.folder=disturbed")
    assert outcome.code == 1
    assert "after 8 steps, weights are nan or infinite (student.head" in outcome.message
    (run,) = runs(Path("disturbed"))
    for name in ("best", "last"):
        assert all(value.isfinite().all() for value in checkpoint(run, name).values())
    assert cvexp("tracking.folder=disturbed", f"resume={run.info.run_id}").code == 0  # if it was the machine
    assert cvexp(*arguments, "tracking.folder=undisturbed").code == 0
    assert_equal_runs(Path("undisturbed"), Path("disturbed"))


@pytest.mark.slow
def test_several_processes_stop_together() -> None:
    settings = [*TINY, "backbone.name=test_vit", "optimizer.lr=1e30", "optimizer.clip_norm=null", "trainer=ddp"]
    process = torchrun(*settings, "trainer.accelerator=cpu", "trainer.max_epochs=2")
    output, _ = process.communicate(timeout=240)
    assert process.returncode != 0
    assert output.count("cvexp: error: the training loss is nan or infinite in step") == 1, output
    assert "another process" not in output
    (run,) = runs()
    assert run.info.status == "FAILED"
    assert not list(Path("outputs").glob("artifacts/*/artifacts/checkpoints/*"))


@pytest.mark.slow
def test_steps_that_the_scaler_of_half_precision_skips_do_not_end_the_run(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning offers half precision only on GPUs, but its scaler works on a CPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**120)
    half = MixedPrecision("16-mixed", "cpu", scaler)
    monkeypatch.setattr(_AcceleratorConnector, "_check_and_init_precision", lambda self: half)
    outcome = cvexp("task=multiclass", *TINY_SEGMENTATION, "trainer.precision=16-mixed")
    assert outcome.code == 0, outcome.message
    assert scaler.get_scale() < 2.0**120
    assert all(value.isfinite().all() for value in checkpoint(runs()[0]).values())
