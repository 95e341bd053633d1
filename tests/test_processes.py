"""The helpers for several processes, in processes that do not train."""

from __future__ import annotations

import socket

import pytest
import torch
import torch.multiprocessing as mp

from cvexp import processes


@pytest.mark.parametrize(
    ("lists", "expected"),
    [([], []), ([[]], []), ([[1], []], [1]), ([[1, 3], [2, 4]], [1, 2, 3, 4]), ([[1, 4, 6], [2, 5], [3]], [1, 2, 3])],
)
def test_interleave(lists: list[list[int]], expected: list[int]) -> None:
    assert processes.interleave(lists)[: len(expected)] == expected
    assert sorted(processes.interleave(lists)) == sorted(item for items in lists for item in items)


def test_one_process_gathers_what_it_has() -> None:
    parts = [torch.zeros(1)]
    assert processes.gather_in_order(parts) is parts
    assert processes.in_any(True)
    assert not processes.in_any(False)
    assert processes.is_first_with("an error")


def test_processes_gather_in_order() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_gather, args=(3, port), nprocs=3)  # type: ignore[attr-defined, no-untyped-call]


def _gather(rank: int, world_size: int, port: int) -> None:
    environment = {"RANK": rank, "WORLD_SIZE": world_size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        for name, value in environment.items():
            patch.setenv(name, str(value))
        with processes.connected():
            numbers = range(rank, 5, world_size)  # of 5 batches, the last process has one
            parts = [{"mean": torch.tensor(float(number)), "names": [str(number)]} for number in numbers]
            gathered = processes.gather_in_order(parts)
            assert [float(part["mean"]) for part in gathered] == [0, 1, 2, 3, 4]  # type: ignore[arg-type]
            assert [part["names"] for part in gathered] == [["0"], ["1"], ["2"], ["3"], ["4"]]
            assert processes.gather_in_order([torch.ones(2)] if rank == 0 else [])[0].tolist() == [1, 1]
            assert processes.gather_in_order([]) == []
            assert processes.in_any(rank == 2)
            assert not processes.in_any(rank == 3)
            num_first = processes.mean(torch.tensor(float(processes.is_first_with("an error")))) * world_size
            assert round(float(num_first)) == 1
            assert processes.is_first_with(f"an error of process {rank}")
