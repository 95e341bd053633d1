"""Probes of frozen features: how well a linear classifier and nearest neighbors tell the classes apart.

Shapes: n samples, d features, r classifiers, c classes, s bootstrap samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from cvexp.metrics import logistic
from cvexp.metrics.bootstrap import CHUNK
from cvexp.metrics.knn import knn_predict


class NonFiniteError(ValueError):
    """A feature is infinite or not a number."""


@dataclass(frozen=True)
class ProbeSettings:
    """How features are probed.

    Attributes:
        knn_k: Number of neighbors that vote.
        knn_bank: Maximum number of training samples searched for neighbors.
        tuning_samples: Maximum number of training samples for the choice of the penalty.
    """

    knn_k: int = 20
    knn_bank: int = 50_000
    tuning_samples: int = 5000


class Predictions(NamedTuple):
    """What the probes predict.

    Attributes:
        linear, knn: Predicted labels (n,) of a linear classifier and of nearest neighbors.
        inverse_strength: The inverse strength of the linear classifier's penalty.
    """

    linear: NDArray[np.int64]
    knn: NDArray[np.int64]
    inverse_strength: float


def probe(
    train_features_nd: Tensor,
    train_labels_n: Tensor,
    train_images: NDArray[np.int64],
    features_nd: Tensor,
    num_classes: int,
    settings: ProbeSettings | None = None,
) -> Predictions:
    """Train a linear classifier and search for neighbors on training features, and classify others.

    The linear classifier is a multinomial logistic regression on standardized features. The strength of its L2 penalty
    is chosen by cross-validation within the training samples, which holds out whole images.

    Args:
        train_features_nd: Training features.
        train_labels_n: Their labels, int64.
        train_images: (n,) their images, as any number.
        features_nd: The features to classify, on the same device.
        num_classes: Number of classes.
        settings: How to probe; None for the defaults.

    Raises:
        NonFiniteError: if a feature is not finite.
    """
    settings = settings or ProbeSettings()
    for features in (train_features_nd, features_nd):
        if not features.isfinite().all():
            raise NonFiniteError("some of its features are not finite")
    standardize = logistic.standardization(train_features_nd)
    standardized_nd = standardize(train_features_nd)
    labels = train_labels_n.cpu().numpy()
    chosen = stratified_subset(labels, settings.tuning_samples)
    folds = logistic.stratified_folds(labels[chosen], train_images[chosen])
    inverse_strength = logistic.DEFAULT_INVERSE_STRENGTH
    if folds is not None:
        inverse_strength = logistic.choose_inverse_strength(standardized_nd[chosen], train_labels_n[chosen], folds)
    classifier = logistic.fit(standardized_nd, train_labels_n, inverse_strength)
    bank = stratified_subset(labels, settings.knn_bank)
    neighbors_n = knn_predict(train_features_nd[bank], train_labels_n[bank], features_nd, num_classes, settings.knn_k)
    return Predictions(
        classifier.predict(standardize(features_nd)).cpu().numpy(), neighbors_n.cpu().numpy(), inverse_strength
    )


def stratified_subset(labels: NDArray[np.int64], size: int) -> NDArray[np.intp]:
    """Choose at random at most `size` samples, in proportion to the classes and at least one of each if there is room.

    Args:
        labels: (n,) the class of each sample.
        size: The largest number of samples.

    Returns:
        Positions in ascending order, always the same ones for the same labels.
    """
    order = np.random.default_rng(0).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    _, first, count = np.unique(labels[by_class], return_index=True, return_counts=True)
    place = np.empty(len(labels))  # relative rank among the samples of the class
    place[by_class] = (np.arange(len(labels)) - np.repeat(first, count)) / np.repeat(count, count)
    return np.sort(order[np.argsort(place[order], kind="stable")][:size])


class Bootstrapped(NamedTuple):
    """Scores of several classifiers, and their values in bootstrap samples.

    Attributes:
        values: (r, 2), top-1 accuracy and mean recall on all images.
        samples: (s, r, 2), the same in each bootstrap sample.
    """

    values: NDArray[np.float64]
    samples: NDArray[np.float64]


def bootstrap(
    predicted_rn: NDArray[np.int64],
    labels: NDArray[np.int64],
    images: NDArray[np.int64],
    num_samples: int,
    seed: int = 0,
) -> Bootstrapped:
    """Score predictions on the same objects, and resample the images with all their objects.

    Objects of one image are not independent, so a bootstrap sample draws images with replacement, the same ones for
    all classifiers (cluster bootstrap; Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section
    3.8). The mean recall is the mean, over the classes in the sample, of the share of objects that are recognized.

    Args:
        predicted_rn: The predictions of each classifier.
        labels: (n,) the true labels.
        images: (n,) the image of each object, as any number.
        num_samples: Number of bootstrap samples.
        seed: Seed of the samples.
    """
    classes, label = np.unique(labels, return_inverse=True)
    names, image = np.unique(images, return_inverse=True)
    shape = (len(names), len(classes))
    totals_ic = csr_array((np.ones(len(label)), (image, label)), shape)  # most images have few classes
    correct_ric = [
        csr_array(((predicted == labels).astype(np.float64), (image, label)), shape) for predicted in predicted_rn
    ]
    random = np.random.default_rng(seed)
    samples = []
    for start in range(0, num_samples, CHUNK):
        size = min(CHUNK, num_samples - start)
        weights = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=size)
        samples.append(_scores(weights.astype(np.float64), totals_ic, correct_ric))
    values = _scores(np.ones((1, len(names))), totals_ic, correct_ric)[0]
    return Bootstrapped(values, np.concatenate(samples))


def _scores(
    weights_si: NDArray[np.float64], totals_ic: csr_array, correct_ric: Sequence[csr_array]
) -> NDArray[np.float64]:
    """Compute the scores (s, r, 2) of weighted images."""
    totals_sc = weights_si @ totals_ic
    scores = []
    for correct_ic in correct_ric:
        correct_sc = weights_si @ correct_ic
        recalls_sc = np.divide(correct_sc, totals_sc, out=np.zeros_like(correct_sc), where=totals_sc > 0)
        top1 = correct_sc.sum(1) / totals_sc.sum(1)
        scores.append(np.stack([top1, recalls_sc.sum(1) / (totals_sc > 0).sum(1)], 1))
    return np.stack(scores, 1)


def bounds(samples: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Return the ends of a percentile interval."""
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
