"""The share of the training images whose labels are used."""

from __future__ import annotations

import numpy as np

from cvexp.config import DatasetConfig
from cvexp.data.draw import draw_images, random_keys
from cvexp.data.index import BACKGROUND, IGNORE, Index


def labeled_part(train: Index, config: DatasetConfig) -> Index:
    """Draw the labeled training images, stratified by class as with `dataset.limit`.

    Every class keeps at least one image. With equal seeds, a smaller share is a subset of a larger one.

    Args:
        train: All training images.
        config: Specifies `fraction` and `fraction_seed`.
    """
    if config.fraction == 1:
        return train
    catalog = train.catalog
    is_candidate = np.zeros(len(catalog.files), dtype=np.bool_)
    is_candidate[train.images] = True
    values = train.value_of[catalog.label]
    is_object = is_candidate[catalog.image] & ~catalog.crowd & (values != BACKGROUND) & (values != IGNORE)
    objects = np.flatnonzero(is_object)
    images = draw_images(
        max(round(config.fraction * len(train.images)), len(train.classes), 1),
        random_keys(catalog.files, config.fraction_seed),
        is_candidate,
        np.zeros_like(is_candidate),
        catalog.image[objects],
        (values[objects] - 1).astype(np.int16),
        np.ones(len(objects), dtype=np.bool_),
    )
    return train.subset(images.astype(np.int32))
