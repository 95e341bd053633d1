"""Compiled networks and lower precision train as the plain ones do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, training_losses

pytestmark = pytest.mark.slow


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
    settings = [f"task={task}", "trainer.max_steps=3", *(TINY if task == "dino" else TINY_SEGMENTATION)]
    losses = {}
    for name in ("plain", "compiled"):
        outcome = cvexp(*settings, f"tracking.folder={name}", f"trainer.compile={name == 'compiled'}")
        assert outcome.code == 0, outcome.message
        losses[name] = training_losses(Path(name))
    assert compiled == (["DINONetwork", "DINONetwork"] if task == "dino" else ["AttentionSegmenter"])
    torch.testing.assert_close(losses["compiled"], losses["plain"])


@pytest.mark.parametrize("task", ["dino", "multiclass"])
def test_bfloat16_has_nearly_the_same_losses(cvexp: Callable[..., Outcome], task: str) -> None:
    settings = [f"task={task}", "trainer.max_steps=3", *(TINY if task == "dino" else TINY_SEGMENTATION)]
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        outcome = cvexp(*settings, f"tracking.folder={precision}", f"trainer.precision={precision}")
        assert outcome.code == 0, outcome.message
        losses[precision] = training_losses(Path(precision))
    assert losses["bf16-mixed"] != losses["32-true"]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=0.05)
