"""The index, the common form of all data sources: the selected images of a split, with their objects and masks."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cvexp.config import DatasetConfig
from cvexp.data.catalog import Catalog
from cvexp.data.draw import draw_images, random_keys
from cvexp.data.files.images import read_image, read_mask
from cvexp.data.files.rle import decode
from cvexp.data.problems import Problem
from cvexp.data.shards import reading
from cvexp.errors import UserError

BACKGROUND = 0  # in a label map; class i has the value i + 1
IGNORE = 255  # in a label map: pixels that losses and metrics skip


@dataclass(frozen=True)
class Index:
    """The selected part of a split: m images with their label maps, and n objects to crop from them.

    Attributes:
        split: ``"train"``, ``"val"`` or ``"test"``.
        catalog: All images and objects of the split.
        classes: Names of the selected classes. Empty if there are no labels.
        images: (m,) int32, positions in the catalog.
        checksums: (m,) uint32, CRC-32 of each image file.
        image: (n,) int32, position of each object's image in the catalog.
        label: (n,) int16, position of each object's class in `classes`; -1 if there are no labels.
        box: (n, 4) float32, left, top, width and height of each object in pixels.
        value_of: (k,) uint16, value in label maps for each of the catalog's k classes.
        problems: The broken files and annotations that were left out.
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
        """Return the number of objects to crop."""
        return len(self.label)

    @property
    def root(self) -> Path:
        """The folder that file names are relative to."""
        return self.catalog.root

    @property
    def place(self) -> str:
        """Where the images are, for messages and records: a folder, or an address."""
        return self.catalog.place

    def path(self, image: int) -> Path:
        """Return the path of an image that is a file, given its position in the catalog."""
        return self.root / self.catalog.file(image)

    def read_image(self, image: int, at_least: float = 0) -> Image.Image:
        """Read an image as RGB, given its position in the catalog, from its file or shard.

        Args:
            image: The position.
            at_least: Minimum scale; see `cvexp.data.files.images.read_image`.

        Raises:
            UserError: if the file or the shard is missing or broken. The message names it.
        """
        size, members = self.size(image), self.catalog.members
        if members is None:
            return read_image(self.path(image), size, at_least)
        return reading.read_image(members, image, size, at_least)

    def read_bytes(self, image: int) -> bytes:
        """Return the bytes of the file of an image, given its position in the catalog.

        Raises:
            UserError: if the shard that contains it is missing or broken.
        """
        members = self.catalog.members
        return self.path(image).read_bytes() if members is None else reading.read_bytes(members, image)

    def size(self, image: int) -> tuple[int, int]:
        """Return the width and height of an image, given its position in the catalog."""
        width, height = self.catalog.size[image].tolist()
        return width, height

    def counts(self) -> dict[str, int]:
        """Return the number of objects to crop for each class."""
        labeled = self.label[self.label >= 0]
        return dict(zip(self.classes, np.bincount(labeled, minlength=len(self.classes)).tolist(), strict=True))

    def num_objects(self) -> dict[str, int]:
        """Return the number of objects of each class in the images, of any size but without crowd regions."""
        if not self.classes:
            return {}
        labels = self.object_labels()
        counts = np.bincount(labels[labels >= 0], minlength=len(self.classes))
        return dict(zip(self.classes, counts.tolist(), strict=True))

    def object_labels(self) -> NDArray[np.int16]:
        """Return the class of each object of the catalog, whatever its size, as its position in `classes`.

        It is -1 for crowd regions, for objects of other classes or without a label, and for those in other images.
        """
        catalog = self.catalog
        is_counted = np.isin(catalog.image, self.images) & ~catalog.crowd
        return np.where(is_counted, _positions_of(catalog, self.classes)[catalog.label], np.int16(-1))

    def label_map(self, image: int) -> NDArray[np.uint8]:
        """Return the class of each pixel of an image, given its position in the catalog.

        Smaller objects cover larger ones. Pixels in crowd regions of the selected classes are ignored.

        Returns:
            (h, w): 0 for background, i + 1 for class i, 255 for ignored pixels.

        Raises:
            UserError: if a mask file is missing or broken, or an object has no mask.
        """
        catalog = self.catalog
        if mask_file := catalog.mask_files[image]:
            table = catalog.mask_table
            values_hw = read_mask(self.root / os.fsdecode(mask_file), table.has_colors)
            return table.labels(values_hw, self.value_of, BACKGROUND, IGNORE)
        width, height = catalog.size[image].tolist()
        labels = np.full((height, width), BACKGROUND, dtype=np.uint8)
        objects = np.arange(catalog.first[image], catalog.first[image + 1])
        values = self.value_of[catalog.label[objects]]
        objects, values = objects[values != BACKGROUND], values[values != BACKGROUND]
        # From the bottom up: ignored objects of other classes, objects of the selected classes, their crowd regions.
        layer = np.where(values == IGNORE, 0, np.where(catalog.crowd[objects], 2, 1))
        for i in np.lexsort((-catalog.area[objects], layer)):
            if not (runs := catalog.runs[objects[i]]):
                raise UserError(
                    f"{self.path(image)}: an object has a box but no mask; segmentation needs the `segmentation` of "
                    "all objects in the annotation file"
                )
            labels[decode(runs, width, height)] = values[i] if layer[i] == 1 else IGNORE
        return labels

    def subset(self, images: NDArray[np.int32]) -> Index:
        """Return the index with only some of its images, given their positions in the catalog."""
        is_kept, is_crop = np.isin(self.images, images), np.isin(self.image, images)
        return replace(
            self,
            images=self.images[is_kept],
            checksums=self.checksums[is_kept],
            image=self.image[is_crop],
            label=self.label[is_crop],
            box=self.box[is_crop],
        )

    def fingerprint(self) -> str:
        """Return a digest of the names, bytes, objects and masks of the selected images, but not of root and times."""
        digest = hashlib.sha256(self.catalog.digest.encode())
        digest.update("\0".join(self.classes).encode())
        for array in (self.images, self.checksums, self.image, self.label, self.box, self.value_of):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def file_digests(self) -> dict[str, str]:
        """Return a digest of the bytes and all objects of each selected image, or a digest of each shard, by name."""
        catalog = self.catalog
        if catalog.members is not None:
            return {shard.name: shard.sha256[:16] for shard in catalog.members.shards}
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


