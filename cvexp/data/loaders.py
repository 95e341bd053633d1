"""Loaders whose batches are a pure function of the seed and the number of earlier batches."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from cvexp.config import LoaderConfig, require_equal_parts
from cvexp.data.batches import Batches
from cvexp.data.kept import ImagesOnDevice
from cvexp.data.order import Groups, epoch_order


class ShuffledBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (pass, position) in an order that is shuffled anew in each pass through the positions.

    Batch t of a run is a pure function of the seed and t. Therefore, an interrupted run continues with the next
    batch, even within an epoch. Several processes share each batch equally, so the batches are the same for any number
    of processes.

    By default, an epoch is one pass. The positions that do not fill a batch are left out; these differ between epochs.
    With `steps_per_epoch`, an epoch has that many batches, no position is left out, and a batch may contain the end of
    one pass and the start of the next.

    Args:
        length: Number of positions.
        batch_size: Number of positions per batch, of all processes together; reduced if there are fewer positions,
            unless `steps_per_epoch` is set.
        seed: Seed of the order.
        batches_done: Called when an epoch starts or continues; returns how many batches the run has completed.
        rank, world_size: The number of this process, and the number of processes. Each gets its own part of a batch.
        groups: The shards that are shuffled together; None shuffles all positions.
        steps_per_epoch: Number of batches of an epoch; None for one pass.

    Raises:
        UserError: if the processes can't share a batch equally.
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
        steps_per_epoch: int | None = None,
    ) -> None:
        self.length = length
        require_equal_parts(batch_size, world_size, length if steps_per_epoch is None else None)
        self.batch_size = min(batch_size, max(length, 1)) if steps_per_epoch is None else batch_size
        self.steps_per_epoch = steps_per_epoch
        self.seed = seed
        self.batches_done = batches_done
        self.rank = rank
        self.world_size = world_size
        self.groups = groups

    def __len__(self) -> int:
        return self.steps_per_epoch or max(self.length // self.batch_size, 1)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, start = divmod(self.batches_done(), len(self))
        # The number of the first sample of the epoch, counted over all passes.
        offset = epoch * (self.length if self.steps_per_epoch is None else len(self) * self.batch_size)
        part = self.batch_size // self.world_size
        current, order = -1, epoch_order(0, self.seed, 0, None)
        for batch in range(start, len(self)):
            first = offset + batch * self.batch_size + self.rank * part
            keys = []
            for number in range(first, first + part):
                turn, place = divmod(number, self.length)
                if turn != current:
                    current, order = turn, epoch_order(self.length, self.seed, turn, self.groups)
                keys += [(turn, position) for position in order[place : place + 1]]
            yield keys


class FixedBatches(Sampler[list[tuple[int, int]]]):
    """Batches of the given positions in order, always with epoch 0 so that every evaluation uses the same views.

    Several processes take turns: batch b goes to process b mod W. All need the same number of batches, because DDP
    communicates at each, so those that have one less get the last batch once more; see `batch_number`.

    Args:
        positions: The positions.
        batch_size: Number of positions per batch.
        rank, world_size: The number of this process, and the number of processes, W.
    """

    def __init__(self, positions: list[int], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.positions = positions
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return math.ceil(len(self.positions) / (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        last = (len(self.positions) - 1) // self.batch_size
        for turn in range(len(self)):
            first = min(turn * self.world_size + self.rank, last) * self.batch_size
            yield [(0, position) for position in self.positions[first : first + self.batch_size]]

    def batch_number(self, turn: int) -> int | None:
        """Return the number of the batch that a process gets in a turn; None if it is the last one once more."""
        number = turn * self.world_size + self.rank
        return number if number * self.batch_size < len(self.positions) else None


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
        multiprocessing_context=start_method(num_workers),
        persistent_workers=num_workers > 0,
        prefetch_factor=4 if num_workers > 0 else None,
        pin_memory=torch.cuda.is_available() and not is_on_device,
        worker_init_fn=outlive_signals,
    )


def start_method(num_workers: int) -> str | None:
    """Return how the platform starts worker processes; in joblib's jobs, the default can't start those of PyTorch."""
    return multiprocessing.get_all_start_methods()[0] if num_workers > 0 else None


def outlive_signals(worker: int) -> None:
    """Keep a worker process alive when the training is stopped, because the training needs it until it has stopped.

    A terminal and torchrun send signals to the process group, which the worker leaves. Slurm sends them to all
    processes, so on Linux the worker obeys only the process of the training.
    """
    os.setpgrp()
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
