import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from cvexp.metrics.knn import knn_predict, knn_top1, worse_than_untrained


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


def test_worse_features_are_stated_with_their_accuracies() -> None:
    assert worse_than_untrained(0.614, {"at the best epoch": 0.455, "at the last epoch": 0.7}) == (
        "Pretraining made the features worse: kNN accuracy 0.455 at the best epoch, 0.614 untrained."
    )
    assert worse_than_untrained(0.614, {"at the best epoch": 0.7, "at the last epoch": 0.5}) == (
        "Pretraining made the features worse: kNN accuracy 0.500 at the last epoch, 0.614 untrained."
    )
    both = worse_than_untrained(0.614, {"at the best epoch": 0.455, "after epoch 3": 0.5})
    assert both is not None
    assert "kNN accuracy 0.455 at the best epoch and 0.500 after epoch 3, 0.614 untrained." in both
    same = worse_than_untrained(0.614, {"at the best epoch": 0.455, "at the last epoch": 0.455})
    assert same is not None
    assert "last" not in same


def test_equal_features_are_not_worse_and_nothing_is_said_without_labels() -> None:
    assert worse_than_untrained(0.5, {"at the best epoch": 0.5, "at the last epoch": 0.6}) is None
    assert worse_than_untrained(None, {"at the best epoch": 0.1}) is None


def test_accuracies_that_differ_little_are_not_stated_as_equal() -> None:
    said = worse_than_untrained(0.61404, {"at the best epoch": 0.61396})
    assert said is not None
    assert "0.613960 at the best epoch, 0.614040 untrained" in said
