"""The one thing that all data sources produce: a small index of images and of the objects in them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Index:
    """The objects of one split, n of them, and the images that they are in.

    Attributes:
        split: "train" or "val".
        root: The folder that `files` are relative to.
        classes: Names; `label` counts into them.
        files: Image files that hold at least one of the objects.
        image: (n,) int32, each object's position in `files`.
        label: (n,) int16.
        box: (n, 4) float32, each object's left, top, width and height in pixels.
    """

    split: str
    root: Path
    classes: tuple[str, ...]
    files: Sequence[str]
    image: NDArray[np.int32]
    label: NDArray[np.int16]
    box: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.label)

    def counts(self) -> dict[str, int]:
        """How many objects each class has."""
        return dict(zip(self.classes, np.bincount(self.label, minlength=len(self.classes)).tolist(), strict=True))

    def fingerprint(self) -> str:
        """A digest of all that the index says; it is equal where the same objects lie in equally named files."""
        digest = hashlib.sha256()
        for text in (*self.classes, "", *self.files):
            digest.update(text.encode() + b"\0")
        for array in (self.image, self.label, self.box):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


class Splits(NamedTuple):
    """The two splits of a data set; no image is in both."""

    train: Index
    val: Index