@dataclass(frozen=True)
class Splits:
    """The splits of a data set; no image is in two of them.

    Attributes:
        train: What is trained on.
        val: What selects checkpoints.
        test: What is only scored, after everything has been chosen; None if there is no such split.
    """

    train: Index
    val: Index
    test: Index | None = None

    def __iter__(self) -> Iterator[Index]:
        """Iterate over the splits that exist."""
        return iter((self.train, self.val) if self.test is None else (self.train, self.val, self.test))

    @property
    def scored(self) -> Index:
        """The split on which results are compared: the test split, or without one, the validation split."""
        return self.val if self.test is None else self.test


def select(catalog: Catalog, split: str, config: DatasetConfig, broken: NDArray[np.bool_] | None = None) -> Index:
    """Select classes, objects and images from a catalog, as the configuration specifies.

    Selected classes that are missing from the catalog keep their labels but have no objects.

    Args:
        catalog: All images and objects of the split.
        split: The name of the split.
        config: Specifies `classes`, `unlisted`, `empty_images`, `min_crop_size`, `limit` and `limit_seed`.
        broken: (m,) which of the catalog's images to leave out; None keeps all.
    """
    classes = tuple(config.classes if config.classes is not None else catalog.classes)
    if not catalog.classes:  # without labels, no classes can be selected
        classes = ()
    new_label = _positions_of(catalog, classes)
    unlisted = IGNORE if config.unlisted == "ignore" else BACKGROUND
    value_of = np.where(new_label >= 0, new_label + 1, unlisted)[:-1].astype(np.uint16)
    label = new_label[catalog.label]
    is_object = ~catalog.crowd & ((label >= 0) | (not catalog.classes))
    has_object = np.zeros(len(catalog.files), dtype=np.bool_)
    has_object[catalog.image[is_object]] = True
    candidates = np.ones_like(has_object) if config.empty_images else has_object
    broken = np.zeros_like(candidates) if broken is None else broken
    images = np.flatnonzero(candidates & ~broken)
    is_large = large_objects(catalog, config)
    if config.limit is not None and config.limit < len(images):
        keys = random_keys(catalog.files, config.limit_seed)
        labels = np.where(is_object, label, np.int16(-1))
        images = draw_images(config.limit, keys, candidates, broken, catalog.image, labels, is_large)
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


def _positions_of(catalog: Catalog, classes: tuple[str, ...]) -> NDArray[np.int16]:
    """Return the position in `classes` of each of the catalog's k classes; -1 for others and, at the end, for none."""
    position_of = {name: position for position, name in enumerate(classes)}
    return np.array([*(position_of.get(name, -1) for name in catalog.classes), -1], dtype=np.int16)


def large_objects(catalog: Catalog, config: DatasetConfig) -> NDArray[np.bool_]:
    """Return whether each object of a catalog is large enough for a crop."""
    is_large: NDArray[np.bool_] = catalog.box[:, 2:].min(axis=1) >= config.min_crop_size
    return is_large
