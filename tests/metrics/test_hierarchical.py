"""Intervals over images and seeds, on simulated studies whose truth is known."""

import numpy as np
import pytest
from scipy import stats

from cvexp.metrics.hierarchical import Scores, draws, image_weights, interval, variances

NUM_IMAGES = 100


def simulate(
    random: np.random.Generator, num_seeds: int, of_seeds: float, of_images: float, of_both: float, num_samples: int
) -> Scores:
    """Return the mean over images of values around 0 that depend on the seed, the image, and both."""
    shape = (num_seeds, NUM_IMAGES)
    values = of_seeds * random.normal(size=(num_seeds, 1)) + of_images * random.normal(size=(1, NUM_IMAGES))
    values = values + of_both * random.normal(size=shape)
    weights = image_weights(NUM_IMAGES, num_samples, seed=int(random.integers(2**31)))
    return Scores(tuple(range(num_seeds)), values.mean(axis=1), values @ weights.T / NUM_IMAGES, NUM_IMAGES)


# The standard deviations due to the seed, the image, and both. With 100 images, 0.1 for the seeds weighs as much as 1
# for the images.
STUDIES = {
    "only images matter": (0.0, 1.0, 0.5),
    "images and seeds matter": (0.1, 1.0, 0.5),
    "seeds matter more": (0.2, 1.0, 1.0),
    "a paired difference": (0.05, 0.2, 1.0),
}


@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize("study", STUDIES)
def test_a_95_percent_interval_holds_the_truth_in_93_to_97_percent_of_1000_studies(study: str, num_seeds: int) -> None:
    random = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        _, low, high = interval(simulate(random, num_seeds, *STUDIES[study], num_samples=200))
        held += low <= 0 <= high
    assert 930 <= held <= 970


def test_percentiles_of_resampled_seeds_and_images_would_claim_too_much() -> None:
    random = np.random.default_rng(1)
    held = {"percentiles": 0, "ours": 0}
    for _ in range(500):
        scores = simulate(random, 3, 0.5, 1.0, 1.0, num_samples=200)
        seeds = random.multinomial(3, [1 / 3] * 3, size=200) / 3
        low, high = np.quantile((seeds * scores.resampled.T).sum(axis=1), [0.025, 0.975])
        held["percentiles"] += low <= 0 <= high
        _, low, high = interval(scores)
        held["ours"] += low <= 0 <= high
    assert held["percentiles"] < 0.88 * 500
    assert held["ours"] > 0.92 * 500


def test_with_one_seed_the_interval_is_that_of_the_images() -> None:
    scores = simulate(np.random.default_rng(0), 1, 0.0, 1.0, 0.0, num_samples=4000)
    mean, low, high = interval(scores)
    error = scores.resampled[0].std(ddof=1)
    assert (low, high) == pytest.approx(stats.t.interval(0.95, NUM_IMAGES - 1, mean, error))


def test_if_only_the_seed_matters_the_interval_is_students() -> None:
    full = np.array([0.1, 0.4, 0.3])
    scores = Scores((0, 1, 2), full, np.repeat(full[:, None], 50, axis=1), NUM_IMAGES)
    expected = stats.t.interval(0.95, 2, full.mean(), full.std(ddof=1) / np.sqrt(3))
    assert interval(scores)[1:] == pytest.approx(expected)


def test_variances_of_a_large_study_are_those_that_it_was_simulated_with() -> None:
    random = np.random.default_rng(0)
    found = np.mean([variances(simulate(random, 5, 0.1, 1.0, 0.5, num_samples=200)) for _ in range(400)], axis=0)
    assert found == pytest.approx([1.0 / NUM_IMAGES, 0.1**2 / 5 + 0.5**2 / (5 * NUM_IMAGES)], rel=0.1)


def test_differences_are_paired_by_seed() -> None:
    random = np.random.default_rng(0)
    first = simulate(random, 4, 0.1, 1.0, 0.5, num_samples=50)
    second = first.subset([3, 1])
    difference = first - second
    assert difference.seeds == (1, 3)
    assert not difference.full.any()
    assert interval(difference) == (0, 0, 0)


def test_draws_have_the_mean_and_the_variances_of_the_scores() -> None:
    scores = simulate(np.random.default_rng(2), 8, 0.1, 1.0, 0.5, num_samples=4000)
    drawn = draws(scores, seed=0)
    assert drawn.mean() == pytest.approx(scores.mean, abs=0.01)
    of_images, of_seeds = variances(scores)
    assert drawn.var() == pytest.approx(of_images + of_seeds * 7 / 5, rel=0.2)  # Student's t has the variance df/(df-2)
    assert np.corrcoef(drawn, scores.resampled.mean(axis=0))[0, 1] > 0.5
