"""Figures of a probe: scores with intervals, and a confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from cvexp.colors import color
from cvexp.metrics.probe_results import SCORES, ProbeResults
from cvexp.report.style import COLUMN, PAGE, SMALL, STYLE, drawable

MAX_NUMBERED = 12  # classes with numbers in the cells of the confusion matrix
MAX_NAMED = 60  # classes with names along its axes
TITLES = ("linear, top-1", "linear, mean recall", "kNN, top-1", "kNN, mean recall")


def draw_scores(results: ProbeResults) -> Figure:
    """Draw a dot with an interval for each network and score.

    Probed networks are blue dots, controls are orange squares, and a dashed line marks the constant prediction of the
    most frequent training class.
    """
    networks = results.networks
    constant = [results.constant["top1"], results.constant["mean_recall"]] * 2
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE, 0.75 + 0.19 * len(networks)), layout="constrained")
        axes = figure.subplots(1, len(SCORES), sharex=True, sharey=True)
        for ax, name, title, chance in zip(axes, SCORES, TITLES, constant, strict=True):
            for is_control in (False, True):
                chosen = [i for i in range(len(networks)) if networks[i].is_control == is_control]
                estimates = np.array([networks[i].scores[name] for i in chosen]).reshape(-1, 3)
                value, low, high = estimates.T
                ax.errorbar(
                    value,
                    chosen,
                    xerr=np.maximum([value - low, high - value], 0),
                    fmt="s" if is_control else "o",
                    color=color(1 if is_control else 0),
                )
            ax.axvline(chance, color="#888888", linestyle="--", linewidth=0.8)
            ax.set_title(title)
            ax.grid(visible=False, axis="y")
        axes[0].set_yticks(range(len(networks)), [drawable(network.name, 40) for network in networks])
        axes[0].set_ylim(len(networks) - 0.4, -0.6)
    return figure


def draw_confusion(
    labels: NDArray[np.integer], predicted: NDArray[np.integer], classes: Sequence[str], name: str
) -> Figure:
    """Draw how often the objects of each class (rows) are predicted as each class (columns).

    Rows sum to 1. Rows of classes that do not occur are empty.

    Args:
        labels, predicted: (n,) the true and the predicted labels.
        classes: Class names.
        name: The name of the network.
    """
    num_classes = len(classes)
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (labels, predicted), 1)
    totals = counts.sum(1, keepdims=True)
    shares = np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    side = float(np.clip(0.3 * num_classes + 1.4, COLUMN, PAGE))
    font_size = min(SMALL, 72 * (side - 1.4) / num_classes * 0.8)
    with rc_context(STYLE):
        figure = Figure(figsize=(side, side), layout="constrained")
        ax = figure.subplots()
        image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        ax.grid(visible=False)
        figure.colorbar(image, ax=ax, shrink=0.6)
        is_named = num_classes <= MAX_NAMED
        ticks = range(0, num_classes, 1 if is_named else 10)
        names = [drawable(classes[i], 16) if is_named else str(i) for i in ticks]
        ax.set_xticks(ticks, names, rotation=90, fontsize=font_size if is_named else SMALL)
        ax.set_yticks(ticks, names, fontsize=font_size if is_named else SMALL)
        unit = "class" if is_named else "class number"
        ax.set(xlabel=f"predicted {unit}", ylabel=unit, title=f"linear probe, {drawable(name, 40)}")
        for i, j in np.argwhere(totals + 0 * counts > 0) if num_classes <= MAX_NUMBERED else ():
            shade = "white" if shares[i, j] > 0.6 else "black"
            ax.text(j, i, f"{shares[i, j]:.2f}", ha="center", va="center", color=shade, fontsize=SMALL)
    return figure
