"""Intervals for differences between methods that were scored on the same images (paired bootstrap over images; Efron
and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cvexp.metrics.iou import Counts, mean_iou

CHUNK = 200  # samples at a time, so that memory stays small


class Interval(NamedTuple):
    """A difference and the interval around it."""

    difference: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def paired_difference(
    first: Counts, second: Counts, samples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """How much larger the first's mIoU is than the second's, with a percentile interval.

    The images are drawn with replacement, the same ones for all runs; the mIoU of a method is the mean over its runs.
    So the interval tells what other images would change, not what other seeds would.

    Args:
        first, second: Counts (runs, images, c, 3) of the classes, without the background; the images are the same.
        samples: How many times the images are drawn.
        confidence: The interval's.
        seed: Of the draws.
    """
    images = first.shape[1]
    random = np.random.default_rng(seed)
    drawn = []
    for start in range(0, samples, CHUNK):
        times = random.multinomial(images, np.full(images, 1 / images), size=min(CHUNK, samples - start))
        drawn.append(_mean_over_runs(first, times) - _mean_over_runs(second, times))
    low, high = np.nanquantile(np.concatenate(drawn), [(1 - confidence) / 2, (1 + confidence) / 2])
    once = np.ones((1, images), dtype=np.int64)
    difference = _mean_over_runs(first, once) - _mean_over_runs(second, once)
    return Interval(float(difference[0]), float(low), float(high))


def _mean_over_runs(counts: Counts, times: Counts) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The mIoU, averaged over the runs, with each image counted so many times: (samples, images) to (samples,)."""
    totals = np.einsum("si,ricn->srcn", times, counts, optimize=True)
    mean: np.ndarray[tuple[int], np.dtype[np.float64]] = mean_iou(totals).mean(axis=1)
    return mean
