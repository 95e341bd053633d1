"""Curves of metrics over a run."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from cvexp.report.style import COLORS, STYLE

Series = Sequence[tuple[int, float]]


def losses(train: Series, val: Series, steps_per_epoch: int) -> Figure:
    """Training and validation loss over the epochs, from (step, value) pairs."""
    with rc_context(STYLE):
        figure = Figure(figsize=(6, 3.8), layout="constrained")
        axes = figure.subplots()
        for series, label, color, fmt in ((train, "training", COLORS[0], "-"), (val, "validation", COLORS[1], "-o")):
            steps = [step / steps_per_epoch for step, _ in series]
            axes.plot(steps, [value for _, value in series], fmt, label=label, color=color, markersize=5)
        axes.set_xlabel("epoch")
        axes.set_ylabel("loss (nats)")
        axes.legend()
    return figure
