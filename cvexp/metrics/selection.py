"""The epoch that a run selects for best.ckpt: the last one, or the best one by a metric of the validation.

A loss is best when smallest, any other metric when largest.
"""

from __future__ import annotations

from collections.abc import Mapping

LAST = "last"  # what `task.monitor` names besides metrics


def objective(monitor: str) -> str:
    """Return the metric that sweeps and pruners compare runs by: the monitored one, or for `last` the loss."""
    return "val/loss" if monitor == LAST else monitor


def direction(monitor: str) -> str:
    """Return whether to ``"minimize"`` or to ``"maximize"`` the metric that runs are compared by."""
    return "minimize" if objective(monitor).endswith("loss") else "maximize"


def selects(monitor: str, metrics: Mapping[str, float], best: Mapping[str, float]) -> bool:
    """Return whether a new epoch replaces the selected one.

    Args:
        monitor: ``"last"``, or the name of a metric.
        metrics: The metrics at the new epoch.
        best: The metrics at the epoch selected so far; empty if there is none.
    """
    if monitor == LAST or not best:
        return True
    sign = 1 if direction(monitor) == "maximize" else -1
    return sign * metrics[monitor] > sign * best[monitor]


def describe(monitor: str, epoch: float, num_epochs: int) -> str:
    """Return the selected epoch and why it is selected, such as ``"epoch 7 of 12: the lowest val/loss"``.

    Args:
        monitor: ``"last"``, or the name of a metric.
        epoch: The selected epoch, counted from 0.
        num_epochs: The number of epochs done.
    """
    extreme = "lowest" if direction(monitor) == "minimize" else "highest"
    reason = "the last one" if monitor == LAST else f"the {extreme} {monitor}"
    return f"epoch {epoch + 1:.0f} of {num_epochs}: {reason}"
