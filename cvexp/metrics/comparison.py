"""Comparison of segmentation runs: scores of each run, and differences between groups of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from cvexp.metrics import iou
from cvexp.metrics.bootstrap import Interval, paired_difference

RANDOM = "random"  # start of runs without pretrained weights


def _scores(counts: iou.Counts) -> dict[str, float]:
    return iou.summarize(counts, [f"{i}" for i in range(counts.shape[1] - 1)])


@dataclass(frozen=True)
class Evaluated:
    """The measurements of one run.

    Attributes:
        run_id: MLflow's ID of the run.
        method: The task of the run.
        start: Where its initial weights came from.
        seed: The seed of the run.
        counts: Pixel counts (images, 1 + c, 3), see `cvexp.metrics.iou`.
        times: Milliseconds for a batch of one image, measured for several images.
        num_parameters: Number of parameters of the whole network.
    """

    run_id: str
    method: str
    start: str
    seed: int
    counts: iou.Counts
    times: Sequence[float]
    num_parameters: int

    @property
    def milliseconds(self) -> float:
        return float(np.median(self.times))

    @property
    def miou(self) -> float:
        return float(iou.mean_iou(self.counts[:, 1:].sum(axis=0)))

    @property
    def scores(self) -> dict[str, float]:
        """The scores of the whole data set by name; numbers replace the class names."""
        return _scores(self.counts)


class Constant(NamedTuple):
    """A prediction of the same label for every pixel.

    Attributes:
        label: The class name, or "background".
        counts: Pixel counts (images, 1 + c, 3), see `cvexp.metrics.iou`.
    """

    label: str
    counts: iou.Counts

    @property
    def scores(self) -> dict[str, float]:
        """The scores of the whole data set by name; numbers replace the class names."""
        return _scores(self.counts)


class Group(NamedTuple):
    """The runs of a method from a start.

    Attributes:
        method: The task of the runs.
        start: Where their initial weights came from; None for all starts.
    """

    method: str
    start: str | None


@dataclass(frozen=True)
class Difference:
    """The mIoU of a first group of runs minus that of a second one, paired by start and seed.

    Attributes:
        first, second: The groups.
        num_pairs: Number of pairs of runs.
        interval: The difference and its confidence interval.
    """

    first: Group
    second: Group
    num_pairs: int
    interval: Interval

    @property
    def is_between_methods(self) -> bool:
        """Whether the groups differ in the method, rather than in the start."""
        return self.first.method != self.second.method

    @property
    def name(self) -> str:
        if self.is_between_methods:
            return f"{self.first.method} - {self.second.method}, from {self.first.start or 'all'}"
        return f"{self.first.start} - {self.second.start}, {self.first.method}"


@dataclass(frozen=True)
class Comparison:
    """The measurements of several runs.

    Attributes:
        classes: Class names.
        images: Image files, in the order of the counts.
        evaluated: The measurements of each run.
        differences: Differences between groups of runs.
        confidence: Confidence level of their intervals.
        split: The split of the images, ``"test"``, or ``"val"`` if there was no test split.
        has_background: Whether pixels may belong to no class.
    """

    classes: Sequence[str]
    images: Sequence[str]
    evaluated: Sequence[Evaluated]
    differences: Sequence[Difference]
    confidence: float
    split: str = "val"
    has_background: bool = True

    @property
    def split_name(self) -> str:
        """The name of the split in sentences, ``"test"`` or ``"validation"``."""
        return "validation" if self.split == "val" else self.split

    def groups(self) -> dict[tuple[str, str], list[Evaluated]]:
        """Return the runs by method and start."""
        groups: dict[tuple[str, str], list[Evaluated]] = {}
        for run in self.evaluated:
            groups.setdefault((run.method, run.start), []).append(run)
        return groups

    def constants(self) -> list[Constant]:
        """Return constant predictions: the class with the most labeled pixels, and the background, if there is one."""
        counts = self.evaluated[0].counts
        largest = int(counts[:, 1:, 2].sum(axis=0).argmax())
        constants = [Constant(self.classes[largest], iou.count_constant(counts, 1 + largest))]
        return constants + ([Constant("background", iou.count_constant(counts, 0))] if self.has_background else [])

    def representatives(self) -> list[Evaluated]:
        """Return one run of each method for pictures: the first seed, from the start with the best mean mIoU.

        Only starts that all methods have are considered, if there are any.
        """
        groups = self.groups()
        methods = list(dict.fromkeys(run.method for run in self.evaluated))
        starts = list(dict.fromkeys(run.start for run in self.evaluated))
        shared = [start for start in starts if all((method, start) in groups for method in methods)]

        def score(start: str) -> float:
            return float(np.mean([run.miou for run in self.evaluated if run.start == start]))

        best = max(shared or starts, key=score)
        return [groups[method, best][0] for method in methods if (method, best) in groups]


def differences(evaluated: Sequence[Evaluated], num_samples: int, confidence: float) -> list[Difference]:
    """Compare the methods for each start and for all starts, and each start with random weights for each method.

    Only runs with a counterpart in the other group are compared: a run with the same seed and, for methods, the same
    start.

    Args:
        evaluated: The measurements of each run; those of a baseline come before those of other methods.
        num_samples: Number of bootstrap samples.
        confidence: Confidence level of the intervals.
    """
    methods = list(dict.fromkeys(run.method for run in evaluated))
    starts = list(dict.fromkeys(run.start for run in evaluated))
    pairs: list[tuple[Group, Group]] = []
    for baseline, method in combinations(methods, 2):
        scopes = [*starts, None] if len(starts) > 1 else starts
        pairs += [(Group(method, start), Group(baseline, start)) for start in scopes]
    pairs += [
        (Group(method, start), Group(method, RANDOM)) for method in methods for start in starts if start != RANDOM
    ]
    counts = {(run.method, run.start, run.seed): run.counts[:, 1:] for run in evaluated}
    seeds = sorted({run.seed for run in evaluated})
    compared = []
    for first, second in pairs:
        keys = [
            ((first.method, first.start or start, seed), (second.method, second.start or start, seed))
            for start in (starts if first.start is None else [first.start])
            for seed in seeds
        ]
        both = [(counts[a], counts[b]) for a, b in keys if a in counts and b in counts]
        if both:
            a, b = (np.stack(side) for side in zip(*both, strict=True))
            compared.append(Difference(first, second, len(both), paired_difference(a, b, num_samples, confidence)))
    return compared
