"""Compiled networks train as the others do. The backend that only traces is used, because compiling takes minutes."""

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
