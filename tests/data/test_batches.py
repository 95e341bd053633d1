"""Views are pure functions of the seed, the epoch and the position of their image."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric.utilities import move_data_to_device
from torch import Tensor

from cvexp.config import LoaderConfig
from cvexp.data.augment.views import BatchView, CenterView, View
from cvexp.data.batches import Batches, PendingViews
from cvexp.data.kept import Images, ImagesInMemory, ImagesOnDevice
from cvexp.data.loaders import ShuffledBatches, make_loader
from tests.data.noise import NoiseImages

SIZES = [(40, 50), (20, 90), (61, 8), (1, 1), (33, 33), (90, 70), (64, 64), (5, 100)]
CPU = torch.device("cpu")


def views() -> list[BatchView]:
    view = View(16, (0.4, 1.0), 0.5, (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.5, 0.2)
    return [view, view, View(8, (0.05, 0.4), 0.5, (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 1.0, 0.0), CenterView(16)]


def batches(seed: int = 0, is_pending: bool = False) -> Batches:
    return Batches(Images(NoiseImages(SIZES)), views(), seed, is_pending)


def made(data: Batches, keys: list[tuple[int, int]]) -> list[Tensor]:
    """Return the views, each (b, 3, s, s)."""
    item = data[keys]
    return item.make() if isinstance(item, PendingViews) else item


def are_equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(first, second, strict=True))


ALL = [(0, position) for position in range(len(SIZES))]


def test_an_item_is_a_function_of_seed_epoch_and_position() -> None:
    data, same, other = batches(0), batches(0), batches(1)
    for keys in (ALL, [(1, 0), (7, 5)], [(10**6, 7)]):
        torch.manual_seed(torch.seed())  # whatever the random state is
        assert are_equal(made(data, keys), made(same, keys))
    first, second, small, center = made(data, ALL)
    of_next_epoch = made(data, [(1, position) for position in range(len(SIZES))])
    of_other_seed = made(other, ALL)
    for i, size in enumerate(SIZES):
        if size != (1, 1):
            assert not torch.equal(first[i], second[i])
            assert not torch.equal(first[i], of_next_epoch[0][i])
            assert not torch.equal(small[i], of_next_epoch[2][i])
            assert not torch.equal(first[i], of_other_seed[0][i])
        assert torch.equal(center[i], of_next_epoch[3][i])
        assert torch.equal(center[i], of_other_seed[3][i])


def test_no_parameters_are_drawn_twice_for_other_images_epochs_or_views() -> None:
    jittered = View(16, (0.4, 1.0), 0.5, (0.4, 0.4, 0.2, 0.1), 1.0, 0.0, 0.5, 0.2)
    data = Batches(Images(NoiseImages([(30, 30)] * 20)), [jittered] * 4, seed=0, is_pending=True)
    matrices = []
    for epoch in range(5):
        item = data[[(epoch, position) for position in range(20)]]
        assert isinstance(item, PendingViews)
        matrices += [drawn.colors.matrix for drawn in item.drawn]
    assert len(torch.cat(matrices).unique(dim=0)) == 400


@pytest.mark.parametrize("is_pending", [False, True])
def test_an_item_does_not_depend_on_the_rest_of_its_batch(is_pending: bool) -> None:
    data = batches(is_pending=is_pending)
    together = made(data, ALL)
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    shuffled = made(data, [ALL[i] for i in order])
    with_other_epochs = made(data, [(3, 5), (0, 2), (1, 1), (0, 2)])
    for view, other, mixed in zip(together, shuffled, with_other_epochs, strict=True):
        assert torch.equal(view[order], other)
        assert torch.equal(mixed[1], view[2])
        assert torch.equal(mixed[3], view[2])
    for i, key in enumerate(ALL):
        assert are_equal([view[i : i + 1] for view in together], made(data, [key]))


def test_a_view_depends_on_its_number_but_not_on_the_other_views() -> None:
    images = Images(NoiseImages(SIZES))
    first, second, small, _ = views()
    together = made(Batches(images, [first, second, small], 0), ALL)
    assert torch.equal(made(Batches(images, [first], 0), ALL)[0], together[0])
    assert torch.equal(made(Batches(images, [small, second], 0), ALL)[1], together[1])


def test_making_an_item_leaves_the_random_states_alone() -> None:
    states = torch.get_rng_state(), repr(np.random.get_state()), random.getstate()
    made(batches(), ALL)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert repr(np.random.get_state()) == states[1]
    assert random.getstate() == states[2]


def test_views_that_are_made_later_are_the_same() -> None:
    pending = batches(is_pending=True)[ALL]
    assert isinstance(pending, PendingViews)
    moved = move_data_to_device(pending, CPU)  # as Lightning moves a batch
    assert isinstance(moved, PendingViews)
    for item in (pending, moved):
        assert are_equal(item.make(), made(batches(), ALL))


def test_pending_views_move_with_all_their_tensors() -> None:
    pending = batches(is_pending=True)[ALL]
    moved = move_data_to_device(pending, torch.device("meta"))
    assert isinstance(moved, PendingViews)
    assert moved.pixels.is_meta
    tensors: list[Tensor] = []

    def collect(value: Any) -> None:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, tuple):
            for part in value:
                collect(part)

    collect(moved.drawn)
    assert len(tensors) == 3 * 9 + 3
    assert all(tensor.is_meta for tensor in tensors)


@pytest.mark.parametrize("kind", ["none", "ram", "device"])
@pytest.mark.parametrize("is_pending", [False, True])
def test_views_do_not_depend_on_where_the_images_are_kept(kind: str, is_pending: bool) -> None:
    source = NoiseImages(SIZES)
    make: dict[str, Callable[[NoiseImages], Images]] = {
        "none": Images,
        "ram": ImagesInMemory,
        "device": lambda source: ImagesOnDevice(source, CPU),
    }
    data = Batches(make[kind](source), views(), 0, is_pending)
    for _ in range(2):  # the second time, they are kept
        assert are_equal(made(data, ALL), made(batches(), ALL))


@pytest.mark.parametrize(("workers", "is_pending"), [(0, False), (2, False), (2, True)])
def test_batches_go_on_where_they_stopped_whatever_the_number_of_workers(workers: int, is_pending: bool) -> None:
    done = 0
    keys = ShuffledBatches(len(SIZES), 2, seed=5, batches_done=lambda: done)
    expected = [list(item) for item in make_loader(batches(), keys, LoaderConfig(batch_size=2, num_workers=0))]
    assert len(expected) == 4
    done = 1
    loader = make_loader(batches(is_pending=is_pending), keys, LoaderConfig(batch_size=2, num_workers=workers))
    got = [item.make() if isinstance(item, PendingViews) else item for item in loader]
    assert all(are_equal(*pair) for pair in zip(expected[1:], got, strict=True))


def test_a_data_set_is_as_long_as_its_images() -> None:
    assert len(batches()) == len(SIZES)
