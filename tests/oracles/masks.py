"""Label maps composed by pycocotools' own reader and plain loops, to test ours against."""

from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO


def label_map(api: COCO, image_id: int, classes: Sequence[str], unlisted_is_ignored: bool = False) -> np.ndarray:
    """0 background, i + 1 the i-th class, 255 ignored; of overlapping instances the smaller one lies on top."""
    image = api.imgs[image_id]
    label_of = {api.getCatIds(catNms=[name])[0]: i + 1 for i, name in enumerate(classes)}
    annotations = [a for a in api.anns.values() if a["image_id"] == image_id]
    masks = {a["id"]: api.annToMask(a).astype(bool) for a in annotations}
    result = np.zeros((image["height"], image["width"]), dtype=np.uint8)
    if unlisted_is_ignored:
        for a in annotations:
            if a["category_id"] not in label_of:
                result[masks[a["id"]]] = 255
    for a in sorted(annotations, key=lambda a: -int(masks[a["id"]].sum())):
        if a["category_id"] in label_of and not a["iscrowd"]:
            result[masks[a["id"]]] = label_of[a["category_id"]]
    for a in annotations:
        if a["category_id"] in label_of and a["iscrowd"]:
            result[masks[a["id"]]] = 255
    return result
