"""The share of the training images whose labels are used."""

from __future__ import annotations

import numpy as np

from cvexp.config import DatasetConfig
from cvexp.data.draw import draw_images, random_keys
from cvexp.data.index import Index, large_objects


def labeled_part(train: Index, config: DatasetConfig) -> Index:
    """Draw the labeled training images, stratified by class as with `dataset.limit`.

    Every class that occurs in training keeps at least one image, so there are at least as many images as such classes.
    With equal seeds, a smaller share is a subset of a larger one.

    Args:
        train: All training images. Without labels, all of them are returned.
        config: Specifies `fraction`, `fraction_seed` and `min_crop_size`.
    """
    if config.fraction == 1 or not train.classes:
        return train
    catalog = train.catalog
    candidates = np.zeros(len(catalog.files), dtype=np.bool_)
    candidates[train.images] = True
    labels = train.object_labels()
    num_classes = len(np.unique(labels[labels >= 0]))
    images = draw_images(
        max(round(config.fraction * len(train.images)), num_classes, 1),
        random_keys(catalog.files, config.fraction_seed),
        candidates,
        np.zeros_like(candidates),
        catalog.image,
        labels,
        large_objects(catalog, config),
    )
    return train.subset(images.astype(np.int32))
