"""Logistic regression equals scikit-learn's, and nothing about the data breaks it."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from cvexp.metrics.logistic import (
    INVERSE_STRENGTHS,
    choose_inverse_strength,
    fit,
    standardization,
    stratified_folds,
)


def blobs(num_samples: int, num_features: int, num_classes: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return features that overlap, of different scales, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(num_samples) % num_classes
    centers = random.normal(size=(num_classes, num_features)) * spread
    features = (centers[labels] + random.normal(size=(num_samples, num_features))) * random.uniform(1, 9, num_features)
    return torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels)


def peer(inverse_strength: float = 1.0) -> LogisticRegression:
    return LogisticRegression(C=inverse_strength, tol=1e-7, max_iter=5000)


def standardized(features: Tensor) -> NDArray[np.float64]:
    return np.asarray(StandardScaler().fit_transform(features.double().numpy()))


@pytest.mark.parametrize("inverse_strength", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("size", [(300, 12, 4), (30, 50, 3)])  # the second has more features than samples
def test_equals_scikit_learn(size: tuple[int, int, int], inverse_strength: float) -> None:
    features, labels = blobs(*size, spread=0.5)
    mine = standardization(features)(features)
    theirs = standardized(features)
    assert mine.numpy() == pytest.approx(theirs, abs=1e-9)
    classifier = fit(mine, labels, inverse_strength)
    other = peer(inverse_strength).fit(theirs, labels.numpy())
    probabilities = classifier.logits(mine).softmax(1).numpy()
    assert probabilities == pytest.approx(other.predict_proba(theirs), abs=2e-3)
    assert classifier.weights_dc.T.numpy() == pytest.approx(other.coef_, abs=2e-3 * max(1, np.abs(other.coef_).max()))
    assert (classifier.predict(mine).numpy() == other.predict(theirs)).mean() >= 0.99


@pytest.mark.parametrize("spread", [0.15, 0.5])
def test_chooses_the_penalty_of_a_grid_search_with_the_same_folds(spread: float) -> None:
    features, labels = blobs(240, 20, 3, spread, seed=1)
    folds = stratified_folds(labels.numpy(), np.arange(240))
    assert folds is not None
    mine = standardization(features)(features)
    search = GridSearchCV(peer(), {"C": INVERSE_STRENGTHS}, cv=PredefinedSplit(folds))
    search.fit(standardized(features), labels.numpy())
    assert choose_inverse_strength(mine, labels, folds) == search.best_params_["C"]


def test_folds_are_stratified_and_a_rare_class_does_not_reduce_their_number() -> None:
    labels = np.repeat([0, 1, 2, 3], [20, 11, 3, 1])
    folds = stratified_folds(labels, np.arange(35))
    assert folds is not None
    assert folds.max() == 4
    for label in range(4):
        counts = np.bincount(folds[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert np.array_equal(folds, stratified_folds(labels, np.arange(35)))  # type: ignore[arg-type]


def test_folds_hold_out_whole_images() -> None:
    images = np.repeat(np.arange(30) * 7, 4)
    labels = np.random.default_rng(0).integers(0, 3, 120)
    folds = stratified_folds(labels, images)
    assert folds is not None
    assert all(len(np.unique(folds[images == image])) == 1 for image in np.unique(images))
    assert np.bincount(folds).tolist() == [24] * 5
    few = stratified_folds(np.zeros(9, dtype=np.int64), np.arange(9) % 3)
    assert few is not None
    assert few.max() == 2


def test_nothing_is_held_out_unless_a_class_is_in_two_images() -> None:
    assert stratified_folds(np.arange(4), np.arange(4)) is None
    assert stratified_folds(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1])) is None


def test_constant_features_and_absent_classes_are_harmless() -> None:
    features, labels = blobs(60, 4, 3, spread=2)
    labels = labels * 2  # classes 1, 3 and 5 are absent
    constant = torch.full((60, 1), 1e4) + torch.rand(60, 1, generator=torch.Generator().manual_seed(0)) * 1e-4
    augmented = torch.cat([features, constant, torch.zeros(60, 1)], 1)
    plain = standardization(features)(features)
    mine = standardization(augmented)(augmented)
    assert mine[:, 4:].abs().max() < 0.01
    predicted = fit(mine, labels, 1.0).predict(mine)
    assert torch.equal(predicted, fit(plain, labels, 1.0).predict(plain))
    assert set(predicted.tolist()) == {0, 2, 4}


def test_one_class_is_always_predicted() -> None:
    features, _ = blobs(5, 3, 1, spread=1)
    assert fit(features.double(), torch.full((5,), 7), 1.0).predict(features.double()).tolist() == [7] * 5
