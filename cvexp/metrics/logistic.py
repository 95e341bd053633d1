"""Multinomial logistic regression with an L2 penalty, whose strength is chosen by cross-validation.

The objective is that of scikit-learn's `LogisticRegression`: the sum of the cross-entropies, times the inverse strength
`C` of the penalty, plus half the squared norm of the weights. The biases are not penalized.

Shapes: n samples, d features, c classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

INVERSE_STRENGTHS = tuple(10.0**exponent for exponent in range(-4, 5))
DEFAULT_INVERSE_STRENGTH = 1.0  # if no class is in two images, so that nothing can be held out
MAX_FOLDS = 5
MAX_ITERATIONS = 500
TOLERANCE = 1e-6  # of the largest entry of the gradient of the mean loss
TUNING_TOLERANCE = 1e-5  # in the cross-validation, which needs only accuracies
CONSTANT = 1e-6  # a feature with a smaller standard deviation, relative to its mean, is constant up to rounding


class Standardization(NamedTuple):
    """Shifts and scales features to zero mean and unit variance over the training samples; see `standardization`."""

    mean_d: Tensor
    scale_d: Tensor

    def __call__(self, features_nd: Tensor) -> Tensor:
        """Return features in double precision, or in single precision on devices without it."""
        return (features_nd.to(self.mean_d.dtype) - self.mean_d) / self.scale_d


def standardization(features_nd: Tensor) -> Standardization:
    """Compute the statistics of training features. Constant features become zero."""
    precise_nd = features_nd.to(torch.float32 if features_nd.device.type == "mps" else torch.float64)
    std_d, mean_d = torch.std_mean(precise_nd, 0, correction=0)
    is_constant_d = std_d <= CONSTANT * mean_d.abs()
    return Standardization(mean_d, torch.where(is_constant_d, 1.0, std_d))


class Classifier(NamedTuple):
    """A linear classifier.

    Attributes:
        weights_dc, biases_c: Its parameters.
        labels_c: The label of each output: the labels that occurred in training.
    """

    weights_dc: Tensor
    biases_c: Tensor
    labels_c: Tensor

    def logits(self, features_nd: Tensor) -> Tensor:
        """Return the logits (n, c)."""
        return torch.addmm(self.biases_c, features_nd, self.weights_dc)

    def predict(self, features_nd: Tensor) -> Tensor:
        """Return the labels (n,) with the largest logits."""
        return self.labels_c[self.logits(features_nd).argmax(1)]


def fit(
    features_nd: Tensor,
    labels_n: Tensor,
    inverse_strength: float,
    initial: Classifier | None = None,
    tolerance: float = TOLERANCE,
) -> Classifier:
    """Fit a classifier with L-BFGS.

    Args:
        features_nd: Standardized training features.
        labels_n: Their labels, int64. Labels that do not occur are never predicted.
        inverse_strength: The inverse strength of the penalty, `C`.
        initial: A classifier of the same labels to start from; None starts from zero.
        tolerance: The largest entry of the gradient of the mean loss at which to stop.
    """
    occurring_c, target_n = labels_n.unique(return_inverse=True)
    (num_samples, num_features), num_classes = features_nd.shape, len(occurring_c)
    shape = (num_features + 1, num_classes)  # the last row holds the biases
    penalty = 1 / (inverse_strength * num_samples)

    def loss_and_gradient(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        parameters = torch.from_numpy(flat).to(features_nd).view(shape)
        logits_nc = torch.addmm(parameters[-1], features_nd, parameters[:-1])
        log_p_nc = logits_nc.log_softmax(1)
        loss = -log_p_nc.gather(1, target_n[:, None]).mean() + penalty / 2 * parameters[:-1].square().sum()
        error_nc = log_p_nc.exp_().scatter_add_(1, target_n[:, None], -torch.ones_like(log_p_nc[:, :1])) / num_samples
        gradient = torch.cat([features_nd.T @ error_nc + penalty * parameters[:-1], error_nc.sum(0, keepdim=True)])
        return loss.item(), gradient.double().cpu().numpy().ravel()

    start = np.zeros(shape)
    if initial is not None:
        start = torch.cat([initial.weights_dc, initial.biases_c[None]]).double().cpu().numpy()
    options = {"maxiter": MAX_ITERATIONS, "gtol": tolerance, "ftol": 64 * np.finfo(float).eps, "maxls": 50}
    found = minimize(loss_and_gradient, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    parameters = torch.from_numpy(found.x).to(features_nd).view(shape)
    return Classifier(parameters[:-1], parameters[-1], occurring_c)


def stratified_folds(
    labels: NDArray[np.int64], images: NDArray[np.int64], max_folds: int = MAX_FOLDS, seed: int = 0
) -> NDArray[np.int64] | None:
    """Assign images with all their samples to folds at random, stratified by the rarest class of each image.

    There are no more folds than images. A class in few images is missing from some folds, which does no harm.

    Args:
        labels: (n,) the class of each sample.
        images: (n,) the image of each sample, as any number.
        max_folds: The largest number of folds.
        seed: Seed of the assignment.

    Returns:
        (n,) the fold of each sample, from 0; None if no class is in two images, so that nothing can be held out.
    """
    names, image = np.unique(images, return_inverse=True)
    _, label = np.unique(labels, return_inverse=True)
    pairs = np.unique(np.stack([image, label]), axis=1)
    num_images_of = np.bincount(pairs[1])
    if num_images_of.max() < 2:
        return None
    rarity = np.argsort(np.argsort(num_images_of, kind="stable"))
    stratum = np.full(len(names), len(rarity))
    np.minimum.at(stratum, image, rarity[label])
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(stratum[order], kind="stable")]
    fold_of = np.empty(len(names), dtype=np.int64)
    fold_of[order] = np.arange(len(names)) % min(max_folds, len(names))
    folds: NDArray[np.int64] = fold_of[image]
    return folds


def choose_inverse_strength(
    features_nd: Tensor,
    labels_n: Tensor,
    folds: NDArray[np.int64],
    candidates: Sequence[float] = INVERSE_STRENGTHS,
) -> float:
    """Choose the inverse strength of the penalty with the highest accuracy, averaged over held-out folds.

    Args:
        features_nd: Standardized training features.
        labels_n: Their labels, int64.
        folds: (n,) the fold of each sample.
        candidates: The inverse strengths, in ascending order. The first of several best ones is chosen.
    """
    accuracies = []
    for fold in range(folds.max() + 1):
        is_held_out = torch.from_numpy(folds == fold).to(labels_n.device)
        train_nd, train_labels_n = features_nd[~is_held_out], labels_n[~is_held_out]
        classifier = None
        for candidate in candidates:  # from strong to weak penalties, each starting from the last result
            classifier = fit(train_nd, train_labels_n, candidate, classifier, TUNING_TOLERANCE)
            correct = classifier.predict(features_nd[is_held_out]) == labels_n[is_held_out]
            accuracies.append(correct.double().mean().item())
    means = np.array(accuracies).reshape(-1, len(candidates)).mean(0)
    return candidates[int(means.argmax())]
