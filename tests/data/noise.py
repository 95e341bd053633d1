"""Images of noise, and comparisons of random samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cvexp.seeds import uniform

STANDARD_ERRORS = 4  # that a mean may be off


class NoiseImages:
    """A source of images of noise that counts, across processes, how often each was read.

    Args:
        sizes: Height and width of each image.
        num_channels: Number of channels.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], num_channels: int = 3) -> None:
        self.sizes = np.array(sizes, dtype=np.int64)
        self.num_channels = num_channels
        self.num_reads = torch.zeros(len(sizes), dtype=torch.int64).share_memory_()

    def read(self, position: int) -> NDArray[np.uint8]:
        self.num_reads[position] += 1
        shape = (*self.sizes[position].tolist(), self.num_channels)
        return np.random.RandomState(position).randint(0, 256, shape, dtype=np.uint8)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Return noise of any shape, uint8."""
    return torch.from_numpy(np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8))


def smooth(*shape: int, seed: int = 0) -> Tensor:
    """Return smooth images (b, h, w, c) uint8, with a little noise, as photographs have."""
    num_images, height, width, num_channels = shape
    coarse = noise(num_images, num_channels, height // 12 + 2, width // 12 + 2, seed=seed).float()
    fine = F.interpolate(coarse, (height, width), mode="bicubic").permute(0, 2, 3, 1)
    return (fine + noise(*shape, seed=seed + 1) / 32).round().clamp(0, 255).byte()


def chances(num_images: int, count: int, seed: int = 0) -> NDArray[np.float64]:
    """Return uniform random numbers (num_images, count)."""
    return uniform(seed, np.arange(num_images)[:, None], count)


def assert_mean(sample: ArrayLike, mean: float, variance: float) -> None:
    """Fail unless the mean of independent values is close to the mean of their distribution."""
    sample_n = np.asarray(sample, dtype=np.float64)
    assert abs(sample_n.mean() - mean) <= STANDARD_ERRORS * np.sqrt(variance / sample_n.size)


def assert_share(is_true: ArrayLike, probability: float) -> None:
    """Fail unless the share of true values is close to their probability."""
    assert_mean(is_true, probability, probability * (1 - probability))


def assert_same_moments(sample: ArrayLike, other: ArrayLike) -> None:
    """Fail unless two samples of independent values have about the same mean and standard deviation."""
    moments = []
    for values in (sample, other):
        x_n = np.asarray(values, dtype=np.float64)
        squares_n = np.square(x_n - x_n.mean())
        std = np.sqrt(squares_n.mean())
        error_of_std = squares_n.std() / max(2 * std, 1e-12) / np.sqrt(x_n.size)
        moments.append((x_n.mean(), std / np.sqrt(x_n.size), std, error_of_std))
    (mean, error_of_mean, std, error_of_std), (other_mean, other_error_of_mean, other_std, other_error_of_std) = moments
    assert abs(mean - other_mean) <= STANDARD_ERRORS * np.hypot(error_of_mean, other_error_of_mean) + 1e-9
    assert abs(std - other_std) <= STANDARD_ERRORS * np.hypot(error_of_std, other_error_of_std) + 1e-9
