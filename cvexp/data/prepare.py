"""From a source to an index: the catalog is made once, every image is decoded once, and both are remembered.

Both hold until a file changes: its name, size or time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from cvexp.config import DatasetConfig
from cvexp.data.catalog import Catalog, Draft, Problem, grouped, open_catalog, write_catalog
from cvexp.data.files import fetch
from cvexp.data.files.images import decode, explain
from cvexp.data.files.progress import in_parallel
from cvexp.data.index import Index, Splits, select
from cvexp.errors import UserError, nearest

Use = Literal["pretraining", "segmentation"]

UNREADABLE = "it can't be read; check its permissions"

VERSION = 2  # of what a catalog holds; another one makes all catalogs anew


class Recipe(NamedTuple):
    """How a source makes the catalog of a split.

    Attributes:
        settings: All that the catalog depends on but the files; JSON.
        inputs: The files that it is made of.
        read: Makes it.
        fetches: Whether images that are missing are fetched by their address.
    """

    settings: Sequence[object]
    inputs: Sequence[Path]
    read: Callable[[], Draft]
    fetches: bool = False


def make_splits(config: DatasetConfig, train: Recipe | None, val: Recipe) -> Splits:
    """The index of both splits, with all images there and checked.

    Args:
        config: What is chosen. Without `classes` these are the training split's, in its order.
        train: The recipe of the training split; None leaves it empty.
        val: The recipe of the validation split.

    Raises:
        UserError: where something is missing or broken, or an image is in both splits.
    """
    train = train or _nothing(config, val)
    catalogs = [make_catalog(config, split, recipe) for split, recipe in (("train", train), ("val", val))]
    if config.classes is None and catalogs[0].classes:  # so that both splits number them alike
        config = replace(config, classes=list(catalogs[0].classes))
    _check_classes(config, *catalogs)
    _check_disjoint(*catalogs)
    if config.strict:  # before anything is fetched
        _stop_at([problem for catalog in catalogs for problem in catalog.problems])
    pairs = zip(catalogs, ("train", "val"), (train, val), strict=True)
    splits = Splits(*(_checked(config, catalog, split, recipe.fetches) for catalog, split, recipe in pairs))
    if config.strict:
        _stop_at([problem for index in splits for problem in index.problems])
    return splits


def _nothing(config: DatasetConfig, val: Recipe) -> Recipe:
    """The recipe of an empty training split with the classes of the validation split."""
    catalog = make_catalog(config, "val", val)
    draft = Draft(catalog.root, catalog.classes, catalog.mask_values, catalog.ignore_value)
    return Recipe([*val.settings, "nothing"], val.inputs, lambda: draft)


def _stop_at(problems: Sequence[Problem]) -> None:
    if problems:
        first, *more = grouped(problems)
        others = f" (and {len(more)} more, which task=prepare lists)" if more else ""
        raise UserError(f"{first}{others}; or leave out what is broken with dataset.strict=false")


def make_catalog(config: DatasetConfig, split: str, recipe: Recipe) -> Catalog:
    """The catalog of a split, made unless it is there."""
    cache = Path(config.cache)
    identity = _digest([VERSION, config.name, split, recipe.settings])[:8]
    name = f"{config.name}-{split}-{identity}"
    folder = cache / f"{name}-{_digest(_states(recipe.inputs))[:16]}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{name}.lock"):  # of two processes that start at once, one makes it
        if not folder.exists():
            unfinished = cache / f"{name}.unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            write_catalog(recipe.read(), unfinished)
            outdated = list(cache.glob(f"{name}-*"))
            unfinished.rename(folder)
            for other in outdated:
                shutil.rmtree(other, ignore_errors=True)
    return open_catalog(folder)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _states(paths: Sequence[Path | str]) -> list[tuple[str, int, int]]:
    """Name, size and time of files; size and time are -1 for one that is missing."""
    states = []
    for path in map(str, paths):
        try:
            state = os.stat(path)  # noqa: PTH116, a Path for each of 100 000 images takes longer than asking for it
            states.append((path, state.st_size, state.st_mtime_ns))
        except OSError:
            states.append((path, -1, -1))
    return states


def _check_classes(config: DatasetConfig, train: Catalog, val: Catalog) -> None:
    known = {*train.classes, *val.classes}
    for name in config.classes or ():
        if known and name not in known:
            raise UserError(f"dataset.classes: {val.root} has no class {name!r}; {nearest(name, known)}")


def _check_disjoint(train: Catalog, val: Catalog) -> None:
    if shared := set(train.paths()) & set(val.paths()):
        raise UserError(
            f"dataset: {len(shared)} images are in the training and in the validation split, among them {min(shared)}; "
            "validation images must never enter training: take them out of one of the two"
        )


def _checked(config: DatasetConfig, catalog: Catalog, split: str, fetches: bool) -> Index:
    """The index of a split after its images were fetched, where that is asked for, and decoded."""
    broken: dict[int, Problem] = {}
    is_broken = np.zeros(len(catalog.files), dtype=np.bool_)
    while True:  # what is left out may make room for others, within dataset.limit
        index = select(catalog, split, config, is_broken)
        found = _fetch_images(catalog, index.images) if fetches else {}
        with FileLock(catalog.folder.with_suffix(".lock")):
            checks = Checks(catalog)
            found = checks.update(index.images) | found
        broken |= found
        if config.strict or not found:
            return replace(
                index,
                checksums=checks.checksum[index.images],
                problems=(*catalog.problems, *(broken[image] for image in sorted(broken))),
            )
        is_broken[list(found)] = True


def _fetch_images(catalog: Catalog, images: NDArray[np.int32]) -> dict[int, Problem]:
    """Fetch the images that are not there; what is wrong with those that can't be had."""
    paths = zip(images.tolist(), catalog.paths(images), strict=True)
    missing = [image for image, path in paths if not os.path.exists(path)]  # noqa: PTH110
    if not missing:
        return {}
    with fetch.alone(catalog.root):
        remotes = [
            fetch.Remote(
                catalog.urls[i].decode(), catalog.root / catalog.file(i), most=fetch.LARGEST_IMAGE, verify=_is_image
            )
            for i in missing
        ]
        problems = fetch.fetch_all(remotes, f"fetching {len(missing)} images")
    return {missing[i]: Problem(str(catalog.root / catalog.file(missing[i])), text) for i, text in problems.items()}


