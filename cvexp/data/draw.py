"""Random choices that depend on file names alone, so that an image keeps its place when others come or go."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def name_fraction(name: bytes) -> float:
    """A pseudo-random number from 0 to 1 that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") / 2**64


def random_keys(names: Iterable[bytes], seed: int) -> NDArray[np.float64]:
    """A pseudo-random number from 0 to 1 for each name and this seed."""
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
    """Draw images such that no class is lost and the proportions of the classes stay.

    The stratum of an image is its rarest class; images without objects are a stratum of their own. First comes one
    image of each class that none before it has, the rarest class first. Then the image of rank r, by its key, in a
    stratum of s images has the place (r + 0.5) / s. So the images of a smaller number are among those of a larger one.
    Broken images count in their stratum but are skipped, so that the others keep their places.

    Args:
        num_images: How many to draw.
        keys: (m,) the random key of each image.
        candidates: (m,) which images may be drawn.
        broken: (m,) which of these can't.
        image: (n,) the image of each object, all of them candidates.
        label: (n,) its class.
        is_large: (n,) whether it is large enough to be a crop; the first image of a class has such a one if any does.

    Returns:
        Positions of images, ascending.
    """
    num_classes = int(label.max(initial=-1)) + 1
    pairs = np.unique(image.astype(np.int64) * num_classes + label)
    num_images_of = np.bincount(pairs % num_classes, minlength=num_classes)
    by_rarity = np.argsort(num_images_of, kind="stable")
    rarity = np.argsort(by_rarity)
    stratum = np.full(len(keys), num_classes)
    np.minimum.at(stratum, image, rarity[label])

    images = np.flatnonzero(candidates)
    images = images[np.lexsort((keys[images], stratum[images]))]
    _, first, size = np.unique(stratum[images], return_index=True, return_counts=True)
    rank = np.arange(len(images)) - np.repeat(first, size)
    place = np.zeros(len(keys))
    place[images] = (rank + 0.5) / np.repeat(size, size)

    order = np.lexsort((keys[image], ~is_large, label))
    order = order[~broken[image[order]]]
    labels, first = np.unique(label[order], return_index=True)
    image_of = dict(zip(labels.tolist(), image[order[first]].tolist(), strict=True))
    covered: set[int] = set()
    for number, one in enumerate(by_rarity.tolist()):
        if one in image_of and one not in covered:
            place[image_of[one]] = number - num_classes
            covered.update(label[(image == image_of[one]) & is_large].tolist())

    images = images[~broken[images]]
    return np.sort(images[np.lexsort((keys[images], place[images]))][:num_images])
