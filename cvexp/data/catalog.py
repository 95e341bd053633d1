"""The catalog of one split: its images, objects and masks, and what is wrong with them.

A source collects this information in a `Draft`. The draft is then written to a folder of arrays, which are mapped into
memory: all worker processes share one copy, and opening a catalog of a million objects takes almost no time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from cvexp.data.blobs import Blobs
from cvexp.data.mask_table import MaskTable
from cvexp.data.members import Members
from cvexp.data.problems import Problem

UNLABELED = -1


class Content(NamedTuple):
    """What a catalog holds, as it is written.

    Attributes:
        root, classes, mask_table, problems: See :class:`Draft`.
        arrays: The arrays of :class:`Catalog`, by name; `NAME.offsets` and `NAME.content` for :class:`Blobs`.
        members: Everything but the arrays of :class:`Members`, if the images are members of shards. `arrays` then has
            its arrays too.
    """

    root: str
    classes: list[str]
    mask_table: MaskTable
    problems: list[Problem]
    arrays: dict[str, NDArray[Any]]
    members: dict[str, Any] | None = None


@dataclass
class Draft:
    """A catalog under construction.

    Attributes:
        root: The folder that `files` are relative to.
        classes: The names of all classes; labels are positions in this list. Empty if the objects have no labels.
        mask_table: What the values in mask files stand for, if there are any.
    """

    root: Path
    classes: Sequence[str] = ()
    mask_table: MaskTable = field(default_factory=MaskTable)
    files: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    mask_files: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    ignored: list[int] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    boxes: list[Sequence[float]] = field(default_factory=list)
    crowds: list[bool] = field(default_factory=list)
    areas: list[int] = field(default_factory=list)
    runs: list[bytes] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add_image(
        self, file: str, width: int, height: int, mask_file: str = "", url: str = "", ignored: int = 0
    ) -> int:
        """Add an image, and return its position. `ignored` is the number of pixels that its mask file ignores."""
        self.files.append(file)
        self.sizes.append((width, height))
        self.mask_files.append(mask_file)
        self.urls.append(url)
        self.ignored.append(ignored)
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
        subset = Draft(self.root, self.classes, self.mask_table)
        new_position: dict[int, int] = {}
        images = zip(self.files, self.sizes, self.mask_files, self.urls, self.ignored, chosen, strict=True)
        for image, (file, (width, height), mask_file, url, ignored, is_chosen) in enumerate(images):
            if is_chosen:
                new_position[image] = subset.add_image(file, width, height, mask_file, url, ignored)
        objects = zip(self.images, self.labels, self.boxes, self.areas, self.runs, self.crowds, strict=True)
        for image, *values in objects:
            if image in new_position:
                subset.add_object(new_position[image], *values)
        return subset

    def content(self) -> Content:
        """Return what the catalog will hold."""
        image = np.asarray(self.images, dtype=np.int32)
        order = np.argsort(image, kind="stable")
        arrays: dict[str, NDArray[Any]] = {
            "size": np.asarray(self.sizes, dtype=np.int32).reshape(-1, 2),
            "ignored": np.asarray(self.ignored, dtype=np.int64),
            "first": np.searchsorted(image[order], np.arange(len(self.files) + 1)).astype(np.int64),
            "image": image[order],
            "label": np.asarray(self.labels, dtype=np.int16)[order],
            "box": np.asarray(self.boxes, dtype=np.float32).reshape(-1, 4)[order],
            "crowd": np.asarray(self.crowds, dtype=np.bool_)[order],
            "area": np.asarray(self.areas, dtype=np.int64)[order],
        }
        blobs: dict[str, Iterable[bytes]] = {
            "files": (os.fsencode(text) for text in self.files),
            "mask_files": (os.fsencode(text) for text in self.mask_files),
            "urls": (text.encode() for text in self.urls),
            "runs": (self.runs[i] for i in order.tolist()),
        }
        for name, values in blobs.items():
            parts = list(values)
            arrays[f"{name}.offsets"] = np.cumsum([0, *map(len, parts)], dtype=np.int64)
            arrays[f"{name}.content"] = np.frombuffer(b"".join(parts), dtype=np.uint8)
        return Content(str(self.root), list(self.classes), self.mask_table, self.problems, arrays)

    def add_problem(self, where: object, what: str) -> None:
        """Record that a file or annotation is left out; see :class:`Problem`."""
        self.problems.append(Problem(str(where), what))


@dataclass(frozen=True)
class Catalog:
    """A written `Draft`, mapped into memory: m images, and n objects in the order of their images.

    Attributes:
        folder: The folder with the arrays.
        root, classes, mask_table: See :class:`Draft`.
        digest: SHA-256 of everything except `root`, URLs and problems; the same for the same content.
        problems: The files and annotations that were left out.
        files, mask_files: (m,) file names relative to `root`, as bytes in the file system's encoding.
        urls: (m,) the address of each image; empty if unknown.
        size: (m, 2) int32, width and height.
        ignored: (m,) int64, number of pixels that the image's mask file ignores; 0 if there is none.
        first: (m + 1,) int64; image i has the objects first[i] to first[i + 1] - 1.
        image: (n,) int32, position of the object's image.
        label: (n,) int16, position in `classes`, or `UNLABELED`.
        box: (n, 4) float32, left, top, width and height in pixels.
        crowd: (n,) bool, whether the object is a region of several objects that were not annotated separately.
        area: (n,) int64, area of each object in pixels.
        runs: (n,) each object's mask as compressed run lengths; empty if the mask is a file or missing.
        members: Where the bytes of the images are, if they are members of shards; None if they are files.
    """

    folder: Path
    root: Path
    classes: tuple[str, ...]
    mask_table: MaskTable
    digest: str
    problems: tuple[Problem, ...]
    files: Blobs
    mask_files: Blobs
    urls: Blobs
    size: NDArray[np.int32]
    ignored: NDArray[np.int64]
    first: NDArray[np.int64]
    image: NDArray[np.int32]
    label: NDArray[np.int16]
    box: NDArray[np.float32]
    crowd: NDArray[np.bool_]
    area: NDArray[np.int64]
    runs: Blobs
    members: Members | None = None

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
    def place(self) -> str:
        """Where the images are, for messages and records: a folder, or an address."""
        return str(self.root) if self.members is None else self.members.place.root

    @property
    def has_masks(self) -> bool:
        """Whether any image or object has a mask."""
        return len(self.mask_files.content) > 0 or len(self.runs.content) > 0


def write_catalog(draft: Draft | Content, folder: Path) -> None:
    """Write a catalog to a new folder."""
    content = draft.content() if isinstance(draft, Draft) else draft
    folder.mkdir(parents=True)
    digest = hashlib.sha256(json.dumps([content.classes, *_described(content.mask_table)]).encode())
    for name, array in sorted(content.arrays.items()):
        write_array(array, folder / f"{name}.npy")
        if not name.startswith(("urls", "ignored")):
            digest.update(array.tobytes())
    header = {
        "classes": content.classes,
        "mask_table": asdict(content.mask_table),
        "problems": content.problems,
        "root": content.root,
        "members": content.members,
        "digest": digest.hexdigest(),
    }
    (folder / "catalog.json").write_text(json.dumps(header))


def _described(table: MaskTable) -> list[object]:
    """Return what a digest has of a table. Tables that older versions had, too, keep their digest."""
    values: list[object] = [table.classes, table.ignored]
    further = [table.background, table.others, table.has_colors]
    return values if further == [0, None, False] else values + further


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

    members = header.get("members")
    return Catalog(
        folder=folder,
        root=Path(header["root"]),
        classes=tuple(header["classes"]),
        mask_table=MaskTable(**{**header["mask_table"], "classes": tuple(header["mask_table"]["classes"])}),
        digest=header["digest"],
        problems=tuple(Problem(where, what, tuple(values)) for where, what, values in header["problems"]),
        files=blobs("files"),
        mask_files=blobs("mask_files"),
        urls=blobs("urls"),
        size=array("size"),
        ignored=array("ignored"),
        first=array("first"),
        image=array("image"),
        label=array("label"),
        box=array("box"),
        crowd=array("crowd"),
        area=array("area"),
        runs=blobs("runs"),
        members=members and Members.from_header(members, {name: array(name) for name in Members.ARRAYS}),
    )
