import numpy as np
import pytest
from scipy import stats

from cvexp.metrics.bootstrap import paired_difference
from cvexp.metrics.iou import iou, mean_iou


def random_counts(seed: int, num_images: int = 60, quality: float = 0.6) -> np.ndarray:
    """Return counts (2, images, 3, 3) of two runs and three classes."""
    random = np.random.default_rng(seed)
    labeled = random.integers(20, 100, (1, num_images, 3)).repeat(2, axis=0)
    intersection = random.binomial(labeled, quality)
    predicted = intersection + random.integers(0, 30, labeled.shape)
    return np.stack([intersection, predicted, labeled], axis=-1)


def test_the_interval_equals_scipys_paired_bootstrap() -> None:
    first, second = random_counts(0, quality=0.62), random_counts(1)

    def difference(indices: np.ndarray) -> float:
        return float(mean_iou(first[:, indices].sum(axis=1)).mean() - mean_iou(second[:, indices].sum(axis=1)).mean())

    reference = stats.bootstrap(
        (np.arange(60),), difference, vectorized=False, n_resamples=4000, method="percentile", rng=0
    ).confidence_interval
    ours = paired_difference(first, second, num_samples=4000)
    assert ours.difference == pytest.approx(difference(np.arange(60)))
    assert ours.low == pytest.approx(reference.low, abs=0.003)
    assert ours.high == pytest.approx(reference.high, abs=0.003)
    assert reference.high - reference.low > 0.01


def test_pairing_makes_the_interval_of_similar_methods_narrow() -> None:
    """Images differ far more than the two methods."""
    random = np.random.default_rng(0)
    labeled = random.integers(20, 100, (1, 60, 3))
    difficulty = random.uniform(0.1, 0.9, (1, 60, 1))
    intersection = (labeled * difficulty).astype(int)
    first = np.stack([intersection + 1, labeled, labeled], axis=-1)
    second = np.stack([intersection, labeled, labeled], axis=-1)
    paired = paired_difference(first, second)
    shuffled = paired_difference(first, second[:, random.permutation(60)])
    assert paired.is_clear
    assert not shuffled.is_clear


def test_equal_methods_have_no_difference() -> None:
    counts = random_counts(0)
    assert paired_difference(counts, counts) == (0, 0, 0)
    assert not paired_difference(counts, counts).is_clear


def test_equal_seeds_give_equal_intervals() -> None:
    first, second = random_counts(0), random_counts(1)
    assert paired_difference(first, second) == paired_difference(first, second)
    assert paired_difference(first, second) != paired_difference(first, second, seed=1)


def test_samples_without_a_class_leave_it_out() -> None:
    first, second = random_counts(0, num_images=4), random_counts(1, num_images=4)
    first[:, 1:, 2] = second[:, 1:, 2] = 0  # only in the first image
    interval = paired_difference(first, second)
    assert np.isfinite(interval).all()
    assert np.isnan(iou(first[:, 1:].sum(axis=1))[:, 2]).all()
