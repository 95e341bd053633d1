"""Reproducible choices of a few items of an index to look at or to measure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cvexp.data.index import Index
from cvexp.seeds import mix


def sample(index: Index, max_objects: int) -> list[int]:
    """Return the positions of at most `max_objects` objects of an index, in ascending order."""
    return sorted(_permutation(len(index))[:max_objects].tolist())


def sample_from_few_shards(index: Index, max_objects: int) -> list[int]:
    """Return the positions of at most `max_objects` objects of an index, in ascending order.

    If the images are members of shards, the objects are taken from as few shards as have enough of them. The shards are
    drawn at random. This does not distort the sample, because each shard is a random part of the data.
    """
    if (members := index.catalog.members) is None or max_objects >= len(index):
        return sample(index, max_objects)
    shard = members.shard[index.image]
    shards = _permutation(len(members.shards))
    enough = np.searchsorted(np.bincount(shard, minlength=len(shards))[shards].cumsum(), max_objects) + 1
    positions = np.flatnonzero(np.isin(shard, shards[:enough]))
    return sorted(positions[_permutation(len(positions))[:max_objects]].tolist())


def _permutation(length: int) -> NDArray[np.int64]:
    """Return a permutation of 0 to length - 1, always the same one for the same length."""
    return np.random.RandomState(mix(0, length) % 2**32).permutation(length)


def choose_images(index: Index, num_images: int) -> set[int]:
    """Return the positions of a few images of an index, spread over its classes and its whole length.

    Images without an object of the selected classes are chosen only if no image has such an object.
    """
    positions_of = _positions_of_classes(index)
    classes_at: dict[int, set[int]] = {}  # by position
    for label, positions in positions_of.items():
        for position in positions:
            classes_at.setdefault(position, set()).add(label)
    if not classes_at:
        last = len(index.images) - 1
        return set(np.linspace(0, last, min(num_images, last + 1)).astype(int).tolist())
    chosen: set[int] = set()
    num_chosen = dict.fromkeys(positions_of, 0)  # number of chosen images of each class
    while len(chosen) < min(num_images, len(classes_at)):
        free = {label: [i for i in positions if i not in chosen] for label, positions in positions_of.items()}
        label = min((label for label in positions_of if free[label]), key=lambda label: num_chosen[label])
        farthest = max(free[label], key=lambda i: min((abs(i - other) for other in chosen), default=0))
        chosen.add(farthest)
        for other in classes_at[farthest]:
            num_chosen[other] += 1
    return chosen


def _positions_of_classes(index: Index) -> dict[int, list[int]]:
    """Return, by the position of each class that occurs, the positions of the images with an object of this class."""
    labels, images = index.object_labels(), index.catalog.image
    return {
        label: np.flatnonzero(np.isin(index.images, images[labels == label])).tolist()
        for label in np.unique(labels[labels >= 0]).tolist()
    }
