"""Nearest neighbors by cosine, and how often they are of the same class."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

CHUNK = 1024  # queries at a time, which bounds the memory of the similarities
SPARE = 16  # candidates beside the k, as the first look is in single precision
ROUNDING = 1e-5  # what single precision may be wrong by, for vectors of unit length


class Neighbors(NamedTuple):
    """The k nearest features of each query, the nearest first.

    Attributes:
        indices: (m, k) int64, into the bank; of equally near ones the lower index comes first.
        cosines: (m, k) float64.
    """

    indices: NDArray[np.int64]
    cosines: NDArray[np.float64]


def nearest_neighbors(
    bank: NDArray[np.floating], queries: NDArray[np.floating], k: int, own: NDArray[np.int64] | None = None
) -> Neighbors:
    """The k features of a bank with the largest cosine to each query.

    One matrix product in single precision finds candidates; double precision orders them, so that the result does not
    depend on how the product was split, and ties come in the order of the bank.

    Args:
        bank: (n, d).
        queries: (m, d).
        k: How many; all of them where the bank holds fewer.
        own: Each query's place in the bank, which is left out, (m,); None when the queries are not in it.
    """
    unit, single = _unit(bank), F.normalize(torch.from_numpy(np.asarray(bank, np.float32)), dim=1)
    k = min(k, len(bank) - (own is not None))
    indices, cosines = np.zeros((len(queries), k), dtype=np.int64), np.zeros((len(queries), k))
    for start in range(0, len(queries), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(queries)))
        asked = F.normalize(torch.from_numpy(np.asarray(queries[rows], np.float32)), dim=1)
        rough_mn = asked @ single.T
        if own is not None:
            rough_mn[torch.arange(len(rows)), torch.from_numpy(own[rows])] = -torch.inf
        rough, candidates = rough_mn.topk(min(k + SPARE, len(bank) - (own is not None)), sorted=True)
        for row, candidate, found in zip(rows, candidates.numpy(), rough, strict=True):
            if len(found) > k and found[-1] >= found[k - 1] - 2 * ROUNDING:  # perhaps more are as near as the k-th
                candidate = (rough_mn[row - start] >= found[k - 1] - 2 * ROUNDING).nonzero()[:, 0].numpy()
            candidate = np.sort(candidate)
            exact = (unit[candidate] * _unit(queries[row : row + 1])).sum(axis=1)
            order = np.argsort(-exact, kind="stable")[:k]
            indices[row], cosines[row] = candidate[order], exact[order]
    return Neighbors(indices, cosines)


def _unit(features: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rows of unit length; those of zeros stay."""
    double = np.asarray(features, dtype=np.float64)
    lengths: NDArray[np.float64] = np.linalg.norm(double, axis=1, keepdims=True)
    return double / np.maximum(lengths, 1e-12)


def precision_at_k(
    indices: NDArray[np.int64], bank_labels: NDArray[np.integer], query_labels: NDArray[np.integer]
) -> NDArray[np.float64]:
    """For each query the share of its neighbors (m, k) that have its class, (m,)."""
    share: NDArray[np.float64] = (bank_labels[indices] == query_labels[:, None]).mean(axis=1)
    return share
