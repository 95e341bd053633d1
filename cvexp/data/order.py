"""The order in which an epoch reads its samples: shuffled as a whole, or in windows of a few shards.

Reading shuffled samples from all shards at once would need all shards at once. Therefore, the shards are permuted, and
then the samples of a few consecutive shards are permuted together.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cvexp.seeds import mix


class Order(Protocol):
    """The order of an epoch."""

    def __getitem__(self, places: slice, /) -> list[int]:
        """Return the positions of the samples at the given places in the order."""


class Groups(NamedTuple):
    """The samples of each shard.

    Attributes:
        positions: (n,) int32, the positions of the samples, grouped by shard and ascending within each shard.
        starts: (s + 1,) int64; shard i has positions[starts[i] : starts[i + 1]].
        shuffle_shards: How many shards are shuffled together.
    """

    positions: NDArray[np.int32]
    starts: NDArray[np.int64]
    shuffle_shards: int


def group_by_shard(shard: NDArray[np.int32], num_shards: int, shuffle_shards: int) -> Groups:
    """Group samples by shard.

    Args:
        shard: (n,) the shard of each sample.
        num_shards: Number of shards.
        shuffle_shards: How many shards are shuffled together.
    """
    starts = np.concatenate([[0], np.bincount(shard, minlength=num_shards).cumsum()])
    return Groups(np.argsort(shard, kind="stable").astype(np.int32), starts, shuffle_shards)


def epoch_order(length: int, seed: int, epoch: int, groups: Groups | None) -> Order:
    """Return the order of an epoch, a pure function of its arguments.

    If all shards fit into one window, the order is the one without shards.

    Args:
        length: Number of samples.
        seed: The seed.
        epoch: The number of the epoch.
        groups: The shards; None shuffles the samples as a whole.
    """
    if groups is None:
        return _permute(np.arange(length), seed, epoch, window=0)
    return _WindowedOrder(seed, epoch, groups)


def _permute(positions: NDArray[np.integer], seed: int, epoch: int, window: int) -> list[int]:
    """Permute the positions of a window."""
    generator = torch.Generator().manual_seed(mix(seed, epoch, window))  # for window 0, this is mix(seed, epoch)
    order: list[int] = positions[torch.randperm(len(positions), generator=generator).numpy()].tolist()
    return order


class _WindowedOrder:
    """The order of an epoch, of which only the current window is in memory."""

    def __init__(self, seed: int, epoch: int, groups: Groups) -> None:
        self.seed, self.epoch, self.groups = seed, epoch, groups
        num_shards = len(groups.starts) - 1
        generator = torch.Generator().manual_seed(mix(seed, epoch, 0, 1))
        shards = torch.randperm(num_shards, generator=generator).numpy()
        self.windows = [shards[i : i + groups.shuffle_shards] for i in range(0, num_shards, groups.shuffle_shards)]
        sizes = np.diff(groups.starts)
        self.ends = np.cumsum([sizes[window].sum() for window in self.windows], dtype=np.int64)
        self.number, self.window = -1, list[int]()

    def __getitem__(self, places: slice) -> list[int]:
        start, stop, _ = places.indices(len(self.groups.positions))
        return [self._at(place) for place in range(start, stop)]

    def _at(self, place: int) -> int:
        number = int(np.searchsorted(self.ends, place, side="right"))
        if number != self.number:
            self.number, self.window = number, self._shuffle(number)
        return self.window[place - int(self.ends[number])]  # counted from the end of the window

    def _shuffle(self, number: int) -> list[int]:
        positions, starts, _ = self.groups
        parts = [positions[starts[shard] : starts[shard + 1]] for shard in self.windows[number].tolist()]
        return _permute(np.sort(np.concatenate(parts)), self.seed, self.epoch, number)