def _is_image(path: Path) -> bool:
    try:
        decode(path.read_bytes())
    except Exception:  # what a broken file makes Pillow raise is not limited
        return False
    return True


class Checks:
    """What is known of a catalog's images: each is decoded once, and again only when its file changes.

    Attributes:
        checksum: (m,) uint32, CRC-32 of each image file; 0 of one that was not looked at.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.path = catalog.folder / "checks.npz"
        if self.path.exists():
            with np.load(self.path) as saved:
                self.state, self.checksum = saved["state"], saved["checksum"]
                self.problems: dict[int, str] = {int(i): text for i, text in json.loads(str(saved["problems"])).items()}
        else:
            self.state = np.full((len(catalog.files), 2), -2, dtype=np.int64)  # -1 is a missing file
            self.checksum = np.zeros(len(catalog.files), dtype=np.uint32)
            self.problems = {}

    def update(self, images: NDArray[np.int32]) -> dict[int, Problem]:
        """Check those of the given images that are new or changed; what is wrong with any of them."""
        names = self.catalog.paths(images)
        states = np.array([state[1:] for state in _states(names)], dtype=np.int64).reshape(-1, 2)
        todo = np.flatnonzero((self.state[images] != states).any(axis=1))
        if len(todo):
            self._check(todo, images, names, states)
        named = zip(images.tolist(), names, strict=True)
        return {image: Problem(name, self.problems[image]) for image, name in named if image in self.problems}

    def _check(self, todo: NDArray[np.intp], images: NDArray[np.int32], names: list[str], states: Any) -> None:
        sizes = self.catalog.size[images]
        work = ThreadPoolExecutor(os.cpu_count())  # Pillow decodes without Python's lock
        results = in_parallel(
            work, lambda i: check(names[i], tuple(sizes[i].tolist())), todo.tolist(), "checking images"
        )
        try:
            for position, (checksum, problem) in zip(todo.tolist(), results, strict=True):
                image = int(images[position])
                self.checksum[image] = checksum
                self.state[image] = -2 if problem == UNREADABLE else states[position]  # its permissions may change
                self.problems.pop(image, None)
                if problem is not None:
                    self.problems[image] = problem
        finally:  # what an interruption leaves need not be done again
            unfinished = self.path.with_suffix(".unfinished.npz")
            problems = np.array(json.dumps(self.problems))
            np.savez(unfinished, state=self.state, checksum=self.checksum, problems=problems)
            unfinished.replace(self.path)


def check(path: str, size: tuple[int, int]) -> tuple[int, str | None]:
    """The checksum of an image file, and what is wrong with it, with the remedy.

    Args:
        path: The file.
        size: Width and height that its annotations are for.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return 0, "there is no such file; check dataset.root=, fetch it, or take it out"
    except OSError:
        return 0, UNREADABLE
    checksum = zlib.crc32(data)
    try:
        found = decode(data, size).size
    except Exception as error:  # what a broken file makes Pillow raise is not limited
        return checksum, explain(error)
    if found != size:
        return checksum, (
            f"the image has {found[0]} x {found[1]} px, but its annotations are for {size[0]} x {size[1]}; correct "
            "them, or fetch the right image"
        )
    return checksum, None
