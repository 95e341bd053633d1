"""Mixing of seeds."""

from __future__ import annotations

import numpy as np


def mix(*numbers: int) -> int:
    """Mix several numbers into a 64-bit seed; neighboring numbers give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])
