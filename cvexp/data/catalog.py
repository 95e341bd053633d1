"""All that a source knows of one split: images, objects, masks, and what is wrong with them.

A source gathers it in a `Draft`. Written down, it is a folder of arrays that are mapped into memory, so that all worker
processes share one copy, and a million objects are there at once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

UNLABELED = -1


class Problem(NamedTuple):
    """Something that is left out: where it is, and what is wrong with it, with the remedy.

    Attributes:
        where: A file, or a place in it.
        what: What is wrong; with `numbers`, what is wrong with each, `{number}` in it.
        numbers: Those of a mask that are no class.
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
    """The problems as lines to print: a number that is no class has one line, however many masks have it."""
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
            one = f"{masks[0]}: the mask has"
            several = f"{len(masks)} masks, such as {masks[0]}, have"
            lines[f"{several if len(masks) > 1 else one} {problem.what.replace('{number}', str(number))}"] = None
    return list(lines)


@dataclass
class Draft:
    """A catalog that is being gathered.

    Attributes:
        root: The folder that `files` are relative to.
        classes: The names of all classes; `label` counts into them. Empty where the objects have no labels.
        mask_values: Where masks are files: the number that each class has in them.
        ignore_value: Where masks are files: the number of the pixels that nowhere count.
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
        """Add an image, and give its position."""
        self.files.append(file)
        self.sizes.append((width, height))
        self.mask_files.append(mask_file)
        self.urls.append(url)
        return len(self.files) - 1

    def add_object(
        self, image: int, label: int, box: Sequence[float], area: int, runs: bytes = b"", crowd: bool = False
    ) -> None:
        """Add an object of an image: its label, its left, top, width and height, and its mask."""
        self.images.append(image)
        self.labels.append(label)
        self.boxes.append(box)
        self.areas.append(area)
        self.runs.append(runs)
        self.crowds.append(crowd)

    def subset(self, chosen: Sequence[bool]) -> Draft:
        """The chosen images with their objects, without the problems."""
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
        self.problems.append(Problem(str(where), what))


class Blobs(Sequence[bytes]):
    """Many byte strings in one array, each found by its offset."""

    def __init__(self, offsets: NDArray[np.int64], content: NDArray[np.uint8]) -> None:
        self.offsets = offsets
        self.content = content

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, position: int) -> bytes: ...
    @overload
    def __getitem__(self, position: slice) -> list[bytes]: ...
    def __getitem__(self, position: int | slice) -> bytes | list[bytes]:
        if isinstance(position, slice):
            return [self[i] for i in range(*position.indices(len(self)))]
        return self.content[self.offsets[position] : self.offsets[position + 1]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        content = self.content.tobytes()
        offsets = self.offsets.tolist()
        return (content[start:end] for start, end in pairwise(offsets))


@dataclass(frozen=True)
class Catalog:
    """A `Draft` that was written, mapped into memory: m images, and n objects in the order of their images.

    Attributes:
        folder: Where it lies.
        files, mask_files, urls: (m,) as the file system names them.
        size: (m, 2) int32, width and height.
        first: (m + 1,) int64, image i has the objects first[i] to first[i + 1].
        image: (n,) int32.
        label: (n,) int16.
        box: (n, 4) float32.
        crowd: (n,) bool, regions of objects that nobody told apart.
        area: (n,) int64, in pixels.
        runs: (n,) each object's mask as compressed run lengths; empty where masks are files, or there is none.
        digest: Of all of it but `root`, so that it tells whether two catalogs say the same.
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

    def __reduce__(self) -> Any:  # a worker that is spawned maps the files too, instead of getting a copy
        return open_catalog, (self.folder,)

    def file(self, image: int) -> str:
        """The name of an image's file, relative to the root."""
        return os.fsdecode(self.files[image])

    def paths(self, images: NDArray[np.int32] | None = None) -> list[str]:
        """The paths of image files; of all, or of those at the given positions. A Path each would take too long."""
        root = os.path.join(self.root, "")  # noqa: PTH118
        if images is None:
            return [root + os.fsdecode(file) for file in self.files]
        return [root + os.fsdecode(self.files[image]) for image in images.tolist()]

    @property
    def has_masks(self) -> bool:
        """Whether any of it has a mask."""
        return len(self.mask_files.content) > 0 or len(self.runs.content) > 0


def write_catalog(draft: Draft, folder: Path) -> None:
    """Write a draft as a catalog into a new folder."""
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
    said = {
        "classes": list(draft.classes),
        "mask_values": list(draft.mask_values),
        "ignore_value": draft.ignore_value,
        "problems": draft.problems,
    }
    digest = hashlib.sha256(json.dumps([said["classes"], said["mask_values"], said["ignore_value"]]).encode())
    for name, array in sorted(arrays.items()):
        np.save(folder / f"{name}.npy", array)
        if not name.startswith("urls"):
            digest.update(array.tobytes())
    said |= {"root": str(draft.root), "digest": digest.hexdigest()}
    (folder / "catalog.json").write_text(json.dumps(said))


def open_catalog(folder: Path) -> Catalog:
    """The catalog that lies in a folder."""
    said = json.loads((folder / "catalog.json").read_text())

    def array(name: str) -> Any:
        return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))  # without memmap's own, slow, indexing

    def blobs(name: str) -> Blobs:
        return Blobs(array(f"{name}.offsets"), array(f"{name}.content"))

    return Catalog(
        folder=folder,
        root=Path(said["root"]),
        classes=tuple(said["classes"]),
        mask_values=tuple(said["mask_values"]),
        ignore_value=said["ignore_value"],
        digest=said["digest"],
        problems=tuple(Problem(where, what, tuple(numbers)) for where, what, numbers in said["problems"]),
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
