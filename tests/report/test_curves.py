"""Curves of runs."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cvexp.report.curves import Curve, compare, smooth


def test_smoothing_starts_at_the_first_value_and_keeps_the_level() -> None:
    assert np.allclose(smooth(np.full(50, 3.0)), 3.0)
    noise = np.random.default_rng(0).normal(size=1000) + 5
    smoothed = smooth(noise)
    assert smoothed[0] == noise[0]
    assert smoothed[200:].std() < 0.25 * noise.std()
    assert abs(smoothed[200:].mean() - 5) < 0.1


def test_smoothing_is_the_weighted_mean_of_what_came_before() -> None:
    values = np.array([1.0, 4.0, 2.0, 8.0] * 10)
    weights = 0.75 ** np.arange(len(values))[::-1]  # 40 values: a decay of 1 - 1 / 4
    assert np.isclose(smooth(values)[-1], (weights * values).sum() / weights.sum())


def test_a_line_for_each_run_in_each_panel_by_epoch() -> None:
    one = Curve("one", [(0, 1.0), (10, 0.5)], [(0, 2.0), (10, 1.0)], 10)
    other = Curve("other", [], [(0, 3.0), (20, 2.0)], 20)
    figure = compare({"loss (nats)": [one, other], "mIoU": [one]})
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss (nats)", "mIoU"]
    lines = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [np.asarray(line.get_xdata()).tolist() for line in lines] == [[0, 1], [0, 1]]
    assert lines[0].get_color() != lines[1].get_color()
    assert words(figure) == ["one", "other", "training, smoothed", "validation"]
    assert words(compare({"loss": [one]})) == ["training, smoothed", "validation"]


def run(label: str, values: list[float], trained: int = 8) -> Curve:
    """A run of four steps in an epoch."""
    val = [(4 * epoch, value) for epoch, value in enumerate(values)]
    return Curve(label, [(step, 2.0 - step / 9) for step in range(trained)], val, 4)


def words(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_seeds_share_a_color_and_a_legend_entry() -> None:
    seeds = [run("multiclass, random", [0.1, 0.4 + seed / 10, 0.5]) for seed in range(3)]
    figure = compare({"loss (nats)": seeds, "mIoU": seeds})
    assert len({line.get_color() for axes in figure.axes for line in axes.lines}) == 1
    assert len([line for line in figure.axes[0].lines if line.get_marker() == "o"]) == 3
    assert words(figure) == ["training, smoothed", "validation"]
    others = [run("attention, dino", [0.2, 0.3, 0.6]) for _ in range(2)]
    figure = compare({"mIoU": [*seeds, *others]})
    assert words(figure) == ["multiclass, random", "attention, dino", "training, smoothed", "validation"]
    assert len({line.get_color() for line in figure.axes[0].lines}) == 2
    dashed, solid = figure.legends[0].get_lines()[2:]
    assert (dashed.get_linestyle(), solid.get_linestyle()) == ("--", "-")


@pytest.mark.parametrize("count", [1, 2])
def test_runs_may_lack_any_history(count: int) -> None:
    no_training = [run("a", [0.1, 0.2], trained=0)] * count
    no_validation = [run("a", [])] * count
    nothing = [run("a", [], trained=0)] * count
    assert words(compare({"mIoU": no_training})) == ["validation"]
    assert words(compare({"mIoU": no_validation})) == ["training, smoothed"]
    assert words(compare({"mIoU": nothing})) == []
    mixed = compare({"mIoU": [*no_training, *no_validation, *nothing], "loss": no_validation}, stacked=True)
    assert words(mixed) == ["training, smoothed", "validation"]


def test_a_single_training_value_is_visible() -> None:
    (_, smoothed, _) = compare({"mIoU": [run("a", [0.1, 0.2], trained=1)]}).axes[0].lines
    assert smoothed.get_marker() == "_"


def test_a_long_legend_stays_on_the_figure() -> None:
    figure = compare({"mIoU": [run(f"attention, {i}{'long_name' * 33}.pth", [0.1, 0.2]) for i in range(6)]})
    FigureCanvasAgg(figure).draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
    assert figure.axes[0].get_window_extent().height > 150  # pixels at 220 dpi
