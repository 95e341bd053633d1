"""The figures of a study."""

from __future__ import annotations

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from cvexp.colors import color
from cvexp.report.study import Study
from cvexp.report.study_text import percent, weights
from cvexp.report.style import COLUMN, PAGE, STYLE, add_legend, drawable, marker


def draw_curves(study: Study) -> Figure:
    """Draw the score by label fraction, with a panel for each method and a line for each start."""
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE if len(study.methods) > 1 else COLUMN, 2.3), layout="constrained")
        panels = figure.subplots(1, len(study.methods), squeeze=False, sharey=True)[0]
        for ax, method in zip(panels, study.methods, strict=True):
            for i, start in enumerate(study.starts):
                own = [point for point in study.points if (point.method, point.start) == (method, start)]
                if not own:
                    continue
                x = [point.fraction for point in own]
                means, lows, highs = zip(*(point.interval for point in own), strict=True)
                ax.plot(x, means, color=color(i), marker=marker(i), label=drawable(weights(start), 40))
                ax.fill_between(x, lows, highs, color=color(i), alpha=0.15, linewidth=0)
                for point in own:
                    repeated = [point.fraction] * len(point.scores)
                    ax.plot(repeated, point.scores, color=color(i), marker=".", linestyle="", markersize=2, alpha=0.6)
            ax.set_title(method)
            _label_fractions(ax, study)
        panels[0].set_ylabel(study.score)
        scores = [score for point in study.points for score in point.scores]
        span = max(max(scores) - min(scores), 0.05)
        panels[0].set_ylim(max(min(scores) - span, 0.0), min(max(scores) + span, 1.0))  # cuts off very wide bands
        _add_legend(figure)
    return figure


def draw_gains(study: Study) -> Figure:
    """Draw the differences from the reference by label fraction, with a panel for each method."""
    with rc_context(STYLE):
        figure = Figure(figsize=(PAGE if len(study.methods) > 1 else COLUMN, 2.0), layout="constrained")
        panels = figure.subplots(1, len(study.methods), squeeze=False, sharey=True)[0]
        others = [start for start in study.starts if start != study.reference]
        for ax, method in zip(panels, study.methods, strict=True):
            ax.axhline(0, color="black", linewidth=0.6)
            for gain in study.gains:
                if gain.method != method or gain.fraction is None:
                    continue
                mean, low, high = gain.interval
                place = study.starts.index(gain.start)
                x = gain.fraction * 1.06 ** (others.index(gain.start) - (len(others) - 1) / 2)  # side by side
                ax.plot([x, x], [low, high], color=color(place))
                label = drawable(f"{weights(gain.start)} - {weights(gain.reference)}", 60)
                face = color(place) if gain.is_decided else "white"
                style = {"marker": marker(place), "markerfacecolor": face, "linestyle": ""}
                ax.plot([x], [mean], color=color(place), label=label, **style)
            ax.set_title(method)
            _label_fractions(ax, study)
        panels[0].set_ylabel(f"difference in {study.score}")
        _add_legend(figure)
    return figure


def _add_legend(figure: Figure) -> None:
    """Add a legend with one entry for each label."""
    lines = {str(line.get_label()): line for ax in figure.axes for line in ax.get_lines()}
    if named := [line for label, line in lines.items() if not label.startswith("_")]:
        add_legend(figure, named)


def _label_fractions(ax: Axes, study: Study) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(study.fractions))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    ax.set_xlabel("labeled training images")
