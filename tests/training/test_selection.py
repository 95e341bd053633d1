"""The epoch of best.ckpt: recorded, described, kept over an interruption, and what sweeps compare."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cvexp.tasks.dino import DINO
from tests.helpers import TINY, Outcome, checkpoint, histories, interrupted_at, runs
from tests.sweeps.test_grid import jobs, summary
from tests.sweeps.test_search import SEARCH, study

pytestmark = pytest.mark.slow  # all of these tests train

SETTINGS = [*TINY, "trainer.max_epochs=3", "dataset.root=data"]


def set_losses(monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    """Replace the validation losses of the untrained network and after each epoch."""
    original = DINO.log_validation

    def log_validation(self: DINO, metrics: dict[str, float]) -> None:
        original(self, {**metrics, "loss": losses[self.epochs_done]})

    monkeypatch.setattr(DINO, "log_validation", log_validation)


def test_the_last_epoch_is_selected_by_default(cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    set_losses(monkeypatch, 4, 1, 3, 2)
    outcome = cvexp(*SETTINGS)
    assert outcome.code == 0, outcome.message
    assert "best.ckpt  epoch 3 of 3: the last one" in outcome.message
    (run,) = runs()
    assert run.data.tags["selected"] == "epoch 3 of 3: the last one"
    assert (run.data.metrics["best/epoch"], run.data.metrics["best/loss"]) == (2, 2)
    best, last = checkpoint(run, "best"), checkpoint(run)
    assert all(torch.equal(best[key], last[key]) for key in last)


def test_a_metric_selects_its_best_epoch(cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    set_losses(monkeypatch, 4, 3, 1, 2)
    outcome = cvexp(*SETTINGS, "task.monitor=val/loss")
    assert outcome.code == 0, outcome.message
    assert "best.ckpt  epoch 2 of 3: the lowest val/loss" in outcome.message
    (run,) = runs()
    assert run.data.tags["selected"] == "epoch 2 of 3: the lowest val/loss"
    assert (run.data.metrics["best/epoch"], run.data.metrics["best/loss"]) == (1, 1)
    best, last = checkpoint(run, "best"), checkpoint(run)
    assert not all(torch.equal(best[key], last[key]) for key in last)


@pytest.mark.parametrize(
    ("monitor", "before", "after"),
    [
        ("last", "epoch 1 of 1: the last one", "epoch 3 of 3: the last one"),
        ("val/loss", "epoch 1 of 1: the lowest val/loss", "epoch 1 of 3: the lowest val/loss"),
    ],
)
def test_a_resumed_run_selects_as_an_undisturbed_one(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, monitor: str, before: str, after: str
) -> None:
    set_losses(monkeypatch, 4, 1, 3, 2)
    arguments = [*SETTINGS, f"task.monitor={monitor}"]
    folder = Path("interrupted")
    assert cvexp(*arguments, "tracking.folder=undisturbed").code == 0
    per_epoch = runs(Path("undisturbed"))[0].data.metrics["best/step"] / (3 if monitor == "last" else 1)
    interrupted_at(int(per_epoch) + 1, signal.SIGTERM, DINO, cvexp, monkeypatch, arguments)
    assert runs(folder)[0].data.tags["selected"] == before
    assert cvexp("tracking.folder=interrupted", f"resume={runs(folder)[0].info.run_id}").code == 0
    (undisturbed,), (resumed,) = runs(Path("undisturbed")), runs(folder)
    assert resumed.data.tags["selected"] == undisturbed.data.tags["selected"] == after
    expected, best = checkpoint(undisturbed, "best"), checkpoint(resumed, "best")
    assert all(torch.equal(best[key], expected[key]) for key in expected)
    assert histories(Path("undisturbed"), undisturbed) == histories(folder, resumed)


def test_sweeps_compare_the_loss_at_the_last_epoch(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_losses(monkeypatch, 4, 1, 2)
    outcome = cvexp("-m", *TINY, "seed=0,1")
    assert outcome.code == 0, outcome.message
    assert [(row["metric"], row["value"]) for row in summary()] == [("loss", 2.0)] * 2


def test_a_search_minimizes_the_loss_at_the_last_epoch(cvexp: Callable[..., Outcome]) -> None:
    outcome = cvexp(*SEARCH, "hydra.sweeper.n_trials=2", "hydra.sweeper.sampler=random")
    assert outcome.code == 0, outcome.message
    assert study().direction.name == "MINIMIZE"
    last = [histories(Path("outputs"), run)["val/loss"][-1][1] for run in jobs()]
    assert {trial.value for trial in study().trials} == set(last)
