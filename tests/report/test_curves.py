"""Curves of runs."""

import numpy as np

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
    assert [list(line.get_xdata()) for line in lines] == [[0, 1], [0, 1]]
    assert lines[0].get_color() != lines[1].get_color()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "other"]
    assert [text.get_text() for text in compare({"loss": [one]}).legends[0].get_texts()] == [
        "training, smoothed",
        "validation",
    ]
