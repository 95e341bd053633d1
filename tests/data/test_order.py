"""The order of an epoch: each sample once, shards in windows, and a pure function of seed and epoch."""

import numpy as np
import pytest
import torch

from cvexp.data.loaders import ShuffledBatches
from cvexp.data.order import Groups, epoch_order, group_by_shard
from cvexp.seeds import mix

NUM_SHARDS, LENGTH = 11, 500


@pytest.fixture
def shard() -> np.ndarray:
    return np.random.RandomState(0).randint(0, NUM_SHARDS, LENGTH).astype(np.int32)


def groups_of(shard: np.ndarray, shuffle_shards: int) -> Groups:
    return group_by_shard(shard, NUM_SHARDS, shuffle_shards)


def whole(seed: int, epoch: int, groups: Groups | None) -> list[int]:
    return epoch_order(LENGTH, seed, epoch, groups)[0:LENGTH]


@pytest.mark.parametrize("shuffle_shards", [1, 3, 10, 11, 100])
def test_each_sample_is_read_once_from_a_few_shards_at_a_time(shard: np.ndarray, shuffle_shards: int) -> None:
    order = whole(0, 0, groups_of(shard, shuffle_shards))
    assert sorted(order) == list(range(LENGTH))
    last_place = {number: place for place, number in enumerate(shard[order].tolist())}
    first_place = {number: LENGTH - 1 - place for place, number in enumerate(shard[order[::-1]].tolist())}
    open_at = [sum(first_place[s] <= place <= last_place[s] for s in range(NUM_SHARDS)) for place in range(LENGTH)]
    assert max(open_at) <= shuffle_shards
    if shuffle_shards > 1:
        assert sorted(order[:20]) != order[:20]


def test_shards_are_in_another_order_and_other_windows_in_each_epoch(shard: np.ndarray) -> None:
    def shards_of_first_window(seed: int, epoch: int) -> frozenset[int]:
        order = whole(seed, epoch, groups_of(shard, 3))
        return frozenset(shard[order[:60]].tolist())

    assert len({shards_of_first_window(seed, epoch) for seed in (0, 1) for epoch in range(5)}) > 5


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (7, 3), (2**32 - 1, 10_000)])
def test_one_window_has_the_order_without_shards(shard: np.ndarray, seed: int, epoch: int) -> None:
    expected = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(mix(seed, epoch))).tolist()
    assert whole(seed, epoch, None) == expected
    assert whole(seed, epoch, groups_of(shard, NUM_SHARDS)) == expected


@pytest.mark.parametrize("shuffle_shards", [1, 3, 11])
def test_any_part_of_the_order_can_be_had_alone(shard: np.ndarray, shuffle_shards: int) -> None:
    groups = groups_of(shard, shuffle_shards)
    expected = whole(5, 2, groups)
    for start, stop in [(490, 500), (0, 7), (130, 260), (3, 3), (495, 600)]:
        assert epoch_order(LENGTH, 5, 2, groups)[start:stop] == expected[start:stop]


def test_an_epoch_goes_on_with_the_next_batch_and_processes_share_each_epoch(shard: np.ndarray) -> None:
    groups, done = groups_of(shard, 3), 0
    batches = ShuffledBatches(LENGTH, 8, 5, lambda: done, groups=groups)
    expected = list(batches)
    done = 40
    assert list(batches) == expected[40:]
    done = 0
    ranks = [list(ShuffledBatches(LENGTH, 8, 5, lambda: done, rank, 2, groups)) for rank in range(2)]
    positions = [position for batches in ranks for batch in batches for _, position in batch]
    assert len(set(positions)) == len(positions) >= LENGTH - 16
    one_process = [position for batch in expected for _, position in batch]
    assert set(positions[:8]) <= set(one_process[:64])  # from the same window


def test_shards_without_samples_do_not_matter() -> None:
    groups = group_by_shard(np.array([4, 4, 1], dtype=np.int32), 6, 2)
    assert sorted(epoch_order(3, 0, 0, groups)[0:3]) == [0, 1, 2]
    nothing = group_by_shard(np.zeros(0, dtype=np.int32), 0, 2)
    assert epoch_order(0, 0, 0, nothing)[0:8] == []
