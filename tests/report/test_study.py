"""A study as sentences, tables, pictures and a page."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt

from cvexp.metrics.efficiency import Curve, gains, savings
from cvexp.metrics.hierarchical import Scores, image_weights
from cvexp.report.document import html
from cvexp.report.sections.study import study_page
from cvexp.report.study import Study, _read, make_points, to_json
from cvexp.report.study_figures import draw_curves, draw_gains
from cvexp.report.study_text import difference_rows, markdown, needed, percent, sentences, weights

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)
ODD = "R&D <b>it's</b> |_$x$_" + "y" * 60


def study(
    shift: float,
    noise: float = 0.01,
    num_seeds: int = 3,
    start: str = "dino",
    num_images: int = 60,
    method: str = "multiclass",
) -> Study:
    """Return a study in which a start is better than random weights by `shift`, which is 0.1 for twice the labels."""
    images = np.random.default_rng(7).normal(scale=5 * noise, size=num_images)
    sampled = image_weights(num_images, 200)
    curves = []
    for name, plus in (("random", 0.0), (start, shift)):
        random = np.random.default_rng(len(name))
        points = {}
        for fraction in FRACTIONS:
            value = 0.2 + 0.1 * np.log2(fraction / 0.05) + plus
            scores = value + images - images.mean() + random.normal(scale=noise, size=(num_seeds, num_images))
            seeds = tuple(range(num_seeds))
            points[fraction] = Scores(seeds, scores.mean(axis=1), scores @ sampled.T / num_images, num_images)
        curves.append(Curve(method, name, points))
    runs = {
        (curve.method, curve.start, fraction, seed): (
            f"{seed:032x}",
            f"cvexp {seed}",
        )
        for curve in curves
        for fraction in FRACTIONS
        for seed in range(num_seeds)
    }
    return Study(
        "The data are photographs.",
        "mIoU",
        "random",
        "test",
        num_images,
        0.95,
        make_points(curves, runs, 0.95),
        gains(curves, 0.95),
        savings(curves, 0.95),
        [(f"{start}, seed 0", "0" * 32, "cvexp task=dino")],
        ["A note."],
    )


def test_a_clear_gain_is_told_with_its_interval_and_the_labels_that_it_saves() -> None:
    first, *others = sentences(study(0.1))
    assert first.startswith(
        "With multiclass, the mean mIoU over the shares of labels from dino is higher than from random"
    )
    assert "95% interval +0.0" in first
    assert "over images and 3 seeds" in first
    assert others[0].startswith("With multiclass, from dino, 5% of the labels give what random weights need ")
    assert "[" in others[0]
    assert (
        others[1]
        == "With multiclass, from dino, 100% of the labels give more than random weights reach with all labels."
    )


def test_a_start_that_is_worse_is_told_to_be_worse() -> None:
    first, *others = sentences(study(-0.1))
    assert "is lower than from random weights" in first
    assert others[0].endswith(
        "5% of the labels give less than random weights reach with 5% of them, the fewest that were tried."
    )


def test_a_clear_difference_in_the_other_direction_is_told() -> None:
    better = study(0.1)
    worse = study(-0.1)
    assert "clearly" not in sentences(better)[0]  # all shares are
    mixed = replace(better, gains=[*better.gains[:3], *worse.gains[3:5], better.gains[5]])
    assert sentences(mixed)[0].endswith(
        "From dino, the mIoU is clearly higher at 5%, 10% and 25% of the labels, and clearly lower at 50% and 100% of "
        "the labels."
    )
    doubtful = study(0.0, noise=0.1).gains
    none = replace(better, gains=[*doubtful[:5], better.gains[5]])
    assert sentences(none)[0].endswith("At no single share is the difference clear.")


def test_the_largest_share_that_was_tried_is_not_called_all_labels() -> None:
    tried = study(0.1)
    part = replace(tried, savings=[replace(saving, most=0.2) for saving in tried.savings])
    assert sentences(part)[-1].endswith("reach with 20% of them, the most that were tried.")


def test_too_few_images_decide_nothing_in_the_table_either() -> None:
    rows = difference_rows(study(0.3, num_images=10))[1]
    assert {row[5] for row in rows} == {"no"}


def test_if_nothing_is_clear_the_sentence_says_that_the_data_do_not_decide() -> None:
    told = sentences(study(0.0, noise=0.1))
    assert all("do not decide" in sentence for sentence in told)
    assert len(told) == 2


def test_one_seed_and_few_images_decide_nothing() -> None:
    (told,) = sentences(study(0.3, num_seeds=1))
    assert "one seed does not decide" in told
    (told,) = sentences(study(0.3, num_images=10))
    assert told.startswith("The test split has 10 images, which are too few to judge")


@pytest.mark.parametrize(
    ("fraction", "shown"), [(0.05, "5%"), (1.0, "100%"), (0.0025, "0.25%"), (1 / 3, "33%"), (0.055, "5.5%")]
)
def test_shares_are_percentages_with_two_digits(fraction: float, shown: str) -> None:
    assert percent(fraction) == shown


def test_shares_beyond_the_curve_are_bounds() -> None:
    saving = replace(study(0.1).savings[0], needed=0.55, low=0.4, high=math.inf)
    assert needed(saving) == "55% [40%, over 100%]"
    assert needed(replace(saving, low=0.0, high=0.7)) == "55% [under 5%, 70%]"
    assert needed(replace(saving, needed=math.inf, low=math.inf, most=0.2)) == "over 20%"


def test_a_study_survives_its_file(tmp_path: Path) -> None:
    written = study(0.1, start=ODD)
    path = tmp_path / "study.json"
    path.write_text(json.dumps(to_json(written), allow_nan=False))
    assert _read(path) == written


def test_pictures_have_a_panel_for_each_method_and_a_legend_entry_for_each_start() -> None:
    one = study(0.1, start=ODD)
    other = study(0.1, start=ODD, method="attention")
    both = replace(one, points=one.points + other.points, gains=one.gains + other.gains)
    for draw, entries in ((draw_curves, 2), (draw_gains, 1)):
        figure = draw(both)
        assert [ax.get_title() for ax in figure.axes] == ["multiclass", "attention"]
        (legend,) = figure.legends
        assert len(legend.get_texts()) == entries
        figure.canvas.draw()


def test_wide_intervals_do_not_hide_the_curves() -> None:
    wide = study(0.02, noise=0.3, num_seeds=2)
    wide = replace(wide, points=[point for point in wide.points if point.fraction == 0.25])
    scores = [score for point in wide.points for score in point.scores]
    assert max(point.interval.high - point.interval.low for point in wide.points) > 4 * (max(scores) - min(scores))
    low, high = draw_curves(wide).axes[0].get_ylim()
    assert low <= min(scores) < max(scores) <= high
    assert high - low < 3.01 * (max(scores) - min(scores))


def test_odd_names_survive_the_page_and_the_markdown() -> None:
    odd = study(0.1, start=ODD)
    page = html(study_page(odd, "A title"))
    assert "<b>it" not in page
    assert "R&amp;D &lt;b&gt;it&#39;s&lt;/b&gt;" in page
    rendered = MarkdownIt("commonmark").enable("table").render(markdown(odd))
    assert "<b>it" not in rendered
    assert weights(ODD)[:8].replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in rendered
    assert rendered.count("<tr>") == (1 + 2) + (1 + 6)


def test_the_page_lists_the_command_of_each_run() -> None:
    page = html(study_page(study(0.1), "A title"))
    assert page.count("cvexp 0") == 2 * 5
    assert "cvexp task=dino" in page
    assert "A note." in page


def test_without_a_test_split_the_page_says_that_scores_are_optimistic() -> None:
    assert "optimistic" not in html(study_page(study(0.1), "A title"))
    assert "optimistic" in html(study_page(replace(study(0.1), split="val"), "A title"))
