"""What a training run says: what it is about to do, how far it is, and how long it will take."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from cvexp.training import progress as training_progress
from cvexp.training.announcement import batch_advice
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, runs

pytestmark = pytest.mark.slow

TASKS = {
    "dino": TINY,
    "simclr": [
        *(word for word in TINY if not re.match(r"task\.(global|local|bottleneck|out)", word)),
        "task.size=32",
    ],
    "multiclass": TINY_SEGMENTATION,
    "attention": TINY_SEGMENTATION,
}


@pytest.mark.parametrize(
    ("batch_size", "num_samples", "suggested"),
    [(64, 82, 16), (64, 210, 32), (64, 256, None), (8, 26, None), (32, 40, 8), (4000, 9000, 1024)],
)
def test_smaller_batches_are_suggested_for_few_images(batch_size: int, num_samples: int, suggested: int | None) -> None:
    advice = batch_advice(batch_size, num_samples, num_samples // batch_size)
    assert (advice is None) == (suggested is None)
    assert advice is None or f"with loader.batch_size={suggested}, " in advice


@pytest.mark.parametrize("task", TASKS)
def test_the_first_line_says_what_is_trained_and_the_second_run_for_how_long(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.setattr(training_progress, "MEASURED_SECONDS", 0.0)
    monkeypatch.setattr(training_progress, "LONG", 0.0)
    words = [f"task={task}", *TASKS[task], "tracking.progress_seconds=0.02"]
    if task != "dino":  # one epoch says enough
        words.append("trainer.max_epochs=1")
    outcome = cvexp(*words)
    assert outcome.code == 0, outcome.message
    lines = outcome.message.splitlines()
    samples = "crops" if task in ("dino", "simclr") else "images"
    (first,) = (line for line in lines if line.startswith(f"{task}: "))
    pattern = (
        rf"{task}: test_resnet, \d\.\d M parameters; shapes: [\d,]+ training and \d+ validation {samples}; "
        rf"cpu, \d+ threads?, 32-true; \d+ steps of \d {samples}, in epochs of \d; time: after the first steps"
    )
    assert re.fullmatch(pattern, first), first
    assert f"if it is interrupted, go on with: python -m cvexp resume={runs()[0].info.run_id}" in lines
    assert sum(line.startswith("measured: ") for line in lines) == 1
    if task == "dino":  # whose steps last long enough
        assert any(re.match(r"validating the untrained network: \d+/\d+ batches, ", line) for line in lines), lines
        assert any(re.match(r"epoch 1/\d: \d+/\d+ steps, .*\d+ images/s, \d:\d\d:\d\d left", line) for line in lines), (
            lines
        )
    assert any(re.match(r"epoch 1/\d  loss .* \d+ images/s  \d:\d\d:\d\d left", line) for line in lines), lines
    assert any(re.fullmatch(r"all runs   http://.*/runs\?viewStateShareKey=cvexp", line) for line in lines), lines
    assert lines[-1].startswith("next: python -m cvexp task=")
    (run,) = runs()
    assert run.data.tags["device"].startswith("cpu, ")
    assert not [name for name in run.data.metrics if "progress" in name]

    again = cvexp(*words[:-1], "trainer.max_steps=1", "seed=1", "tracking.progress_seconds=null")
    assert re.search(rf"; about \d:\d\d:\d\d, as the run {run.info.run_id}\n", again.message), again.message
    assert "validating" not in again.message
    assert not re.search(r"epoch 1/\d: ", again.message)


def test_without_settings_it_says_what_it_does(cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    from cvexp.tasks import dino

    monkeypatch.setattr(dino, "main", lambda config, run: None)
    outcome = cvexp()
    assert outcome.code == 0
    assert outcome.message.startswith("Without settings, cvexp pretrains with DINO on generated images.")
    assert "Without settings" not in cvexp("seed=1").message
