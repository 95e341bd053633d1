"""Confidence intervals for differences between methods that were evaluated on the same images.

They come from a paired bootstrap over the images (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
chapters 8 and 13).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cvexp.metrics.iou import Counts, mean_iou

MIN_IMAGES = 20  # with fewer, intervals from resampled images are far too narrow

CHUNK = 200  # bootstrap samples that are computed at once, which bounds the memory


class Interval(NamedTuple):
    """A difference and its confidence interval.

    Attributes:
        difference: The difference on all images.
        low, high: The ends of the interval.
    """

    difference: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


def paired_difference(
    first: Counts, second: Counts, num_samples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Compute the difference in mIoU between two methods, first minus second, with a percentile interval.

    The mIoU of a method is the mean over its runs. A bootstrap sample draws the images with replacement, the same
    images for all runs. The interval thus reflects the choice of the images, but not that of the seeds.

    Args:
        first, second: Counts (runs, images, c, 3) for the same images, without the background.
        num_samples: Number of bootstrap samples.
        confidence: Confidence level of the interval, between 0 and 1.
        seed: Seed of the samples.
    """
    num_images = first.shape[1]
    random = np.random.default_rng(seed)
    differences = []
    for start in range(0, num_samples, CHUNK):
        size = min(CHUNK, num_samples - start)
        weights = random.multinomial(num_images, np.full(num_images, 1 / num_images), size=size)
        differences.append(_mean_over_runs(first, weights) - _mean_over_runs(second, weights))
    low, high = np.nanquantile(np.concatenate(differences), [(1 - confidence) / 2, (1 + confidence) / 2])
    ones = np.ones((1, num_images), dtype=np.int64)
    difference = _mean_over_runs(first, ones) - _mean_over_runs(second, ones)
    return Interval(float(difference[0]), float(low), float(high))


def _mean_over_runs(counts: Counts, weights: Counts) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Compute the mIoU of weighted images, averaged over the runs.

    Args:
        counts: (runs, images, c, 3).
        weights: How often each sample contains each image, (samples, images).

    Returns:
        (samples,).
    """
    totals = np.einsum("si,ricn->srcn", weights, counts, optimize=True)
    mean: np.ndarray[tuple[int], np.dtype[np.float64]] = mean_iou(totals).mean(axis=1)
    return mean
