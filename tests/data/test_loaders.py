import os
import subprocess
from typing import Any

import psutil
import pytest

from cvexp.config import LoaderConfig
from cvexp.data.loaders import FixedBatches, ShuffledBatches, make_loader
from cvexp.errors import UserError
from cvexp.processes import interleave


def test_an_epoch_has_each_position_once_and_each_process_its_own_part() -> None:
    done = 0
    ranks = [ShuffledBatches(24, 12, 0, lambda: done, rank, world_size=3) for rank in range(3)]
    first = [[key for batch in batches for key in batch] for batches in ranks]
    assert sorted(position for part in first for _, position in part) == list(range(24))
    done = len(ranks[0])
    second = [key for batch in ranks[0] for key in batch]
    assert {epoch for epoch, _ in second} == {1}
    assert [position for _, position in second] != [position for _, position in first[0]]


def test_the_batches_are_the_same_for_any_number_of_processes() -> None:
    (whole, *_), *shared = (
        [list(ShuffledBatches(40, 12, 3, lambda: 1, rank, world_size)) for rank in range(world_size)]
        for world_size in (1, 2, 3, 6)
    )
    assert [len(batch) for batch in whole] == [12, 12]
    for parts in shared:
        assert [[key for part in batch for key in part] for batch in zip(*parts, strict=True)] == whole


@pytest.mark.parametrize(
    ("length", "batch_size", "message"),
    [
        (100, 9, "got 9, which 2 processes can't share equally; choose 8 or 10, or another number of processes"),
        (100, 1, "got 1, which 2 processes can't share equally; choose 2, or another"),
        (7, 64, "got 64, with 7 training samples, which 2 processes can't share equally; choose 6, or another"),
        (1, 64, "got 64, with 1 training samples, which 2 processes can't share equally; choose another number"),
    ],
)
def test_a_batch_that_can_not_be_shared_equally_is_refused(length: int, batch_size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ShuffledBatches(length, batch_size, 0, lambda: 0, 0, world_size=2)


def test_less_data_than_a_batch_makes_one_smaller_batch() -> None:
    batches = ShuffledBatches(3, 64, 0, lambda: 0)
    assert len(batches) == 1
    assert [len(batch) for batch in batches] == [3]


def test_an_interrupted_epoch_goes_on_with_the_next_batch() -> None:
    done = 0
    batches = ShuffledBatches(10, 3, 5, lambda: done)
    whole = list(batches)
    done = 1
    assert list(batches) == whole[1:]
    done = 3
    assert {epoch for batch in batches for epoch, _ in batch} == {1}


def test_epochs_of_a_given_length_pass_through_the_positions_again_and_again() -> None:
    done = 0
    batches = ShuffledBatches(5, 4, 0, lambda: done, steps_per_epoch=3)
    epochs = []
    for done in (0, 3, 6, 9, 12):  # noqa: B007, the batches read it
        epochs.append(list(batches))
        assert [len(batch) for batch in epochs[-1]] == [4, 4, 4]
    keys = [key for epoch in epochs for batch in epoch for key in batch]
    assert len(set(keys)) == len(keys) == 60  # no view twice
    for turn in range(12):
        assert sorted(keys[5 * turn : 5 * turn + 5]) == [(turn, position) for position in range(5)]
    done = 4
    assert list(batches) == epochs[1][1:]


def test_a_batch_may_be_larger_than_the_data_if_the_length_of_an_epoch_is_given() -> None:
    whole = list(ShuffledBatches(3, 8, 0, lambda: 0, steps_per_epoch=2))
    assert [len(batch) for batch in whole] == [8, 8]
    parts = [list(ShuffledBatches(3, 8, 0, lambda: 0, rank, 2, steps_per_epoch=2)) for rank in range(2)]
    assert [[*first, *second] for first, second in zip(*parts, strict=True)] == whole


def test_fixed_batches_have_every_position_in_order() -> None:
    batches = FixedBatches([4, 1, 7], 2)
    assert list(batches) == [[(0, 4), (0, 1)], [(0, 7)]]
    assert len(batches) == 2


@pytest.mark.parametrize("length", [1, 2, 5, 6, 7, 12])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_processes_take_turns_in_fixed_batches(length: int, world_size: int) -> None:
    whole = list(FixedBatches(list(range(length)), 2))
    ranks = [FixedBatches(list(range(length)), 2, rank, world_size) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1  # every process communicates at every batch
    parts = [
        [batch for turn, batch in enumerate(batches) if batches.batch_number(turn) is not None] for batches in ranks
    ]
    assert interleave(parts) == whole


class Numbers:
    """A data set that returns its keys, and images that are read anew."""

    images: Any = None

    def __getitem__(self, keys: list[tuple[int, int]]) -> list[int]:
        return [position for _, position in keys]


def test_a_worker_outlives_the_signals_of_others() -> None:
    loader = make_loader(Numbers(), FixedBatches(list(range(40)), 1), LoaderConfig(batch_size=1, num_workers=1))  # type: ignore[arg-type]
    before = set(psutil.Process().children())
    batches = iter(loader)
    assert next(batches) == [0]
    (worker,) = set(psutil.Process().children()) - before
    assert os.getpgid(worker.pid) != os.getpgid(0)
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    assert list(batches) == [[i] for i in range(1, 40)]
    assert worker.is_running()
    worker.terminate()  # as PyTorch does at exit
    worker.wait(timeout=10)
