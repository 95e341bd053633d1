"""Schedules over the fraction of a run's steps that is done, so that 3 steps and 3 million both work."""

from __future__ import annotations

import math


def linear(done: float, start: float, end: float) -> float:
    """From `start` at done = 0 to `end` at done = 1."""
    return start + (end - start) * done


def cosine(done: float, start: float, end: float) -> float:
    """From `start` at done = 0 to `end` at done = 1, flat at both ends: end + (start - end) (1 + cos(pi done)) / 2."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def warmup_cosine(done: float, warmup: float, peak: float, end: float) -> float:
    """Linearly from 0 to `peak` over the fraction `warmup`, then by a cosine to `end`."""
    if done < warmup:
        return linear(done / warmup, 0.0, peak)
    return cosine((done - warmup) / (1 - warmup) if warmup < 1 else 1.0, peak, end)


def warmup_constant(done: float, warmup: float, start: float, end: float) -> float:
    """Linearly from `start` to `end` over the fraction `warmup`, then `end`."""
    return linear(done / warmup, start, end) if done < warmup else end
