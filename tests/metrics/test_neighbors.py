import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from cvexp.metrics.neighbors import nearest_neighbors, precision_at_k


def reference_neighbors(bank: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scikit-learn's neighbors and distances, nearest first; of equally near features, the lower index first."""
    search = NearestNeighbors(metric="cosine", algorithm="brute").fit(bank.astype(np.float64))
    distance, index = search.kneighbors(queries.astype(np.float64), n_neighbors=len(bank))
    order = np.lexsort((index, distance.round(12)))
    return np.take_along_axis(index, order, 1), np.take_along_axis(distance, order, 1)


@pytest.mark.parametrize("k", [1, 7, 300])
def test_neighbors_equal_scikit_learns(k: int) -> None:
    random = np.random.default_rng(0)
    bank, queries = random.normal(size=(300, 40)).astype(np.float32), random.normal(size=(90, 40)).astype(np.float32)
    index, distance = reference_neighbors(bank, queries)
    neighbors = nearest_neighbors(bank, queries, k)
    assert np.array_equal(neighbors.indices, index[:, :k])
    np.testing.assert_allclose(1 - neighbors.cosines, distance[:, :k], atol=1e-12)


@pytest.mark.parametrize("copies", [1, 3, 40])
def test_equal_features_come_in_the_order_of_the_bank(copies: int) -> None:
    """Some have more equal features than neighbors. They are shuffled, so that rounding may differ between them."""
    random = np.random.default_rng(1)
    distinct = random.normal(size=(12, 37)).astype(np.float32)
    indices = random.permutation(np.repeat(np.arange(12), copies))
    bank, queries = distinct[indices], distinct
    index, _ = reference_neighbors(bank, queries)
    for k in (1, 5, 30):
        assert np.array_equal(nearest_neighbors(bank, queries, k).indices, index[:, :k])


def test_features_that_are_equal_in_single_precision_are_ordered() -> None:
    random = np.random.default_rng(2)
    bank = 1 + 1e-4 * random.normal(size=(100, 16))  # cosines from 1 - 1e-8
    index, _ = reference_neighbors(bank, bank[:5])
    assert np.array_equal(nearest_neighbors(bank, bank[:5], 10).indices, index[:, :10])


def test_a_query_of_the_bank_is_not_its_own_neighbor() -> None:
    bank = np.random.default_rng(3).normal(size=(50, 8))
    bank[7] = bank[3]
    own = np.arange(50)
    neighbors = nearest_neighbors(bank, bank, 60, own)
    assert neighbors.indices.shape == (50, 49)
    assert not (neighbors.indices == own[:, None]).any()
    assert neighbors.indices[3, 0] == 7
    expected, _ = reference_neighbors(bank, bank)
    assert np.array_equal(neighbors.indices[10], expected[10][expected[10] != 10])


def test_a_bank_of_only_the_query_has_no_neighbors() -> None:
    bank = np.ones((1, 8))
    assert nearest_neighbors(bank, bank, 3, np.array([0])).indices.shape == (1, 0)


def test_precision_counts_neighbors_of_the_same_class() -> None:
    index = np.array([[0, 1], [2, 3]])
    assert precision_at_k(index, np.array([0, 1, 1, 1]), np.array([0, 1])).tolist() == [0.5, 1.0]
