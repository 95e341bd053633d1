from cvexp.data.loaders import FixedBatches, ShuffledBatches


def test_an_epoch_has_each_position_once_and_each_process_its_own_part() -> None:
    done = 0
    ranks = [ShuffledBatches(24, 4, 0, lambda: done, rank, world_size=3) for rank in range(3)]
    first = [[key for batch in batches for key in batch] for batches in ranks]
    assert sorted(position for part in first for _, position in part) == list(range(24))
    done = len(ranks[0])
    second = [key for batch in ranks[0] for key in batch]
    assert {epoch for epoch, _ in second} == {1}
    assert [position for _, position in second] != [position for _, position in first[0]]


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


def test_fixed_batches_have_every_position_in_order() -> None:
    batches = FixedBatches([4, 1, 7], 2)
    assert list(batches) == [[(0, 4), (0, 1)], [(0, 7)]]
    assert len(batches) == 2
