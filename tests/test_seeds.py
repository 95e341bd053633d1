"""Random numbers are uniform, unrelated, and pure functions of seed and key."""

import numpy as np
import pytest
from numpy.typing import NDArray

from cvexp.seeds import mix, uniform
from tests.data.noise import assert_mean

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def splitmix(state: int) -> int:
    """Return what SplitMix64 makes of its next state, in Python's whole numbers."""
    x = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def grid(*sides: int) -> NDArray[np.int64]:
    """Return all keys whose numbers are below the given ones, (b, k)."""
    return np.indices(sides).reshape(len(sides), -1).T


@pytest.fixture(scope="module")
def drawn() -> NDArray[np.float64]:
    """Numbers for 8 epochs, 500 positions and 4 views."""
    return uniform(0, grid(8, 500, 4), 12)


def test_the_numbers_are_those_of_splitmix64() -> None:
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423]  # of the reference program, for 1234567
    assert [splitmix(1234567 + i * GOLDEN & MASK) for i in (1, 2, 3)] == known
    keys = [(0, 0, 0), (3, 1000, 5), (2**62, 1, 2**63 - 1)]
    for key, numbers in zip(keys, uniform(9, keys, 5), strict=True):
        state = mix(9)
        for part in key:
            state = splitmix((state ^ part) + GOLDEN & MASK)
        expected = [(splitmix(state + i * GOLDEN & MASK) >> 11) / 2**53 for i in range(1, 6)]
        assert numbers.tolist() == expected


def test_seeds_stay_the_same_in_all_versions() -> None:
    """Others would change the views of all runs."""
    assert mix(0) == 15793235383387715774
    assert mix(1, 2) == 15529898885419721899


def test_numbers_are_from_0_to_1_with_mean_and_variance_of_the_uniform_distribution(
    drawn: NDArray[np.float64],
) -> None:
    assert drawn.dtype == np.float64
    assert drawn.shape == (16000, 12)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert_mean(drawn, 1 / 2, 1 / 12)
    assert_mean(np.square(drawn - 1 / 2), 1 / 12, 1 / 180)
    for draw in drawn.T:
        assert_mean(draw, 1 / 2, 1 / 12)


def test_numbers_fill_all_bins_evenly(drawn: NDArray[np.float64]) -> None:
    """All numbers, and those of the last bits alone."""
    for values in (drawn, drawn * 2**45 % 1):
        counts = np.bincount((values * 256).astype(int).ravel(), minlength=256)
        expected = drawn.size / 256
        chi_squared = np.square(counts - expected).sum() / expected
        assert abs(chi_squared - 255) <= 4 * np.sqrt(2 * 255)


def test_neighboring_keys_and_draws_are_uncorrelated(drawn: NDArray[np.float64]) -> None:
    x = (drawn - 1 / 2).reshape(8, 500, 4, 12) * np.sqrt(12)
    for axis in range(4):
        first, second = x.swapaxes(0, axis)[:-1], x.swapaxes(0, axis)[1:]
        assert_mean(first * second, 0, 1)
        assert_mean((np.square(first) - 1) * (np.square(second) - 1), 0, (4 / 5) ** 2)
    assert_mean(x[:, :, 0, 1:] * x[:, :, 1, :-1], 0, 1)  # as if the sequence of a key were that of another, shifted


def test_no_number_occurs_twice(drawn: NDArray[np.float64]) -> None:
    assert np.unique(drawn).size == drawn.size
    others = [uniform(0, grid(500), 12), uniform(1, grid(8, 500, 4), 12)]  # shorter keys, another seed
    everything = np.concatenate([drawn.ravel(), *(other.ravel() for other in others)])
    assert np.unique(everything).size == everything.size


def test_seeds_are_uncorrelated() -> None:
    keys = grid(4, 1000)
    first, second = ((uniform(seed, keys, 5) - 1 / 2) * np.sqrt(12) for seed in (0, 1))
    assert_mean(first * second, 0, 1)


def test_the_numbers_of_a_key_depend_on_nothing_else(drawn: NDArray[np.float64]) -> None:
    keys = grid(8, 500, 4)
    order = np.random.RandomState(0).permutation(len(keys))[:100]
    assert np.array_equal(uniform(0, keys[order], 12), drawn[order])
    assert np.array_equal(uniform(0, keys[7:8], 12), drawn[7:8])
    assert np.array_equal(uniform(0, keys.tolist(), 3), drawn[:, :3])


def test_drawing_leaves_the_random_state_alone() -> None:
    before = np.random.get_state(legacy=False)
    uniform(0, grid(10), 3)
    after = np.random.get_state(legacy=False)
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert np.array_equal(before["state"]["key"], after["state"]["key"])
    assert before["state"]["pos"] == after["state"]["pos"]


def test_mixed_seeds_depend_on_every_number_and_on_the_order() -> None:
    seeds = [mix(*key) for key in grid(30, 30).tolist()]
    assert len(set(seeds)) == 900
    assert all(0 <= seed < 2**64 for seed in seeds)
