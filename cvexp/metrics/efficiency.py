"""Label efficiency: how a score grows with the share of labeled images, and how many labels a start saves.

Shapes: f label fractions, b bootstrap samples of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cvexp.metrics.bootstrap import MIN_IMAGES, Interval
from cvexp.metrics.comparison import RANDOM
from cvexp.metrics.hierarchical import Scores, draws, interval

Array = NDArray[np.float64]

MIN_SEEDS = 2  # with one, the spread between seeds is unknown, and nothing is decided


@dataclass(frozen=True)
class Curve:
    """The scores of a method from a start, by label fraction.

    Attributes:
        method: The task of the runs.
        start: Where their initial weights came from.
        points: The scores of the runs by label fraction, in ascending order.
    """

    method: str
    start: str
    points: dict[float, Scores]


@dataclass(frozen=True)
class Gain:
    """How much better a start is than the reference, with the same method and labels.

    Attributes:
        method: The task of the runs.
        start, reference: The two starts.
        fraction: The label fraction; None for the mean over all fractions.
        interval: The difference in the score, and its interval over images and seeds.
        num_seeds: Number of pairs of runs, for each fraction.
        num_images: Number of scored images.
    """

    method: str
    start: str
    reference: str
    fraction: float | None
    interval: Interval
    num_seeds: int
    num_images: int

    @property
    def is_decided(self) -> bool:
        """Whether the interval excludes zero, and there are enough seeds and images to trust it."""
        return self.interval.is_clear and self.num_seeds >= MIN_SEEDS and self.num_images >= MIN_IMAGES


@dataclass(frozen=True)
class Saving:
    """The share of the labels that the reference needs for the score that a start reaches with fewer.

    Attributes:
        method: The task of the runs.
        start, reference: The two starts.
        fraction: The label fraction of the start.
        needed: The label fraction at which the reference has the same score: infinite if it does not reach that with
            the largest fraction, and 0 if it has more with the smallest one.
        low, high: The ends of its interval, over images and seeds.
        fewest, most: The smallest and the largest label fraction of the reference.
        num_seeds: The smallest number of seeds at any point involved.
        num_images: Number of scored images.
    """

    method: str
    start: str
    reference: str
    fraction: float
    needed: float
    low: float
    high: float
    fewest: float
    most: float
    num_seeds: int
    num_images: int

    @property
    def is_decided(self) -> bool:
        """Whether the interval excludes the fraction itself, and there are enough seeds and images to trust it."""
        is_clear = not self.low <= self.fraction <= self.high
        return is_clear and self.num_seeds >= MIN_SEEDS and self.num_images >= MIN_IMAGES


def reference_of(curves: Sequence[Curve]) -> str:
    """Return the start that the others are compared with: random weights, or else the first."""
    starts = [curve.start for curve in curves]
    return RANDOM if RANDOM in starts else starts[0]


def gains(curves: Sequence[Curve], confidence: float) -> list[Gain]:
    """Compare each start with the reference, at each label fraction that both have, and on average over these.

    Args:
        curves: All curves.
        confidence: Confidence level of the intervals.
    """
    found = []
    for curve, reference in _pairs(curves):
        differences = {
            fraction: scores - reference.points[fraction]
            for fraction, scores in curve.points.items()
            if fraction in reference.points and set(scores.seeds) & set(reference.points[fraction].seeds)
        }
        named: list[tuple[float | None, Scores]] = [*differences.items()]
        if len(differences) > 1 and (seeds := _shared_seeds(list(differences.values()))):
            parts = [scores.subset(seeds) for scores in differences.values()]
            full = np.mean([part.full for part in parts], axis=0)
            resampled = np.mean([part.resampled for part in parts], axis=0)
            named.append((None, Scores(tuple(seeds), full, resampled, parts[0].num_images)))
        found += [
            Gain(
                curve.method,
                curve.start,
                reference.start,
                fraction,
                interval(scores, confidence),
                len(scores.seeds),
                scores.num_images,
            )
            for fraction, scores in named
        ]
    return found


def savings(curves: Sequence[Curve], confidence: float) -> list[Saving]:
    """Compute for each start and label fraction how many labels the reference needs for the same score.

    The curve of the reference is interpolated linearly in the logarithm of the fraction. Where it falls, it is replaced
    by its largest value so far.

    Args:
        curves: All curves.
        confidence: Confidence level of the intervals.
    """
    found = []
    for curve, reference in _pairs(curves):
        fractions = np.array(list(reference.points))
        if len(fractions) < 2:
            continue
        means = np.array([[scores.mean] for scores in reference.points.values()])
        drawn = np.stack([draws(scores, seed=i) for i, scores in enumerate(reference.points.values())])
        num_seeds = min(len(scores.seeds) for scores in reference.points.values())
        for i, (fraction, scores) in enumerate(curve.points.items()):
            needed = needed_fraction(fractions, means, np.array([scores.mean]))[0]
            samples = needed_fraction(fractions, drawn, draws(scores, seed=len(fractions) + i))
            low, high = np.quantile(samples, [0.5 - confidence / 2, 0.5 + confidence / 2], method="nearest")
            found.append(
                Saving(
                    curve.method,
                    curve.start,
                    reference.start,
                    fraction,
                    needed=float(needed),
                    low=float(low),
                    high=float(high),
                    fewest=float(fractions[0]),
                    most=float(fractions[-1]),
                    num_seeds=min(num_seeds, len(scores.seeds)),
                    num_images=scores.num_images,
                )
            )
    return found


def needed_fraction(fractions: Array, scores: Array, target: Array) -> Array:
    """Return the label fraction at which a curve reaches a score.

    Args:
        fractions: The label fractions in ascending order, (f,).
        scores: The scores at these, (f, b).
        target: The score to reach, (b,).

    Returns:
        (b,): infinity if no score is as large, and 0 if even the first one is larger.
    """
    rising = np.maximum.accumulate(scores, axis=0)
    logarithm = np.log(fractions)
    above = (rising >= target).argmax(axis=0)  # the first fraction whose score is large enough
    columns = np.arange(len(target))
    before = np.maximum(above - 1, 0)
    low, high = rising[before, columns], rising[above, columns]
    part = np.divide(target - low, high - low, out=np.ones_like(target), where=high > low)
    needed = np.exp(logarithm[before] + part * (logarithm[above] - logarithm[before]))
    needed = np.where(target < rising[0], 0.0, needed)
    result: Array = np.where(target > rising[-1], np.inf, needed)
    return result


def _pairs(curves: Sequence[Curve]) -> list[tuple[Curve, Curve]]:
    """Return each curve with that of the reference, which has the same method."""
    reference = reference_of(curves)
    references = {curve.method: curve for curve in curves if curve.start == reference}
    return [
        (curve, references[curve.method]) for curve in curves if curve.start != reference and curve.method in references
    ]


def _shared_seeds(differences: Sequence[Scores]) -> list[int]:
    shared = set.intersection(*(set(scores.seeds) for scores in differences))
    return [seed for seed in differences[0].seeds if seed in shared]
