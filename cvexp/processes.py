"""Several processes that train one model, started by torchrun. The first one, rank 0, records the run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")


def rank() -> int:
    """Return the number of this process among those that train together, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return the number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Return how many of these processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Connect the processes during the block, in which Lightning uses the same connection."""
    if world_size() == 1:
        yield
        return
    import torch
    from torch import distributed

    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def from_first(value: Value) -> Value:
    """Return the first process's value in every process."""
    if world_size() == 1:
        return value
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values)
    return values[0]


def mean(value: Tensor) -> Tensor:
    """Return the mean of a value over all processes, such as the denominator of a loss."""
    if world_size() == 1:
        return value
    from torch import distributed

    total = value.detach().clone()
    distributed.all_reduce(total)
    return total / world_size()
