"""Loaders whose batches are a pure function of the seed and of how many batches came before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from cvexp.config import LoaderConfig
from cvexp.seeds import mix


class ShuffledBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, position), in an order shuffled anew each epoch.

    Batch number t of a run is a pure function of the seed and t, so that an interrupted run goes on with the batch
    after its last one, wherever in an epoch it stopped. The remainder that fills no batch is left out; another one
    each epoch.

    Args:
        length: How many positions there are.
        batch_size: Of each process; smaller where there are fewer positions.
        seed: Of the order.
        batches_done: Tells how many batches the run has had when an epoch starts or goes on.
        rank, world_size: Which of how many processes this is; each gets its own part of every batch.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        batches_done: Callable[[], int],
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.length = length
        self.batch_size = min(batch_size, max(length // world_size, 1))
        self.seed = seed
        self.batches_done = batches_done
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return max(self.length // (self.batch_size * self.world_size), 1)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, start = divmod(self.batches_done(), len(self))
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        order = torch.randperm(self.length, generator=generator).tolist()
        for batch in range(start, len(self)):
            first = (batch * self.world_size + self.rank) * self.batch_size
            yield [(epoch, position) for position in order[first : first + self.batch_size]]


class FixedBatches(Sampler[list[tuple[int, int]]]):
    """All positions in order, always as of epoch 0: the same views at every evaluation."""

    def __init__(self, positions: list[int], batch_size: int) -> None:
        self.positions = positions
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.positions) / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for first in range(0, len(self.positions), self.batch_size):
            yield [(0, position) for position in self.positions[first : first + self.batch_size]]


def make_loader(
    dataset: Dataset[Any], batches: Sampler[list[tuple[int, int]]], config: LoaderConfig
) -> DataLoader[Any]:
    """A loader over `batches`, in worker processes that live as long as the loader."""
    workers = config.num_workers
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers > 0 else None,
        pin_memory=torch.cuda.is_available(),
    )
