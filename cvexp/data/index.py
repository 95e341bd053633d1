"""The one thing that all data sources produce: a small index of images, of the objects in them, and of their masks."""

from __future__ import annotations

import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cvexp.config import DatasetConfig
from cvexp.data.catalog import Catalog, Problem
from cvexp.data.draw import draw_images, random_keys
from cvexp.data.files.images import read_mask
from cvexp.data.files.rle import decode
from cvexp.errors import UserError

BACKGROUND = 0  # in a label map; the i-th class is i + 1
IGNORE = 255


@dataclass(frozen=True)
class Index:
    """What was chosen of a split: m images with their label maps, and n objects to crop from them.

    Attributes:
        split: "train" or "val".
        catalog: What it was chosen from.
        classes: Names; `label` counts into them. Empty where there are no labels.
        images: (m,) int32, positions in the catalog.
        checksums: (m,) uint32, CRC-32 of the image files.
        image: (n,) int32, each object's image, a position in the catalog.
        label: (n,) int16; -1 where there are no labels.
        box: (n, 4) float32, each object's left, top, width and height in pixels.
        value_of: (k,) uint16, what each of the catalog's k classes is in a label map.
        problems: What was left out.
    """

    split: str
    catalog: Catalog
    classes: tuple[str, ...]
    images: NDArray[np.int32]
    checksums: NDArray[np.uint32]
    image: NDArray[np.int32]
    label: NDArray[np.int16]
    box: NDArray[np.float32]
    value_of: NDArray[np.uint16]
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.label)

    @property
    def root(self) -> Path:
        """The folder that file names are relative to."""
        return self.catalog.root

    def path(self, image: int) -> Path:
        """The file of an image, given its position in the catalog."""
        return self.root / self.catalog.file(image)

    def size(self, image: int) -> tuple[int, int]:
        """Width and height of an image, given its position in the catalog."""
        width, height = self.catalog.size[image].tolist()
        return width, height

    def counts(self) -> dict[str, int]:
        """How many of the objects each class has."""
        labeled = self.label[self.label >= 0]
        return dict(zip(self.classes, np.bincount(labeled, minlength=len(self.classes)).tolist(), strict=True))

    def num_objects(self) -> dict[str, int]:
        """The number of objects of each class in the images, of any size, without crowds."""
        if not self.classes:
            return {}
        catalog = self.catalog
        objects = np.isin(catalog.image, self.images) & ~catalog.crowd
        counts = np.bincount(self.value_of[catalog.label[objects]], minlength=len(self.classes) + 1)
        return dict(zip(self.classes, counts[1 : len(self.classes) + 1].tolist(), strict=True))

    def label_map(self, image: int) -> NDArray[np.uint8]:
        """The class of each pixel of an image, given its position in the catalog.

        Where objects overlap, the smaller one lies on top. Crowd regions of the chosen classes are ignored.

        Returns:
            (h, w): 0 for background, i + 1 for the i-th class, 255 for what nowhere counts.

        Raises:
            UserError: where a mask file is missing or broken, or the image has no masks.
        """
        catalog = self.catalog
        if mask_file := catalog.mask_files[image]:
            return self._translate(read_mask(self.root / os.fsdecode(mask_file)))
        width, height = catalog.size[image].tolist()
        labels = np.full((height, width), BACKGROUND, dtype=np.uint8)
        objects = np.arange(catalog.first[image], catalog.first[image + 1])
        values = self.value_of[catalog.label[objects]]
        objects, values = objects[values != BACKGROUND], values[values != BACKGROUND]
        # From the bottom up: what was not chosen, and is to be ignored; chosen objects; crowds of the chosen classes.
        layer = np.where(values == IGNORE, 0, np.where(catalog.crowd[objects], 2, 1))
        for i in np.lexsort((-catalog.area[objects], layer)):
            if not (runs := catalog.runs[objects[i]]):
                raise UserError(
                    f"{self.path(image)}: an object has a box and no mask; segmentation needs the `segmentation` of "
                    "all objects in the annotation file"
                )
            labels[decode(runs, width, height)] = values[i] if layer[i] == 1 else IGNORE
        return labels

    def _translate(self, numbers: NDArray[np.uint16]) -> NDArray[np.uint8]:
        table = np.full(2**16, BACKGROUND, dtype=np.uint8)
        table[list(self.catalog.mask_values)] = self.value_of
        table[self.catalog.ignore_value] = IGNORE
        return table[numbers]

    def fingerprint(self) -> str:
        """A digest of the chosen images' bytes, names, objects and masks; paths and times do not count."""
        digest = hashlib.sha256(self.catalog.digest.encode())
        digest.update("\0".join(self.classes).encode())
        for array in (self.images, self.checksums, self.image, self.label, self.box, self.value_of):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def file_digests(self) -> dict[str, str]:
        """A digest of each chosen image, by its file: of its bytes, and of all its objects with their masks."""
        catalog = self.catalog
        values = self.value_of[catalog.label] if len(self.value_of) else catalog.label
        ends = catalog.runs.offsets
        digests = {}
        for image, checksum in zip(self.images.tolist(), self.checksums.tolist(), strict=True):
            objects = slice(int(catalog.first[image]), int(catalog.first[image + 1]))
            digest = zlib.crc32(catalog.runs.content[ends[objects.start] : ends[objects.stop]].tobytes())
            for array in (values, catalog.box, catalog.crowd, catalog.area):
                digest = zlib.crc32(np.ascontiguousarray(array[objects]).tobytes(), digest)
            digests[catalog.file(image)] = f"{checksum:08x}{digest:08x}"
        return digests


