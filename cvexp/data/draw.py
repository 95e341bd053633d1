"""Random choices that depend only on file names, so an image keeps its place when others are added or removed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray


def name_fraction(name: bytes) -> float:
    """Return a pseudorandom number from 0 to 1 that depends only on the name."""
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") / 2**64


def random_keys(names: Iterable[bytes], seed: int) -> NDArray[np.float64]:
    """Return, for each name, a pseudorandom number from 0 to 1 that depends only on the name and the seed."""
    prefix = f"{seed} ".encode()
    return np.array([name_fraction(prefix + name) for name in names], dtype=np.float64)


def draw_images(
    num_images: int,
    keys: NDArray[np.float64],
    candidates: NDArray[np.bool_],
    broken: NDArray[np.bool_],
    image: NDArray[np.int32],
    label: NDArray[np.int16],
    is_large: NDArray[np.bool_],
) -> NDArray[np.intp]:
    """Draw images that represent every class and preserve the proportions of the classes.

    The images are ordered and the first ones are drawn, so a smaller draw is a subset of a larger one. The order starts
    with one image for each class, from the rarest to the most common, unless an earlier image shows the class. All
    other images are stratified by their rarest class; images without objects form a separate stratum. In a stratum of s
    images, ranked by key, the image of rank r is placed at (r + 0.5) / s. Broken images count toward their stratum but
    are not drawn, so the other images keep their places.

    Args:
        num_images: Number of images to draw.
        keys: (m,) the random key of each image.
        candidates: (m,) which images may be drawn.
        broken: (m,) which of the candidates are skipped.
        image: (n,) the image of each object.
        label: (n,) the class of each object; -1 for objects that do not count. Images of the others are candidates.
        is_large: (n,) whether each object is large enough for a crop. The first image of a class shows such an
            object of the class if any image does.

    Returns:
        Positions of images, in ascending order.
    """
    counts = label >= 0
    image, label, is_large = image[counts], label[counts], is_large[counts]
    num_classes = int(label.max(initial=-1)) + 1
    by_rarity = _by_rarity(image, label, num_classes)
    images = np.flatnonzero(candidates)
    place = _stratified_places(images, keys, _strata(len(keys), image, label, by_rarity))
    for rank, first in enumerate(_first_images(keys, ~broken[image], image, label, is_large, by_rarity)):
        place[first] = rank - num_classes  # negative, and thus before all others
    images = images[~broken[images]]
    return np.sort(images[np.lexsort((keys[images], place[images]))][:num_images])


def _by_rarity(image: NDArray[np.int32], label: NDArray[np.int16], num_classes: int) -> NDArray[np.intp]:
    """Return the classes, sorted by the number of images that show them."""
    pairs = np.unique(image.astype(np.int64) * num_classes + label)
    num_images = np.bincount(pairs % num_classes, minlength=num_classes)
    return np.argsort(num_images, kind="stable")


def _strata(
    num_images: int, image: NDArray[np.int32], label: NDArray[np.int16], by_rarity: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Return (m,) the rarity rank of each image's rarest class, or the number of classes if there are no objects."""
    rarity = np.argsort(by_rarity)
    stratum = np.full(num_images, len(by_rarity))
    np.minimum.at(stratum, image, rarity[label])
    return stratum


def _stratified_places(
    images: NDArray[np.intp], keys: NDArray[np.float64], stratum: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Return (m,) the place of each candidate in the order, from 0 to 1: its relative rank by key in its stratum."""
    images = images[np.lexsort((keys[images], stratum[images]))]
    _, first, size = np.unique(stratum[images], return_index=True, return_counts=True)
    rank = np.arange(len(images)) - np.repeat(first, size)
    place = np.zeros(len(keys))
    place[images] = (rank + 0.5) / np.repeat(size, size)
    return place


def _first_images(
    keys: NDArray[np.float64],
    is_usable: NDArray[np.bool_],
    image: NDArray[np.int32],
    label: NDArray[np.int16],
    is_large: NDArray[np.bool_],
    by_rarity: NDArray[np.intp],
) -> Iterator[int]:
    """Yield an image for each class, rarest class first, unless a large object of the class was in a yielded image.

    The image of a class is the one with the smallest key, preferably among the images with a large object of the class.
    """
    order = np.lexsort((keys[image], ~is_large, label))
    order = order[is_usable[order]]
    labels, first = np.unique(label[order], return_index=True)
    image_of = dict(zip(labels.tolist(), image[order[first]].tolist(), strict=True))
    covered: set[int] = set()
    for class_label in by_rarity.tolist():
        if class_label in image_of and class_label not in covered:
            yield image_of[class_label]
            covered.update(label[(image == image_of[class_label]) & is_large].tolist())
