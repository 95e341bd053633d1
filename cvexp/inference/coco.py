"""Predictions as a file in COCO's format, with the mask of each class in each image as run lengths."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cvexp.colors import color
from cvexp.data.files.rle import encode_array
from cvexp.inference.segmentation import Segmentation


class CocoFile:
    """Collects the predictions for images.

    Args:
        classes: All classes of the network, in the order of their labels. They become categories, counted from 1.
        info: What is known about the network.
    """

    def __init__(self, classes: Sequence[str], info: dict[str, Any]) -> None:
        self.numbers = {name: number for number, name in enumerate(classes, 1)}
        self.info = info
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, segmentation: Segmentation, **entry: Any) -> None:
        """Add an image.

        Args:
            segmentation: The prediction.
            entry: What is known about the image, such as its `file_name`.
        """
        height, width = segmentation.labels.shape
        image_id = len(self.images) + 1
        presence = {name: round(value, 4) for name, value in segmentation.presence.items()}
        size = {"id": image_id, "width": width, "height": height}
        self.images.append({**size, **entry, "num_tiles": segmentation.num_tiles, "presence": presence})
        for label in np.unique(segmentation.labels[segmentation.labels > 0]).tolist():
            mask_hw = segmentation.labels == label
            rows, columns = np.flatnonzero(mask_hw.any(axis=1)), np.flatnonzero(mask_hw.any(axis=0))
            top, left = int(rows[0]), int(columns[0])
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": image_id,
                    "category_id": label,
                    "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                    "area": int(mask_hw.sum()),
                    "segmentation": {"size": [height, width], "counts": encode_array(mask_hw).decode("ascii")},
                    "iscrowd": 0,
                }
            )

    def write(self, path: Path) -> None:
        """Write the file."""
        categories = [{"id": number, "name": name, "color": color(number - 1)} for name, number in self.numbers.items()]
        content = {"info": self.info, "categories": categories, "images": self.images, "annotations": self.annotations}
        path.write_text(json.dumps(content))
