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
    predicted = knn_predict(torch.tensor(bank), torch.tensor(labels), torch.tensor(queries), num_classes=4, k=k)
    assert predicted.tolist() == expected.tolist()


def test_all_features_vote_if_the_bank_is_smaller_than_k() -> None:
    bank, labels = torch.eye(3), torch.tensor([0, 1, 2])
    assert knn_top1(bank, labels, bank, labels, num_classes=3, k=20) == 1.0


def test_the_length_of_features_has_no_effect() -> None:
    torch.manual_seed(0)
    bank, labels, queries = torch.randn(40, 8), torch.randint(0, 3, (40,)), torch.randn(10, 8)
    lengths = torch.rand(10, 1) + 0.1
    assert torch.equal(knn_predict(bank, labels, queries, 3, 5), knn_predict(9 * bank, labels, queries * lengths, 3, 5))


def test_worse_features_are_reported_with_their_accuracies() -> None:
    assert worse_than_untrained(0.614, {"at the selected epoch": 0.455, "at the last epoch": 0.7}) == (
        "Pretraining made the features worse: kNN accuracy 0.455 at the selected epoch, 0.614 untrained."
    )
    assert worse_than_untrained(0.614, {"at the selected epoch": 0.7, "at the last epoch": 0.5}) == (
        "Pretraining made the features worse: kNN accuracy 0.500 at the last epoch, 0.614 untrained."
    )
    both = worse_than_untrained(0.614, {"at the selected epoch": 0.455, "after epoch 3": 0.5})
    assert both is not None
    assert "kNN accuracy 0.455 at the selected epoch and 0.500 after epoch 3, 0.614 untrained." in both
    same = worse_than_untrained(0.614, {"at the selected epoch": 0.455, "at the last epoch": 0.455})
    assert same is not None
    assert "selected" not in same


def test_there_is_no_warning_for_equal_features_or_without_labels() -> None:
    assert worse_than_untrained(0.5, {"at the selected epoch": 0.5, "at the last epoch": 0.6}) is None
    assert worse_than_untrained(None, {"at the selected epoch": 0.1}) is None


@pytest.mark.parametrize(("num_crops", "is_told"), [(28, False), (100, True), (None, True)])
def test_what_may_be_chance_is_no_warning(num_crops: int | None, is_told: bool) -> None:
    """Two standard errors are 0.22 for 28 crops, and 0.12 for 100."""
    assert bool(worse_than_untrained(0.357, {"at the last epoch": 0.143}, num_crops)) == is_told


def test_small_differences_of_accuracies_remain_visible() -> None:
    warning = worse_than_untrained(0.61404, {"at the selected epoch": 0.61396})
    assert warning is not None
    assert "0.613960 at the selected epoch, 0.614040 untrained" in warning
