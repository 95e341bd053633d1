"""Main components of feature maps, and their comparable display as colors.

Shapes: n positions of all images together, c channels, k components.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

PERCENTILES = (2.0, 98.0)  # of each component, shown as 0 and 1, so that a few outliers do not take the whole range


class Components(NamedTuple):
    """Main components of features.

    Attributes:
        mean: The mean of the features, (c,).
        vectors: Orthonormal directions (k, c), in descending order of their variance. Those beyond the rank of the
            features are zero.
    """

    mean: NDArray[np.float64]
    vectors: NDArray[np.float64]

    def scores(self, features_nc: NDArray[Any]) -> NDArray[np.float64]:
        """Return the coordinates (n, k) of features."""
        return (features_nc - self.mean) @ self.vectors.T

    def rotated(self, rotation: NDArray[np.float64]) -> Components:
        """Rotate the first three components by a matrix (3, 3), which multiplies their scores from the right."""
        return Components(self.mean, np.concatenate([rotation.T @ self.vectors[:3], self.vectors[3:]]))


def main_components(features_nc: NDArray[Any], k: int) -> Components:
    """Compute the main components (PCA). The largest entry of each direction is positive.

    Args:
        features_nc: The features.
        k: Number of components.
    """
    features_nc = features_nc.astype(np.float64)
    mean = features_nc.mean(0)
    centered = features_nc - mean
    is_wide = centered.shape[0] < centered.shape[1]
    variances, found = np.linalg.eigh(centered @ centered.T if is_wide else centered.T @ centered)
    kept = np.flatnonzero(variances > 1e-12 * max(variances[-1], 1e-300))[::-1][:k]
    directions = (centered.T @ found if is_wide else found)[:, kept].T
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    vectors = np.zeros((k, centered.shape[1]))
    vectors[: len(kept)] = directions
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(1)[:, None], 1)
    return Components(mean, vectors * np.where(largest < 0, -1.0, 1.0))


def align(scores_n3: NDArray[Any], reference_n3: NDArray[Any]) -> NDArray[np.float64]:
    """Return the orthogonal matrix (3, 3) that brings scores closest to those of a reference (Procrustes).

    It minimizes |scores @ matrix - reference|. See Schönemann, "A generalized solution of the orthogonal Procrustes
    problem", Psychometrika 31 (1966).
    """
    left, _, right = np.linalg.svd(scores_n3.T.astype(np.float64) @ reference_n3.astype(np.float64))
    rotation: NDArray[np.float64] = left @ right
    return rotation


class Scale(NamedTuple):
    """The values of each component that are shown as 0 and 1, each (3,)."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def colors(self, scores: NDArray[Any]) -> NDArray[np.uint8]:
        """Map scores (..., 3) to colors (..., 3)."""
        shares = (scores - self.low) / np.maximum(self.high - self.low, 1e-12)
        return np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)


def fit_scale(scores_n3: NDArray[Any]) -> Scale:
    """Fit the scale to the scores of all images together."""
    low, high = np.percentile(scores_n3.astype(np.float64), PERCENTILES, axis=0)
    return Scale(low, high)
