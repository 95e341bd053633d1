import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from cvexp.metrics.neighbors import nearest_neighbors, precision_at_k


def theirs(bank: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's distances to all features, the nearest first, and of equally near ones the lower index first."""
    search = NearestNeighbors(metric="cosine", algorithm="brute").fit(bank.astype(np.float64))
    distance, index = search.kneighbors(queries.astype(np.float64), n_neighbors=len(bank))
    order = np.lexsort((index, distance.round(12)))
    return np.take_along_axis(index, order, 1), np.take_along_axis(distance, order, 1)


@pytest.mark.parametrize("k", [1, 7, 300])
def test_neighbors_equal_scikit_learns(k: int) -> None:
    random = np.random.default_rng(0)
    bank, queries = random.normal(size=(300, 40)).astype(np.float32), random.normal(size=(90, 40)).astype(np.float32)
    index, distance = theirs(bank, queries)
    found = nearest_neighbors(bank, queries, k)
    assert np.array_equal(found.indices, index[:, :k])
    np.testing.assert_allclose(1 - found.cosines, distance[:, :k], atol=1e-12)


@pytest.mark.parametrize("copies", [1, 3, 40])
def test_equal_features_come_in_the_order_of_the_bank(copies: int) -> None:
    """Also where there are more of them than are asked for; scattered, so that no product treats all alike."""
    random = np.random.default_rng(1)
    kinds = random.normal(size=(12, 37)).astype(np.float32)
    which = random.permutation(np.repeat(np.arange(12), copies))
    bank, queries = kinds[which], kinds
    index, _ = theirs(bank, queries)
    for k in (1, 5, 30):
        assert np.array_equal(nearest_neighbors(bank, queries, k).indices, index[:, :k])


def test_features_that_single_precision_mixes_up_are_told_apart() -> None:
    random = np.random.default_rng(2)
    bank = 1 + 1e-4 * random.normal(size=(100, 16))  # cosines from 1 - 1e-8
    index, _ = theirs(bank, bank[:5])
    assert np.array_equal(nearest_neighbors(bank, bank[:5], 10).indices, index[:, :10])


def test_a_query_of_the_bank_is_not_its_own_neighbor() -> None:
    bank = np.random.default_rng(3).normal(size=(50, 8))
    bank[7] = bank[3]
    own = np.arange(50)
    found = nearest_neighbors(bank, bank, 60, own)
    assert found.indices.shape == (50, 49)
    assert not (found.indices == own[:, None]).any()
    assert found.indices[3, 0] == 7
    everything, _ = theirs(bank, bank)
    assert np.array_equal(found.indices[10], everything[10][everything[10] != 10])


def test_precision_counts_neighbors_of_the_same_class() -> None:
    index = np.array([[0, 1], [2, 3]])
    assert precision_at_k(index, np.array([0, 1, 1, 1]), np.array([0, 1])).tolist() == [0.5, 1.0]
