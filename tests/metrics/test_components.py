"""Main components against scikit-learn's, and their alignment."""

import numpy as np
import pytest
from scipy.stats import special_ortho_group
from sklearn.decomposition import PCA

from cvexp.metrics.components import align, fit_scale, main_components


@pytest.mark.parametrize(("n", "c"), [(60, 9), (9, 60)])
def test_components_are_those_of_scikit_learn(n: int, c: int) -> None:
    features = np.random.default_rng(0).normal(size=(n, c)) * np.arange(1, c + 1) + 5
    components = main_components(features.astype(np.float32), 3)
    expected = PCA(3, svd_solver="full").fit(features.astype(np.float32).astype(np.float64))
    signs = np.sign((components.vectors * expected.components_).sum(1, keepdims=True))
    assert np.allclose(components.vectors, signs * expected.components_, atol=1e-6)
    assert np.allclose(components.scores(features), expected.transform(features) * signs.T, atol=1e-4)
    assert (components.vectors.max(1) == np.abs(components.vectors).max(1)).all()


def test_components_beyond_the_rank_are_zero() -> None:
    components = main_components(np.ones((5, 8)), 3)
    assert (components.vectors == 0).all()
    line = np.outer(np.arange(5), np.arange(8))
    assert (np.abs(main_components(line, 3).vectors).sum(1) > 0).tolist() == [True, False, False]


def test_alignment_keeps_the_colors_of_rotated_features() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(200, 16)) * np.arange(1, 17)
    reference = main_components(features, 3).scores(features)
    turned = features @ special_ortho_group.rvs(16, random_state=1) * 3 + random.normal(size=16)
    components = main_components(turned, 5)
    components = components.rotated(align(components.scores(turned)[:, :3], reference))
    assert np.allclose(components.vectors @ components.vectors.T, np.eye(5))
    scores = components.scores(turned)[:, :3]
    assert np.allclose(scores, 3 * reference)
    same, before = fit_scale(scores).colors(scores), fit_scale(reference).colors(reference)
    assert np.abs(same.astype(int) - before.astype(int)).max() <= 1


def test_the_scale_ignores_outliers() -> None:
    scores = np.random.default_rng(0).uniform(size=(1000, 3))
    scores[0] = 1e6
    colors = fit_scale(scores).colors(scores)
    assert colors[0].tolist() == [255, 255, 255]
    assert colors[1:].std() > 50
