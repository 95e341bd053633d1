"""Curves of metrics over runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from cvexp.report.style import COLUMN, PAGE, STYLE, add_legend, color, drawable

Series = Sequence[tuple[int, float]]


class Curve(NamedTuple):
    """A metric of a run: (step, value) pairs of the training and of the validation, either of which may be empty.

    Runs that differ only in their seed have the same label.
    """

    label: str
    train: Series
    val: Series
    steps_per_epoch: float


def compare(panels: Mapping[str, Sequence[Curve]], *, stacked: bool = False) -> Figure:
    """Runs in one figure, a panel for each metric: validation as lines with dots, training dashed.

    Of a training metric the raw values are thin, and a smoothed line (exponential mean of about a tenth of them) lies
    over them.

    Args:
        panels: The curves by the name of the axis; runs of equal labels share a color and a legend entry.
        stacked: Whether the panels lie below each other, for a narrow column, rather than side by side.
    """
    every = [curve for curves in panels.values() for curve in curves]
    labels = list(dict.fromkeys(curve.label for curve in every))
    with rc_context(STYLE):
        rows, columns = (len(panels), 1) if stacked else (1, len(panels))
        figure = Figure(figsize=(COLUMN, 1.6 * rows) if stacked else (PAGE, 1.9), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, (name, curves) in zip(grid.flat, panels.items(), strict=True):
            for curve in curves:
                own = color(labels.index(curve.label))
                steps, values = _arrays(curve.train, curve.steps_per_epoch)
                axes.plot(steps, values, color=own, alpha=0.2, linewidth=0.6)
                dash = {"marker": "_", "markersize": 8} if len(steps) == 1 else {}  # a line needs two points
                axes.plot(steps, smooth(values), "--", color=own, linewidth=1, **dash)
                steps, values = _arrays(curve.val, curve.steps_per_epoch)
                axes.plot(steps, values, "-o", color=own)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylabel(name)
        handles = []
        if len(labels) > 1:
            handles = [Line2D([], [], color=color(i), label=drawable(label, 40)) for i, label in enumerate(labels)]
        look = "black" if handles else color(0)
        if any(len(curve.train) for curve in every):
            handles.append(Line2D([], [], color=look, linestyle="--", linewidth=1, label="training, smoothed"))
        if any(len(curve.val) for curve in every):
            handles.append(Line2D([], [], color=look, marker="o", label="validation"))
        if handles:
            add_legend(figure, handles)
    return figure


def training_metric(recorded: Mapping[str, Any], name: str) -> str | None:
    """Return the metric of the training that belongs to one of the validation, such as train/miou to val/miou.

    A method may add a word if its training metric means something else, such as `train/miou_asked`.

    Args:
        recorded: All metrics of the run.
        name: A validation metric.
    """
    prefix = name.replace("val/", "train/", 1)
    return min((other for other in recorded if other == prefix or other.startswith(f"{prefix}_")), default=None)


def smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The exponential moving average, corrected for its start, whose weights reach back over a tenth of the values."""
    decay = 1 - 1 / max(len(values) / 10, 1)
    mean, weight, smoothed = 0.0, 0.0, np.empty_like(values)
    for i, value in enumerate(values):
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + 1 - decay
        smoothed[i] = mean / weight
    return smoothed


def _arrays(series: Series, steps_per_epoch: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    pairs = np.array(series, dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0] / steps_per_epoch, pairs[:, 1]
