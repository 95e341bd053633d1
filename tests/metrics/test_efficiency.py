"""Label-efficiency curves whose answer is known."""

import numpy as np
import pytest

from cvexp.metrics.efficiency import Curve, gains, needed_fraction, savings
from cvexp.metrics.hierarchical import Scores, image_weights

FRACTIONS = (0.05, 0.1, 0.25, 0.5, 1.0)


def curve(start: str, values: list[float], noise: float, num_seeds: int = 3, method: str = "multiclass") -> Curve:
    """Return a curve with these scores, whose images and seeds differ."""
    random = np.random.default_rng(len(start))
    images = np.random.default_rng(7).normal(scale=5 * noise, size=60)  # the same for all curves
    weights = image_weights(60, 300)
    points = {}
    for fraction, value in zip(FRACTIONS, values, strict=False):
        scores = value + images - images.mean() + random.normal(scale=noise, size=(num_seeds, 60))
        points[fraction] = Scores(tuple(range(num_seeds)), scores.mean(axis=1), scores @ weights.T / 60, 60)
    return Curve(method, start, points)


def test_a_curve_is_inverted_between_its_points_in_the_logarithm_of_the_fraction() -> None:
    fractions, scores = np.array([0.1, 0.4, 1.0]), np.array([[0.2], [0.4], [0.5]])
    assert needed_fraction(fractions, scores, np.array([0.3]))[0] == pytest.approx(0.2)  # halfway from 0.1 to 0.4
    assert needed_fraction(fractions, scores, np.array([0.2]))[0] == pytest.approx(0.1)
    assert needed_fraction(fractions, scores, np.array([0.5]))[0] == pytest.approx(1.0)
    assert needed_fraction(fractions, scores, np.array([0.51]))[0] == np.inf
    assert needed_fraction(fractions, scores, np.array([0.19]))[0] == 0


def test_a_curve_that_falls_keeps_its_largest_value() -> None:
    fractions, scores = np.array([0.1, 0.2, 0.4, 0.8]), np.array([[0.2], [0.4], [0.3], [0.6]])
    assert needed_fraction(fractions, scores, np.array([0.4]))[0] == pytest.approx(0.2)
    assert needed_fraction(fractions, scores, np.array([0.5]))[0] == pytest.approx(0.4 * 2**0.5)
    constant = np.full((4, 1), 0.3)
    assert needed_fraction(fractions, constant, np.array([0.3]))[0] == pytest.approx(0.1)


def test_a_start_that_saves_half_of_the_labels_is_found_to_do_so() -> None:
    values = [0.2 + 0.1 * np.log2(fraction / 0.05) for fraction in FRACTIONS]
    random, dino = curve("random", values, 0.01), curve("dino", [value + 0.1 for value in values], 0.01)
    found = savings([random, dino], 0.95)
    assert [(saving.start, saving.fraction) for saving in found] == [("dino", fraction) for fraction in FRACTIONS]
    for saving in found[:4]:
        assert saving.needed == pytest.approx(2 * saving.fraction, rel=0.05)
        assert saving.low <= 2 * saving.fraction <= saving.high
        assert saving.is_decided
    assert found[4].needed == found[4].low == np.inf  # more than random weights reach with all labels


def test_equal_starts_save_nothing_and_nothing_is_decided() -> None:
    values = [0.2, 0.3, 0.4, 0.5, 0.6]
    curves = [curve("random", values, 0.05), curve("dino", values, 0.05)]
    assert not any(saving.is_decided for saving in savings(curves, 0.95))
    assert not any(gain.is_decided for gain in gains(curves, 0.95))


def test_gains_are_given_for_each_fraction_and_on_average() -> None:
    values = [0.2, 0.3, 0.4, 0.5, 0.6]
    curves = [curve("random", values, 0.01), curve("dino", [value + 0.05 for value in values], 0.01)]
    found = gains(curves, 0.95)
    assert [gain.fraction for gain in found] == [*FRACTIONS, None]
    assert all(gain.interval.difference == pytest.approx(0.05, abs=0.01) and gain.is_decided for gain in found)
    mean = np.mean([gain.interval.difference for gain in found[:-1]])
    assert found[-1].interval.difference == pytest.approx(mean)
    assert found[-1].interval.high - found[-1].interval.low < found[0].interval.high - found[0].interval.low


def test_one_seed_decides_nothing() -> None:
    values = [0.2, 0.3, 0.4, 0.5, 0.6]
    curves = [curve("random", values, 0.001, 1), curve("dino", [value + 0.3 for value in values], 0.001, 1)]
    assert not any(gain.is_decided for gain in gains(curves, 0.95))
    assert not any(saving.is_decided for saving in savings(curves, 0.95))


def test_only_equal_methods_seeds_and_fractions_are_compared() -> None:
    values = [0.2, 0.3, 0.4]
    random = curve("random", values, 0.01)
    dino = curve("dino", values, 0.01, num_seeds=2)
    other = curve("dino", values, 0.01, method="attention")  # which has no counterpart
    del dino.points[0.1]
    found = gains([random, dino, other], 0.95)
    assert [(gain.method, gain.fraction, gain.num_seeds) for gain in found] == [
        ("multiclass", 0.05, 2),
        ("multiclass", 0.25, 2),
        ("multiclass", None, 2),
    ]


def test_without_random_weights_the_first_start_is_the_reference() -> None:
    curves = [curve("simclr", [0.2, 0.3], 0.01), curve("dino", [0.2, 0.3], 0.01)]
    assert {(gain.start, gain.reference) for gain in gains(curves, 0.95)} == {("dino", "simclr")}
