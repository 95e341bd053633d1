"""Schedules that depend on the progress of a run, and thus fit runs of 3 steps and of 3 million steps.

Progress is the fraction of all steps done so far, from 0 to 1.
"""

from __future__ import annotations

import math


def linear(progress: float, start: float, end: float) -> float:
    """Interpolate linearly from `start` to `end`."""
    return start + (end - start) * progress


def cosine(progress: float, start: float, end: float) -> float:
    """Interpolate from `start` to `end` by half a cosine: end + (start - end) (1 + cos(pi progress)) / 2."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def warmup_cosine(progress: float, warmup: float, peak: float, end: float) -> float:
    """Increase linearly from 0 to `peak` over the fraction `warmup` of the run, then follow a cosine to `end`."""
    if progress < warmup:
        return linear(progress / warmup, 0.0, peak)
    return cosine((progress - warmup) / (1 - warmup) if warmup < 1 else 1.0, peak, end)


def warmup_constant(progress: float, warmup: float, start: float, end: float) -> float:
    """Interpolate linearly from `start` to `end` over the fraction `warmup` of the run, then stay at `end`."""
    return linear(progress / warmup, start, end) if progress < warmup else end
