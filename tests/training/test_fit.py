"""Compiled networks and lower precision train as the plain ones do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, training_losses

pytestmark = pytest.mark.slow


def losses_of(cvexp: Callable[..., Outcome], task: str, *settings: str) -> list[float]:
    """Train three steps into a folder named after the settings, and return the losses."""
    folder = Path("-".join(settings).replace("=", "-"))
    tiny = TINY if task == "dino" else TINY_SEGMENTATION
    outcome = cvexp(f"task={task}", "trainer.max_steps=3", f"tracking.folder={folder}", *tiny, *settings)
    assert outcome.code == 0, outcome.message
    return training_losses(folder)


@pytest.mark.parametrize("task", ["dino", "attention"])
def test_a_compiled_run_has_the_losses_of_a_plain_one(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """With the backend that only traces, because compiling takes minutes."""
    original = nn.Module.compile
    compiled: list[str] = []

    def trace(network: nn.Module, *args: Any, **kwargs: Any) -> None:
        compiled.append(type(network).__name__)
        original(network, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", trace)
    plain, traced = (losses_of(cvexp, task, f"trainer.compile={setting}") for setting in ("false", "true"))
    assert compiled == (["DINONetwork", "DINONetwork"] if task == "dino" else ["AttentionSegmenter"])
    assert traced == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("task", ["dino", "multiclass"])
def test_bfloat16_has_nearly_the_same_losses(cvexp: Callable[..., Outcome], task: str) -> None:
    # On a CPU, PyTorch 2.15 sometimes returns NaN as the gradient of a convolution over feature maps of one pixel, as
    # views of 16 px have them.
    sizes = ["task.global_size=64", "task.local_size=64"] if task == "dino" else []
    single, half = (losses_of(cvexp, task, f"trainer.precision={name}", *sizes) for name in ("32-true", "bf16-mixed"))
    assert half != single
    assert half == pytest.approx(single, rel=0.05)
