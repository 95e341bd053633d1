"""The results of probing several networks on the same objects: scores with intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvexp.metrics.bootstrap import Interval
from cvexp.metrics.probing import Predictions, bootstrap, bounds

SCORES = ("linear_top1", "linear_mean_recall", "knn_top1", "knn_mean_recall")


class Estimate(NamedTuple):
    """A score and its confidence interval.

    Attributes:
        value: The score on all images.
        low, high: The ends of the interval.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Probed:
    """The scores of a network.

    Attributes:
        name: A name that no other network has.
        is_control: Whether it is only compared with.
        method: The pretraining method, the name of other weights, or what a control is.
        start: The origin of the weights that the pretraining started from; empty for others than runs.
        backbone: The name of the backbone; empty for a histogram.
        eval_size: Side length of the images in pixels.
        seed: The seed of the pretraining or of the random weights; None if it is unknown or nothing was random.
        run_id: The pretraining run; None if it is unknown.
        num_features: Length of a feature vector.
        inverse_strength: The inverse strength of the linear classifier's penalty.
        scores: The scores by name, see `SCORES`.
        settings: All other settings, such as a digest of them; empty if they are unknown.
    """

    name: str
    is_control: bool
    method: str
    start: str
    backbone: str
    eval_size: int
    seed: int | None
    run_id: str | None
    num_features: int
    inverse_strength: float
    scores: Mapping[str, Estimate]
    settings: str = ""


class Contrast(NamedTuple):
    """A score of a probed network minus that of one of its controls.

    Attributes:
        network, control: Their names.
        score: The name of the score.
        interval: The difference and its confidence interval.
    """

    network: str
    control: str
    score: str
    interval: Interval


class SeedGroup(NamedTuple):
    """Networks that differ only in the seed.

    Attributes:
        name: What they have in common. It also names the first member if another group has the same in common.
        members: Their names.
        is_control: Whether they are controls.
        means, deviations: Mean and standard deviation of each score over the seeds.
    """

    name: str
    members: list[str]
    is_control: bool
    means: dict[str, float]
    deviations: dict[str, float]


@dataclass(frozen=True)
class ProbeResults:
    """The scores of several networks on the same objects.

    Attributes:
        dataset: The name of the data source.
        split: The split that is scored, ``"test"`` or ``"val"``.
        classes: Class names.
        num_images, num_objects: The numbers of scored images and objects.
        num_training: The number of training objects.
        confidence: Confidence level of the intervals.
        constant: The scores, by name, of always predicting the class that is most frequent in training.
        networks: The scores of each network; probed ones come before controls.
        contrasts: Differences between probed networks and their controls.
        notes: Sentences about the split, and about controls that are missing.
    """

    dataset: str
    split: str
    classes: Sequence[str]
    num_images: int
    num_objects: int
    num_training: int
    confidence: float
    constant: Mapping[str, float]
    networks: Sequence[Probed]
    contrasts: Sequence[Contrast]
    notes: Sequence[str]

    @property
    def probed(self) -> list[Probed]:
        """The networks that are not controls."""
        return [network for network in self.networks if not network.is_control]

    def groups(self) -> list[SeedGroup]:
        """Return the groups of at least two networks that differ only in the seed."""
        members: dict[tuple[object, ...], list[Probed]] = {}
        for network in self.networks:
            if network.seed is not None:
                key = (network.method, network.start, network.backbone, network.eval_size, network.is_control)
                members.setdefault((*key, network.settings), []).append(network)
        groups = [_group(alike) for alike in members.values() if len({one.seed for one in alike}) == len(alike) > 1]
        names = [group.name for group in groups]
        return [
            group._replace(name=f"{group.name} (with {group.members[0]})") if names.count(group.name) > 1 else group
            for group in groups
        ]


def _group(alike: Sequence[Probed]) -> SeedGroup:
    first, values = alike[0], {name: [network.scores[name].value for network in alike] for name in SCORES}
    name = f"{first.method} from {first.start}" if first.start else first.method
    return SeedGroup(
        name=f"{name}, {len(alike)} seeds",
        members=[network.name for network in alike],
        is_control=first.is_control,
        means={name: float(np.mean(scores)) for name, scores in values.items()},
        deviations={name: float(np.std(scores, ddof=1)) for name, scores in values.items()},
    )


class Scores(NamedTuple):
    """What `score` returns.

    Attributes:
        estimates: The scores of each network by name.
        contrasts: The differences by name, for each pair.
    """

    estimates: list[dict[str, Estimate]]
    contrasts: list[dict[str, Interval]]


def score(
    predictions: Sequence[Predictions],
    labels: NDArray[np.int64],
    images: NDArray[np.int64],
    pairs: Sequence[tuple[int, int]],
    num_samples: int,
    confidence: float,
) -> Scores:
    """Score the predictions of several networks for the same objects, with bootstrap intervals over the images.

    Args:
        predictions: The predictions of each network.
        labels: (n,) the true labels.
        images: (n,) the image of each object.
        pairs: Positions of two networks to compare, first minus second, with the same bootstrap samples.
        num_samples: Number of bootstrap samples.
        confidence: Confidence level of the intervals.
    """
    predicted = np.stack([labels_n for network in predictions for labels_n in (network.linear, network.knn)])
    resampled = bootstrap(predicted, labels, images, num_samples)
    values = resampled.values.reshape(len(predictions), len(SCORES))  # each row in the order of `SCORES`
    samples = resampled.samples.reshape(-1, len(predictions), len(SCORES))
    estimates = [
        {
            name: Estimate(float(values[network, i]), *bounds(samples[:, network, i], confidence))
            for i, name in enumerate(SCORES)
        }
        for network in range(len(predictions))
    ]
    contrasts = [
        {
            name: Interval(
                float(values[first, i] - values[second, i]),
                *bounds(samples[:, first, i] - samples[:, second, i], confidence),
            )
            for i, name in enumerate(SCORES)
        }
        for first, second in pairs
    ]
    return Scores(estimates, contrasts)


def constant_scores(train_labels: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return the top-1 accuracy and the mean recall of always predicting the most frequent training class."""
    is_right = labels == np.bincount(train_labels).argmax()
    return {"top1": float(is_right.mean()), "mean_recall": float(is_right.any() / len(np.unique(labels)))}
