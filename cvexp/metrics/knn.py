"""Weighted k-nearest-neighbor classification, the usual way to judge frozen features (Wu et al. 2018, section 3.4)."""

from __future__ import annotations

from collections.abc import Mapping

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
        k: How many neighbors vote; all of them where the bank holds fewer.

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


def worse_than_untrained(untrained: float | None, trained: Mapping[str, float]) -> str | None:
    """A warning in words where pretraining lowered the kNN accuracy; None where it did not.

    Args:
        untrained: The accuracy before the first step; None where the data have no labels.
        trained: Accuracies after training, by when they were measured, such as "at the best epoch".
    """
    if untrained is None:
        return None
    worse: dict[str, float] = {}
    for when, accuracy in trained.items():
        if accuracy < untrained and accuracy not in worse.values():  # the best epoch may be the last
            worse[when] = accuracy
    if not worse:
        return None
    digits = 3 if all(round(accuracy, 3) < round(untrained, 3) for accuracy in worse.values()) else 6
    measured = " and ".join(f"{accuracy:.{digits}f} {when}" for when, accuracy in worse.items())
    return f"Pretraining made the features worse: kNN accuracy {measured}, {untrained:.{digits}f} untrained."
