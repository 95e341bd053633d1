"""Losses and weights that are not finite numbers: found without waiting for the device at each step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from pytorch_lightning.strategies import Strategy
from torch import Tensor, nn

from cvexp.errors import UserError
from cvexp.tracking.run import ReadOnlyRun

NEVER = 2**62  # larger than any step


class NotFiniteError(UserError):
    """A loss or a weight is NaN or infinite. No checkpoint was written since."""


class Losses:
    """Notes on the device which training loss was the first that is not finite."""

    def __init__(self) -> None:
        self._first: Tensor | None = None

    def note(self, loss: Tensor, step: int) -> None:
        """Note the loss of this process in a step."""
        if self._first is None:
            self._first = torch.full((), NEVER, device=loss.device)
        self._first = torch.where(loss.detach().isfinite(), self._first, self._first.clamp(max=step))

    def first_step(self, strategy: Strategy) -> int | None:
        """Return the first step whose loss was not finite in one of the processes. It waits for the device."""
        if self._first is None:
            return None
        step = int(strategy.reduce(self._first.clone(), reduce_op="min"))
        return None if step == NEVER else step


def not_finite(network: nn.Module) -> list[str]:
    """Return the names of all weights that are not finite, and of buffers with NaN. Masks may be infinite."""
    marks = {name: ~parameter.isfinite().all() for name, parameter in network.named_parameters()}
    marks |= {name: buffer.isnan().any() for name, buffer in network.named_buffers()}
    if not torch.stack(list(marks.values())).any():
        return []
    return [name for name, is_marked in marks.items() if is_marked]


@contextlib.contextmanager
def last_good_named(run: ReadOnlyRun) -> Iterator[None]:
    """Add to the message of a `NotFiniteError` what can be done with the last checkpoint of a run.

    Resuming would give the same loss again, because a run is a function of its configuration.
    """
    try:
        yield
    except NotFiniteError as error:
        if run.last_checkpoint is None:
            raise
        raise UserError(
            f"{error}; to start from the last good weights, add backbone.weights=runs:/{run.id}/checkpoints/last.ckpt"
        ) from error
