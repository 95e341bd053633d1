"""No image is in two splits: neither as the same file, nor as a copy under another name."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from cvexp.data.catalog import Catalog
from cvexp.data.index import Index, Splits
from cvexp.data.problems import Problem
from cvexp.errors import UserError

log = logging.getLogger("cvexp")

NAMES = {"train": "training", "val": "validation", "test": "test"}
PAIRS = (("train", "val"), ("train", "test"), ("val", "test"))  # in the first of two splits, an image is not allowed
REASONS = {"train": "must not be used for training", "val": "must not choose the checkpoint"}


def check_paths(catalogs: Mapping[str, Catalog]) -> None:
    """Raise a UserError if a file is in two splits.

    Args:
        catalogs: The catalog of each split.
    """
    if catalogs["train"].members is not None:  # the splits have shards of their own
        return
    paths = {split: set(catalog.paths()) for split, catalog in catalogs.items()}
    for first, second in PAIRS:
        if shared := paths.get(first, set()) & paths.get(second, set()):
            raise UserError(
                f"dataset: {len(shared)} images are in both the {NAMES[first]} and the {NAMES[second]} split, such as "
                f"{min(shared)}; remove them from one split, because {NAMES[second]} images {REASONS[first]}"
            )


def without_copies(splits: Splits, strict: bool, pools: Mapping[str, object]) -> Splits:
    """Return the splits without images that have the same bytes as an image of another split.

    Copies of validation and test images are left out of training, and copies of test images out of validation. Shards
    are not searched, because the images were compared when the shards were written.

    Args:
        splits: The checked splits.
        strict: Whether copies are refused rather than left out.
        pools: What the images of each split were drawn from; None if they were not drawn. Between splits from the same
            pool, copies are no mistake, and are left out.

    Raises:
        UserError: if there are copies, and `strict` is set. It names two of the images.
    """
    if splits.train.catalog.members is not None:
        return splits
    indexes = {index.split: index for index in splits}
    remaining = dict(indexes)
    for first, second in PAIRS:
        if second not in indexes or not (copies := _copies(indexes[first], indexes[second])):
            continue
        image, original = next(iter(copies.items()))
        if pools[first] is not None and pools[first] is pools[second]:
            remaining[first] = _without(remaining[first], copies)
            message = "data: the %s split is without %d copies of %s images, such as %s, which is a copy of %s"
            paths = indexes[first].path(image), indexes[second].path(original)
            log.warning(message, first, len(copies), NAMES[second], *paths)
            continue
        if strict:
            raise UserError(
                f"dataset: {len(copies)} {NAMES[first]} images have the same bytes as {NAMES[second]} images, such as "
                f"{indexes[first].path(image)} and {indexes[second].path(original)}; remove them from one split, "
                f"because {NAMES[second]} images {REASONS[first]}, or leave them out of the {NAMES[first]} split with "
                "dataset.strict=false"
            )
        remaining[first] = _left_out(remaining[first], copies, indexes[second])
    return Splits(**remaining)


def _copies(index: Index, other: Index) -> dict[int, int]:
    """Return the images that have the same bytes as an image of another split, each with one of the latter.

    Only images with equal checksums are read.
    """
    shared = np.intersect1d(index.checksums, other.checksums)
    images, others = (one.images[np.isin(one.checksums, shared)].tolist() for one in (index, other))
    original_of = {_digest(other, image): image for image in others}
    digests = {image: _digest(index, image) for image in images}
    return {image: original_of[digest] for image, digest in digests.items() if digest in original_of}


def _digest(index: Index, image: int) -> bytes:
    return hashlib.sha256(index.read_bytes(image)).digest()


def _left_out(index: Index, copies: Mapping[int, int], other: Index) -> Index:
    """Return an index without copies, each of which is a new problem unless it was left out before."""
    copied = [image for image in index.images.tolist() if image in copies]
    problems = tuple(
        Problem(
            str(index.path(image)),
            f"it has the same bytes as {other.path(copies[image])} in the {NAMES[other.split]} split; remove one of "
            "them",
        )
        for image in copied
    )
    return replace(_without(index, copies), problems=(*index.problems, *problems))


def _without(index: Index, copies: Mapping[int, int]) -> Index:
    return index.subset(np.setdiff1d(index.images, list(copies)))
