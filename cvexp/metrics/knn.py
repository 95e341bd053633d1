"""Weighted k-nearest-neighbour classification, the usual way to judge frozen features (Wu et al. 2018, section 3.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def knn_predict(
    bank_nd: Tensor, bank_labels_n: Tensor, queries_md: Tensor, classes: int, k: int, temperature: float = 0.07
) -> Tensor:
    """The class of each query by a vote of its k nearest bank features, weighted by exp(cosine / temperature).

    Args:
        bank_nd: Features with known labels.
        bank_labels_n: Their labels, int64.
        queries_md: Features to classify.
        classes: How many classes there are.
        k: How many neighbours vote; all of them where the bank holds fewer.

    Returns:
        (m,) int64 labels.
    """
    bank, queries = F.normalize(bank_nd.float(), dim=-1), F.normalize(queries_md.float(), dim=-1)
    predictions = []
    for chunk in queries.split(4096):  # bounds the memory of the similarities
        cosine_mk, index_mk = (chunk @ bank.T).topk(min(k, len(bank)))
        votes = torch.zeros(len(chunk), classes, device=bank.device)
        votes.scatter_add_(1, bank_labels_n[index_mk], ((cosine_mk - 1) / temperature).exp())
        predictions.append(votes.argmax(1))
    return torch.cat(predictions)


def knn_top1(
    bank_nd: Tensor, bank_labels_n: Tensor, queries_md: Tensor, query_labels_m: Tensor, classes: int, k: int
) -> float:
    """The fraction of queries that `knn_predict` classifies right."""
    predicted = knn_predict(bank_nd, bank_labels_n, queries_md, classes, k)
    return (predicted == query_labels_m).float().mean().item()
