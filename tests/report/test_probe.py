"""The table, the sentences and the figures of a probe."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from markdown_it import MarkdownIt
from matplotlib.backends.backend_agg import FigureCanvasAgg

from cvexp.metrics.bootstrap import Interval
from cvexp.metrics.probe_results import SCORES, Contrast, Estimate, Probed, ProbeResults
from cvexp.report.probe import markdown, rows, sentences
from cvexp.report.probe_figures import draw_confusion, draw_scores

ODD = ["R&D", "it's <b>", "a|b", "$x$", "n" * 300, "🚗 漢"]


def network(name: str, value: float, seed: int | None = None, is_control: bool = False) -> Probed:
    scores = {key: Estimate(value, value - 0.05, value + 0.04) for key in SCORES}
    return Probed(name, is_control, name[:4], "random", "resnet18", 96, seed, None, 512, 1.0, scores)


def results(num_images: int = 100) -> ProbeResults:
    networks = [network("dino 1, seed 0", 0.7, 0), network("dino 2, seed 1", 0.75, 1)]
    networks += [network("untrained|<b>", 0.5, is_control=True), network("histogram", 0.72, is_control=True)]
    differences = {(0, 2): (0.2, 0.1, 0.3), (0, 3): (-0.02, -0.1, 0.1), (1, 2): (-0.2, -0.3, -0.1)}
    contrasts = [
        Contrast(networks[first].name, networks[second].name, key, Interval(*interval))
        for (first, second), interval in differences.items()
        for key in SCORES
    ]
    constant = {"top1": 0.3, "mean_recall": 0.1}
    return ProbeResults("folder", "test", ODD, num_images, 300, 900, 0.95, constant, networks, contrasts, ["A <note>."])


def test_each_network_has_a_sentence_that_claims_only_what_the_images_show() -> None:
    assert sentences(results()) == [
        "The linear top-1 accuracy of dino 1, seed 0 is 0.700, higher than untrained|<b> (+0.200, "
        "interval +0.100 to +0.300); the images do not decide between it and histogram (-0.020, "
        "interval -0.100 to +0.100).",
        "The linear top-1 accuracy of dino 2, seed 1 is 0.750, lower than untrained|<b> (-0.200, "
        "interval -0.300 to -0.100).",
    ]
    assert "do not decide between it and untrained" in sentences(results(num_images=5))[0]
    assert sentences(replace(results(), contrasts=[]))[0].endswith("is 0.700.")


def test_markdown_shows_all_names_unchanged() -> None:
    page = MarkdownIt("commonmark").enable("table").render(markdown(results()))
    for name in ("R&amp;D", "it's &lt;b&gt;", "a|b", "$x$", "🚗 漢", "untrained|&lt;b&gt;", "A &lt;note&gt;."):
        assert name in page, name
    assert "<b>" not in page
    assert rows(results())[4] == ["dino from random, 2 seeds", *["0.725 ± 0.035"] * 4]
    assert rows(results())[-1][1:] == ["0.300", "0.100"] * 2


@pytest.mark.parametrize("num_classes", [2, 12, 100])
def test_figures_draw_any_name_and_number_of_classes(num_classes: int) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, num_classes, 400)
    labels[labels == 1] = 0  # a class that does not occur
    predicted = np.where(random.random(400) < 0.7, labels, random.integers(0, num_classes, 400))
    names = [ODD[i % len(ODD)] for i in range(num_classes)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw_confusion(labels, predicted, names, ODD[1])
        FigureCanvasAgg(figure).draw()
        FigureCanvasAgg(draw_scores(results())).draw()
    shown = [text.get_text() for text in figure.axes[0].texts]
    assert len(shown) == (num_classes * (num_classes - 1) if num_classes <= 12 else 0)
