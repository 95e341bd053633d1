"""Random numbers that are pure functions of seeds and keys, whatever the order in which they are drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # the increment of SplitMix64


def mix(*numbers: int) -> int:
    """Mix several numbers into a 64-bit seed; neighboring numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def uniform(seed: int, keys: ArrayLike, count: int) -> NDArray[np.float64]:
    """Draw uniform numbers from 0 to 1, excluding 1, for each of several keys.

    The numbers of a key depend on nothing but the seed and the key, and all keys are processed at once. Each key starts
    a sequence of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).

    Args:
        seed: The seed.
        keys: Nonnegative whole numbers (b, k); each row is a key.
        count: Number of draws for each key, n.

    Returns:
        (b, n).
    """
    columns = np.asarray(keys, dtype=np.uint64).T
    state = np.full(columns.shape[1], mix(seed), dtype=np.uint64)
    for column in columns:
        state = _scramble((state ^ column) + _GOLDEN)
    sequence = state[:, None] + _GOLDEN * np.arange(1, count + 1, dtype=np.uint64)
    return np.asarray(_scramble(sequence) >> np.uint64(11), dtype=np.float64) * 2.0**-53


def _scramble(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply SplitMix64's output function, with arithmetic modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
