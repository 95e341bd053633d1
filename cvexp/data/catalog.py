"""The catalog of one split: its images, objects and masks, and what is wrong with them.

A source collects this information in a `Draft`. The draft is then written to a folder of arrays, which are mapped into
memory: all worker processes share one copy, and opening a catalog of a million objects takes almost no time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from cvexp.data.blobs import Blobs

UNLABELED = -1


class Problem(NamedTuple):
    """A file or annotation that is left out because something is wrong with it.

    Attributes:
        where: A file, or a position in it.
        what: What is wrong, and the remedy. If there are `numbers`, this text applies to each of them and contains the
            placeholder `{number}`.
        numbers: The numbers in a mask that do not stand for a class.
    """

    where: str
    what: str
    numbers: tuple[int, ...] = ()

    def __str__(self) -> str:
        if not self.numbers:
            return f"{self.where}: {self.what}"
        others = f" (and {len(self.numbers) - 1} more such numbers)" if len(self.numbers) > 1 else ""
        return f"{self.where}: the mask has {self.what.replace('{number}', str(self.numbers[0]))}{others}"


def grouped(problems: Sequence[Problem]) -> list[str]:
    """Return the lines to print. Masks that contain the same unknown class number share one line."""
    masks_of: dict[int, list[str]] = {}
    for problem in problems:
        for number in problem.numbers:
            masks_of.setdefault(number, []).append(problem.where)
    lines: dict[str, None] = {}  # an ordered set
    for problem in problems:
        if not problem.numbers:
            lines[str(problem)] = None
        for number in problem.numbers:
            masks = masks_of[number]
            subject = f"{len(masks)} masks, such as {masks[0]}, have" if len(masks) > 1 else f"{masks[0]}: the mask has"
            lines[f"{subject} {problem.what.replace('{number}', str(number))}"] = None
    return list(lines)


@dataclass
class Draft:
    """A catalog under construction.

    Attributes:
        root: The folder that `files` are relative to.
        classes: The names of all classes; labels are positions in this list. Empty if the objects have no labels.
        mask_values: The number of each class in mask files, if there are any.
        ignore_value: The number that marks ignored pixels in mask files, if there are any.
    """

    root: Path
    classes: Sequence[str] = ()
    mask_values: Sequence[int] = ()
    ignore_value: int = 255
    files: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    mask_files: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    boxes: list[Sequence[float]] = field(default_factory=list)
    crowds: list[bool] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)
    runs: list[bytes] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add_image(self, file: str, width: int, height: int, mask_file: str = "", url: str = "") -> int:
        """Add an image, and return its position."""
        self.files.append(file)
        self.sizes.append((width, height))
        self.mask_files.append(mask_file)
        self.urls.append(url)
        return len(self.files) - 1

    def add_object(
        self, image: int, label: int, box: Sequence[float], area: int, runs: bytes = b"", crowd: bool = False
    ) -> None:
        """Add an object to an image.

        Args:
            image: The position of the image.
            label: The object's class, or `UNLABELED`.
            box: Left, top, width and height in pixels.
            area: Area of the mask in pixels.
            runs: The mask as compressed run lengths; empty if the mask is a file or missing.
            crowd: Whether this is a region of several objects that were not annotated separately.
        """
        self.images.append(image)
        self.labels.append(label)
        self.boxes.append(box)
        self.areas.append(area)
        self.runs.append(runs)
        self.crowds.append(crowd)

    def subset(self, chosen: Sequence[bool]) -> Draft:
        """Return a draft of the chosen images with their objects, but without the problems."""
        subset = Draft(self.root, self.classes, self.mask_values, self.ignore_value)
        new_position: dict[int, int] = {}
        images = zip(self.files, self.sizes, self.mask_files, self.urls, chosen, strict=True)
        for image, (file, size, mask_file, url, is_chosen) in enumerate(images):
            if is_chosen:
                new_position[image] = subset.add_image(file, *size, mask_file, url)
        objects = zip(self.images, self.labels, self.boxes, self.areas, self.runs, self.crowds, strict=True)
        for image, *values in objects:
            if image in new_position:
                subset.add_object(new_position[image], *values)
        return subset

    def add_problem(self, where: object, what: str) -> None:
        """Record that a file or annotation is left out; see :class:`Problem`."""
        self.problems.append(Problem(str(where), what))


@dataclass(frozen=True)
class Catalog:
    """A written `Draft`, mapped into memory: m images, and n objects in the order of their images.

    Attributes:
        folder: The folder with the arrays.
        root, classes, mask_values, ignore_value: See :class:`Draft`.
        digest: SHA-256 of everything except `root`, URLs and problems; the same for the same content.
        problems: The files and annotations that were left out.
        files, mask_files: (m,) file names relative to `root`, as bytes in the file system's encoding.
        urls: (m,) the address of each image; empty if unknown.
        size: (m, 2) int32, width and height.
        first: (m + 1,) int64; image i has the objects first[i] to first[i + 1] - 1.
        image: (n,) int32, position of the object's image.
        label: (n,) int16, position in `classes`, or `UNLABELED`.
        box: (n, 4) float32, left, top, width and height in pixels.
        crowd: (n,) bool, whether the object is a region of several objects that were not annotated separately.
        area: (n,) int64, area of each object in pixels.
        runs: (n,) each object's mask as compressed run lengths; empty if the mask is a file or missing.
    """

    folder: Path
    root: Path
    classes: tuple[str, ...]
    mask_values: tuple[int, ...]
    ignore_value: int
    digest: str
    problems: tuple[Problem, ...]
    files: Blobs
    mask_files: Blobs
    urls: Blobs
    size: NDArray[np.int32]
    first: NDArray[np.int64]
    image: NDArray[np.int32]
    label: NDArray[np.int16]
    box: NDArray[np.float32]
    crowd: NDArray[np.bool_]
    area: NDArray[np.int64]
    runs: Blobs

    def __reduce__(self) -> Any:  # a spawned worker maps the files itself instead of receiving a copy
        return open_catalog, (self.folder,)

    def file(self, image: int) -> str:
        """Return the file name of an image, relative to the root."""
        return os.fsdecode(self.files[image])

    def paths(self, images: NDArray[np.int32] | None = None) -> list[str]:
        """Return the paths of all images, or of those at the given positions, as text because `Path` is slow."""
        root = os.path.join(self.root, "")  # noqa: PTH118
        if images is None:
            return [root + os.fsdecode(file) for file in self.files]
        return [root + os.fsdecode(self.files[image]) for image in images.tolist()]

    @property
    def has_masks(self) -> bool:
        """Whether any image or object has a mask."""
        return len(self.mask_files.content) > 0 or len(self.runs.content) > 0


def write_catalog(draft: Draft, folder: Path) -> None:
    """Write a draft as a catalog to a new folder."""
    folder.mkdir(parents=True)
    image = np.asarray(draft.images, dtype=np.int32)
    order = np.argsort(image, kind="stable")
    arrays: dict[str, NDArray[Any]] = {
        "size": np.asarray(draft.sizes, dtype=np.int32).reshape(-1, 2),
        "first": np.searchsorted(image[order], np.arange(len(draft.files) + 1)).astype(np.int64),
        "image": image[order],
        "label": np.asarray(draft.labels, dtype=np.int16)[order],
        "box": np.asarray(draft.boxes, dtype=np.float32).reshape(-1, 4)[order],
        "crowd": np.asarray(draft.crowds, dtype=np.bool_)[order],
        "area": np.asarray(draft.areas, dtype=np.int64)[order],
    }
    blobs: dict[str, Iterable[bytes]] = {
        "files": (os.fsencode(text) for text in draft.files),
        "mask_files": (os.fsencode(text) for text in draft.mask_files),
        "urls": (text.encode() for text in draft.urls),
        "runs": (draft.runs[i] for i in order.tolist()),
    }
    for name, values in blobs.items():
        parts = list(values)
        arrays[f"{name}.offsets"] = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        arrays[f"{name}.content"] = np.frombuffer(b"".join(parts), dtype=np.uint8)
    classes, mask_values = list(draft.classes), list(draft.mask_values)
    digest = hashlib.sha256(json.dumps([classes, mask_values, draft.ignore_value]).encode())
    for name, array in sorted(arrays.items()):
        write_array(array, folder / f"{name}.npy")
        if not name.startswith("urls"):
            digest.update(array.tobytes())
    header = {
        "classes": classes,
        "mask_values": mask_values,
        "ignore_value": draft.ignore_value,
        "problems": draft.problems,
        "root": str(draft.root),
        "digest": digest.hexdigest(),
    }
    (folder / "catalog.json").write_text(json.dumps(header))


def write_array(array: NDArray[Any], path: Path) -> None:
    """Write a contiguous array to a file that `np.load` reads.

    Unlike with `np.save`, the error on a full disk has an `errno`.
    """
    with path.open("wb") as file:
        npy_format.write_array_header_1_0(file, npy_format.header_data_from_array_1_0(array))
        file.write(array.data)


def open_catalog(folder: Path) -> Catalog:
    """Open the catalog in a folder."""
    header = json.loads((folder / "catalog.json").read_text())

    def array(name: str) -> Any:
        return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))  # not np.memmap, whose indexing is slow

    def blobs(name: str) -> Blobs:
        return Blobs(array(f"{name}.offsets"), array(f"{name}.content"))

    return Catalog(
        folder=folder,
        root=Path(header["root"]),
        classes=tuple(header["classes"]),
        mask_values=tuple(header["mask_values"]),
        ignore_value=header["ignore_value"],
        digest=header["digest"],
        problems=tuple(Problem(where, what, tuple(numbers)) for where, what, numbers in header["problems"]),
        files=blobs("files"),
        mask_files=blobs("mask_files"),
        urls=blobs("urls"),
        size=array("size"),
        first=array("first"),
        image=array("image"),
        label=array("label"),
        box=array("box"),
        crowd=array("crowd"),
        area=array("area"),
        runs=blobs("runs"),
    )
