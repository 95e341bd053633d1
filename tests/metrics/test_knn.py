import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from cvexp.metrics.knn import knn_predict, knn_top1


@pytest.mark.parametrize("k", [1, 5, 20])
def test_predictions_equal_scikit_learns(k: int) -> None:
    random = np.random.RandomState(k)
    bank, queries = random.randn(200, 16), random.randn(50, 16)
    labels = random.randint(0, 4, 200)
    classifier = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=lambda d: np.exp(-d / 0.07))
    expected = classifier.fit(bank, labels).predict(queries)
    got = knn_predict(torch.tensor(bank), torch.tensor(labels), torch.tensor(queries), classes=4, k=k)
    assert got.tolist() == expected.tolist()


def test_a_bank_smaller_than_k_votes_as_a_whole() -> None:
    bank, labels = torch.eye(3), torch.tensor([0, 1, 2])
    assert knn_top1(bank, labels, bank, labels, classes=3, k=20) == 1.0


def test_length_of_features_does_not_matter() -> None:
    torch.manual_seed(0)
    bank, labels, queries = torch.randn(40, 8), torch.randint(0, 3, (40,)), torch.randn(10, 8)
    lengths = torch.rand(10, 1) + 0.1
    assert torch.equal(knn_predict(bank, labels, queries, 3, 5), knn_predict(9 * bank, labels, queries * lengths, 3, 5))
