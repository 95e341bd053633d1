"""Loaders whose batches are a pure function of the seed and the number of earlier batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from cvexp.config import LoaderConfig
from cvexp.data.batches import Batches
from cvexp.data.kept import ImagesOnDevice
from cvexp.data.order import Groups, epoch_order


class ShuffledBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, position) in an order that is shuffled anew each epoch.

    Batch t of a run is a pure function of the seed and t. Therefore, an interrupted run continues with the next
    batch, even within an epoch. The positions that do not fill a batch are left out; these differ between epochs.

    Args:
        length: Number of positions.
        batch_size: Number of positions per batch and process; reduced if there are fewer positions.
        seed: Seed of the order.
        batches_done: Called when an epoch starts or continues; returns how many batches the run has completed.
        rank, world_size: The number of this process, and the number of processes. Each gets its own part of a batch.
        groups: The shards that are shuffled together; None shuffles all positions.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        batches_done: Callable[[], int],
        rank: int = 0,
        world_size: int = 1,
        groups: Groups | None = None,
    ) -> None:
        self.length = length
        self.batch_size = min(batch_size, max(length // world_size, 1))
        self.seed = seed
        self.batches_done = batches_done
        self.rank = rank
        self.world_size = world_size
        self.groups = groups

    def __len__(self) -> int:
        return max(self.length // (self.batch_size * self.world_size), 1)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, start = divmod(self.batches_done(), len(self))
        order = epoch_order(self.length, self.seed, epoch, self.groups)
        for batch in range(start, len(self)):
            first = (batch * self.world_size + self.rank) * self.batch_size
            yield [(epoch, position) for position in order[first : first + self.batch_size]]


class FixedBatches(Sampler[list[tuple[int, int]]]):
    """Batches of the given positions in order, always with epoch 0 so that every evaluation uses the same views."""

    def __init__(self, positions: list[int], batch_size: int) -> None:
        self.positions = positions
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.positions) / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first in range(0, len(self.positions), self.batch_size):
            yield [(0, position) for position in self.positions[first : first + self.batch_size]]


def make_loader(batches: Batches, keys: Sampler[list[tuple[int, int]]], config: LoaderConfig) -> DataLoader[Any]:
    """Create a loader of batches, with worker processes that live as long as the loader.

    Images that are kept on a device are batched there, in this process.

    Args:
        batches: The data set.
        keys: The keys of the images of each batch.
        config: The number of worker processes.
    """
    is_on_device = isinstance(batches.images, ImagesOnDevice)
    num_workers = 0 if is_on_device else config.num_workers
    return DataLoader(
        batches,
        sampler=keys,
        batch_size=None,  # an item is a batch
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers > 0 else None,
        pin_memory=torch.cuda.is_available() and not is_on_device,
    )
