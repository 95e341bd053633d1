"""Curves of metrics over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from cvexp.colors import color
from cvexp.report.style import COLUMN, PAGE, STYLE, add_legend, drawable

Series = Sequence[tuple[int, float]]


class Curve(NamedTuple):
    """A metric of a run, in training and in validation.

    Attributes:
        label: The label in the legend; runs that differ only in the seed have the same one.
        train, val: (step, value) pairs; either may be empty.
        steps_per_epoch: Number of steps in an epoch.
    """

    label: str
    train: Series
    val: Series
    steps_per_epoch: float


def compare(panels: Mapping[str, Sequence[Curve]], *, stacked: bool = False) -> Figure:
    """Draw the curves of several runs, with a panel for each metric.

    Validation is a line with dots. Training is a dashed line, smoothed by an exponential mean of about a tenth of the
    values, on top of a thin line of the raw values.

    Args:
        panels: Curves by metric, whose name labels the axis. Curves with equal labels share a color and a legend entry.
        stacked: Whether to put the panels below each other, for a narrow column, rather than side by side.
    """
    labels = list(dict.fromkeys(curve.label for curves in panels.values() for curve in curves))
    with rc_context(STYLE):
        rows, columns = (len(panels), 1) if stacked else (1, len(panels))
        figure = Figure(figsize=(COLUMN, 1.6 * rows) if stacked else (PAGE, 1.9), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False)
        for ax, (name, curves) in zip(axes.flat, panels.items(), strict=True):
            for curve in curves:
                _draw(ax, curve, color(labels.index(curve.label)))
            ax.set_xlabel("epoch")
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.set_ylabel(name)
        if handles := _legend_handles([curve for curves in panels.values() for curve in curves], labels):
            add_legend(figure, handles)
    return figure


def _draw(ax: Axes, curve: Curve, line_color: str) -> None:
    epochs, values = _arrays(curve.train, curve.steps_per_epoch)
    ax.plot(epochs, values, color=line_color, alpha=0.2, linewidth=0.6)
    dash: dict[str, Any] = (
        {"marker": "_", "markersize": 8} if len(epochs) == 1 else {}
    )  # a line of a single point is invisible
    ax.plot(epochs, smooth(values), "--", color=line_color, linewidth=1, **dash)
    epochs, values = _arrays(curve.val, curve.steps_per_epoch)
    ax.plot(epochs, values, "-o", color=line_color)


def _legend_handles(curves: Sequence[Curve], labels: Sequence[str]) -> list[Line2D]:
    """Return an entry for each label, if there are several, and entries for training and validation."""
    handles = []
    if len(labels) > 1:
        handles = [Line2D([], [], color=color(i), label=drawable(label, 40)) for i, label in enumerate(labels)]
    line_color = "black" if handles else color(0)
    if any(len(curve.train) for curve in curves):
        handles.append(Line2D([], [], color=line_color, linestyle="--", linewidth=1, label="training, smoothed"))
    if any(len(curve.val) for curve in curves):
        handles.append(Line2D([], [], color=line_color, marker="o", label="validation"))
    return handles


def training_metric(recorded: Mapping[str, Any], name: str) -> str | None:
    """Return the name of the training metric for a validation metric, such as `train/miou` for `val/miou`.

    A method appends a word, as in `train/miou_asked`, if its training metric is measured in another way.

    Args:
        recorded: All metrics of the run, by name.
        name: The validation metric.

    Returns:
        The name, or None if the run has no such metric.
    """
    exact = name.replace("val/", "train/", 1)
    return min((other for other in recorded if other == exact or other.startswith(f"{exact}_")), default=None)


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the bias-corrected exponential moving average, whose weights reach back over a tenth of the values."""
    decay = 1 - 1 / max(len(values) / 10, 1)
    mean, weight, smoothed = 0.0, 0.0, np.empty_like(values)
    for i, value in enumerate(values):
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + 1 - decay
        smoothed[i] = mean / weight
    return smoothed


def _arrays(series: Series, steps_per_epoch: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the epochs and the values of a series."""
    pairs = np.array(series, dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0] / steps_per_epoch, pairs[:, 1]