class Splits(NamedTuple):
    """The two splits of a data set; no image is in both."""

    train: Index
    val: Index


def select(catalog: Catalog, split: str, config: DatasetConfig, broken: NDArray[np.bool_] | None = None) -> Index:
    """What the configuration chooses of a catalog: classes, sizes, and how many images.

    Classes that the catalog doesn't have keep their number; it has no objects of them.

    Args:
        catalog: All that there is.
        split: Its name.
        config: `classes` (null is all of them), `unlisted`, `empty_images`, `min_crop_size`, `limit`, `limit_seed`.
        broken: (m,) which of the catalog's images are to be left out.
    """
    classes = tuple(config.classes if config.classes is not None else catalog.classes)
    if not catalog.classes:  # nothing is labeled, so nothing can be chosen
        classes = ()
    new_label = np.full(len(catalog.classes) + 1, -1, dtype=np.int16)  # the last one is for the unlabeled
    value_of = np.full(len(catalog.classes), IGNORE if config.unlisted == "ignore" else BACKGROUND, dtype=np.uint16)
    for position, name in enumerate(catalog.classes):
        if name in classes:
            new_label[position] = classes.index(name)
            value_of[position] = new_label[position] + 1
    label = new_label[catalog.label]
    is_object = ~catalog.crowd & ((label >= 0) | (not catalog.classes))
    has_object = np.zeros(len(catalog.files), dtype=np.bool_)
    has_object[catalog.image[is_object]] = True
    candidates = np.ones_like(has_object) if config.empty_images else has_object
    broken = np.zeros_like(candidates) if broken is None else broken
    images = np.flatnonzero(candidates & ~broken)
    is_large = catalog.box[:, 2:].min(axis=1) >= config.min_crop_size
    if config.limit is not None and config.limit < len(images):
        of_class = np.flatnonzero(is_object & (label >= 0))
        keys = random_keys(catalog.files, config.limit_seed)
        images = draw_images(
            config.limit, keys, candidates, broken, catalog.image[of_class], label[of_class], is_large[of_class]
        )
    is_chosen = np.zeros_like(candidates)
    is_chosen[images] = True
    is_crop = is_object & is_large & is_chosen[catalog.image]
    return Index(
        split=split,
        catalog=catalog,
        classes=classes,
        images=images.astype(np.int32),
        checksums=np.zeros(len(images), dtype=np.uint32),
        image=catalog.image[is_crop],
        label=label[is_crop],
        box=catalog.box[is_crop],
        value_of=value_of,
        problems=catalog.problems,
    )
