"""Several processes that train one model, started by torchrun. The first one, rank 0, records the run."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch
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


def handles_signals() -> bool:
    """Return whether this thread may set handlers of signals: only the main one may."""
    return threading.current_thread() is threading.main_thread()


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


def in_any(condition: bool) -> bool:
    """Return whether a condition holds in any of the processes."""
    if world_size() == 1:
        return condition
    import torch

    return bool(mean(torch.tensor(float(condition))) > 0)


def gather_in_order(parts: list[Value], device: torch.device | str = "cpu") -> list[Value]:
    """Return the parts of all W processes, which took turns: part number b is from process b mod W.

    Args:
        parts: The parts of this process: tensors, collections of tensors, or other objects that can be pickled.
        device: Where the tensors are needed. They are sent from CPU to CPU.
    """
    if world_size() == 1:
        return parts
    from torch import Tensor, distributed
    from torch.utils._pytree import tree_map_only

    gathered: list[list[Value]] = [[] for _ in range(world_size())]
    distributed.all_gather_object(gathered, tree_map_only(Tensor, lambda tensor: tensor.cpu(), parts))
    in_order: list[Value] = tree_map_only(Tensor, lambda tensor: tensor.to(device), interleave(gathered))
    return in_order


def interleave(lists: Sequence[list[Value]]) -> list[Value]:
    """Return the first items of all lists, then the second ones, and so on. The first lists may have one item more."""
    turns = range(max(map(len, lists), default=0))
    return [items[turn] for turn, items in itertools.product(turns, lists) if turn < len(items)]


def is_lost_connection(error: RuntimeError) -> bool:
    """Return whether an error means that another process can't be reached, in most cases because it has ended."""
    if world_size() == 1:
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error) or "Connection closed by peer" in str(error)


def is_first_with(message: str) -> bool:
    """Return whether no other process has asked this about the same message, so that it is printed once.

    It asks the store that torchrun keeps, even before the processes are connected. If there is none, each is the first.
    """
    if world_size() == 1:
        return True
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    key = f"cvexp/{hashlib.sha256(message.encode()).hexdigest()}/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}"
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        return bool(TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5)).add(key, 1) == 1)
    except (KeyError, RuntimeError):
        return True
