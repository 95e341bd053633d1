"""Nearest neighbors by cosine similarity, and how often they have the same class.

Shapes: n features in the bank, m queries, d dimensions, k neighbors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

CHUNK = 1024  # queries that are processed at once, which bounds the memory of the similarities
NUM_SPARE = 16  # candidates besides the k nearest, because candidates are found in single precision
ROUNDING = 1e-5  # bound on the error of a cosine in single precision


class Neighbors(NamedTuple):
    """The k nearest features of each query, nearest first.

    Attributes:
        indices: Indices into the bank (m, k) int64. Of equally near features, the one with the lower index comes first.
        cosines: Cosine similarities (m, k) float64.
    """

    indices: NDArray[np.int64]
    cosines: NDArray[np.float64]


def nearest_neighbors(
    bank: NDArray[np.floating], queries: NDArray[np.floating], k: int, exclude: NDArray[np.int64] | None = None
) -> Neighbors:
    """Find the k features of a bank with the largest cosine similarity to each query.

    A matrix product in single precision finds candidates, and double precision orders them. Thus the result does not
    depend on the chunks of the product, and ties are in the order of the bank.

    Args:
        bank: Features (n, d).
        queries: Features (m, d).
        k: Number of neighbors; at most the number of available features.
        exclude: The index of a feature in the bank to exclude for each query (m,), such as the query itself; None to
            exclude nothing.
    """
    bank64_nd = _normalize(bank)
    bank32_nd = F.normalize(torch.from_numpy(np.asarray(bank, np.float32)), dim=1)
    num_available = len(bank) - (exclude is not None)
    k = min(k, num_available)
    indices, cosines = np.zeros((len(queries), k), dtype=np.int64), np.zeros((len(queries), k))
    for start in range(0, len(queries), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(queries)))
        queries32_md = F.normalize(torch.from_numpy(np.asarray(queries[rows], np.float32)), dim=1)
        cosines32_mn = queries32_md @ bank32_nd.T
        if exclude is not None:
            cosines32_mn[torch.arange(len(rows)), torch.from_numpy(exclude[rows])] = -torch.inf
        top_cosines, top_indices = cosines32_mn.topk(min(k + NUM_SPARE, num_available), sorted=True)
        for row, top, candidates in zip(rows, top_cosines, top_indices.numpy(), strict=True):
            # Features beyond the candidates may be as near as the k-th.
            if len(top) > k and top[-1] >= (threshold := top[k - 1] - 2 * ROUNDING):
                candidates = (cosines32_mn[row - start] >= threshold).nonzero()[:, 0].numpy()
            candidates = np.sort(candidates)
            cosines64 = (bank64_nd[candidates] * _normalize(queries[row : row + 1])).sum(axis=1)
            order = np.argsort(-cosines64, kind="stable")[:k]
            indices[row], cosines[row] = candidates[order], cosines64[order]
    return Neighbors(indices, cosines)


def _normalize(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Scale rows to unit length, except rows of zeros."""
    double = np.asarray(features, dtype=np.float64)
    lengths: NDArray[np.float64] = np.linalg.norm(double, axis=1, keepdims=True)
    return double / np.maximum(lengths, 1e-12)


def precision_at_k(
    indices: NDArray[np.int64], bank_labels: NDArray[np.integer], query_labels: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Compute the fraction (m,) of each query's neighbors (m, k) that have the query's class."""
    precision: NDArray[np.float64] = (bank_labels[indices] == query_labels[:, None]).mean(axis=1)
    return precision
