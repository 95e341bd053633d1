"""Weighted k-nearest-neighbor classification, a common evaluation of frozen features (Wu et al., "Unsupervised Feature
Learning via Non-Parametric Instance Discrimination", https://arxiv.org/abs/1805.01978, section 3.4).

Shapes: n features in the bank, m queries, d dimensions, k neighbors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def knn_predict(
    bank_nd: Tensor, bank_labels_n: Tensor, queries_md: Tensor, num_classes: int, k: int, temperature: float = 0.07
) -> Tensor:
    """Classify each query by a vote of its k nearest features in a bank, weighted by exp(cosine / temperature).

    Args:
        bank_nd: Features with known labels.
        bank_labels_n: Their labels, int64.
        queries_md: Features to classify.
        num_classes: Number of classes.
        k: Number of neighbors that vote; at most the size of the bank.
        temperature: Temperature of the weights.

    Returns:
        Predicted labels (m,) int64.
    """
    bank_nd, queries_md = F.normalize(bank_nd.float(), dim=-1), F.normalize(queries_md.float(), dim=-1)
    predictions = []
    for chunk_md in queries_md.split(4096):  # bounds the memory of the similarities
        cosine_mk, index_mk = (chunk_md @ bank_nd.T).topk(min(k, len(bank_nd)))
        votes = torch.zeros(len(chunk_md), num_classes, device=bank_nd.device)
        votes.scatter_add_(1, bank_labels_n[index_mk], ((cosine_mk - 1) / temperature).exp())
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


def knn_top1(
    bank_nd: Tensor, bank_labels_n: Tensor, queries_md: Tensor, query_labels_m: Tensor, num_classes: int, k: int
) -> float:
    """Compute the fraction of queries that `knn_predict` classifies correctly."""
    predicted_m = knn_predict(bank_nd, bank_labels_n, queries_md, num_classes, k)
    return (predicted_m == query_labels_m).float().mean().item()


def worse_than_untrained(
    untrained: float | None, trained: Mapping[str, float], num_crops: int | None = None
) -> str | None:
    """Return a warning if pretraining lowered the kNN accuracy, or None if it did not.

    Of few crops, a lower share may be chance. So the difference must exceed two standard errors of the difference
    between two independent shares, which is larger than that between two shares of the same crops.

    Args:
        untrained: The accuracy before the first step; None if the data have no labels.
        trained: Accuracies after training, by the time of measurement, such as "at the last epoch". Of equal
            accuracies, the last one is stated.
        num_crops: The number of crops on which they were measured; None if it is unknown, and any decrease counts.
    """
    if untrained is None:
        return None
    before = untrained

    def is_worse(accuracy: float) -> bool:
        variance = before * (1 - before) + accuracy * (1 - accuracy)
        return before - accuracy > (0.0 if num_crops is None else 2 * math.sqrt(variance / max(num_crops, 1)))

    worse = {accuracy: when for when, accuracy in trained.items() if is_worse(accuracy)}  # of equal ones, the last
    if not worse:
        return None
    digits = 3 if all(round(accuracy, 3) < round(untrained, 3) for accuracy in worse) else 6
    measured = " and ".join(f"{accuracy:.{digits}f} {when}" for accuracy, when in worse.items())
    return f"Pretraining made the features worse: kNN accuracy {measured}, {untrained:.{digits}f} untrained."
