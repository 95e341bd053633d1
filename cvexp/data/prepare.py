"""From a source to an index: the catalog is made once, every image is decoded once, and both results are cached.

A cached result is valid until the name, size or modification time of a file changes.
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
from typing import Literal, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from cvexp import progress
from cvexp.config import DatasetConfig
from cvexp.data.catalog import Catalog, Content, Draft, open_catalog, write_catalog
from cvexp.data.disjoint import check_paths, without_copies
from cvexp.data.files import fetch
from cvexp.data.files.images import decode, explain
from cvexp.data.files.parallel import in_parallel
from cvexp.data.index import Index, Splits, select
from cvexp.data.problems import Problem, grouped
from cvexp.errors import UserError, nearest, opening

Use = Literal["pretraining", "segmentation"]

UNREADABLE = "it can't be read; check its permissions"

VERSION = 3  # of the catalog format; increasing it rebuilds all catalogs


class Recipe(NamedTuple):
    """How a source makes the catalog of a split.

    Attributes:
        settings: Everything except files that the catalog depends on. The value must be valid JSON.
        inputs: The files that the catalog depends on.
        make_draft: Makes the content of the catalog.
        fetches: Whether missing images are fetched from their URLs.
        pool: What the images were drawn from, the same object for all splits of a draw; None if nothing was drawn.
    """

    settings: Sequence[object]
    inputs: Sequence[Path]
    make_draft: Callable[[], Draft | Content]
    fetches: bool = False
    pool: object = None


class Recipes(NamedTuple):
    """The recipes of the splits. None stands for a split without data of its own; see `cvexp.data.split`."""

    train: Recipe | None
    val: Recipe | None
    test: Recipe | None = None


def make_splits(config: DatasetConfig, recipes: Recipes) -> Splits:
    """Fetch and check the selected images of all splits, and return the indexes of the splits.

    Args:
        config: What to select. If `classes` is None, the classes are those of the training split, in the same order.
        recipes: The recipes. `val` must not be None. If `train` is None, the training split is empty. If `test` is
            None, there is no test split.

    Raises:
        UserError: if something is missing or broken, or an image is in two splits.
    """
    train, val, test = recipes
    assert val is not None
    recipe_of = {"train": train or _empty_recipe(config, val), "val": val} | ({} if test is None else {"test": test})
    catalogs = {split: make_catalog(config, split, recipe) for split, recipe in recipe_of.items()}
    if config.classes is None and (classes := catalogs["train"].classes):  # a class has the same label in all splits
        config = replace(config, classes=list(classes))
    _check_classes(config, list(catalogs.values()))
    check_paths(catalogs)
    if config.strict:  # before images are fetched
        _refuse([problem for catalog in catalogs.values() for problem in catalog.problems])
    splits = Splits(
        **{split: _checked_index(config, catalogs[split], split, recipe_of[split].fetches) for split in recipe_of}
    )
    if config.strict:
        _refuse([problem for index in splits for problem in index.problems])
    return without_copies(splits, config.strict, {split: recipe.pool for split, recipe in recipe_of.items()})


def _empty_recipe(config: DatasetConfig, val: Recipe) -> Recipe:
    """Return the recipe of an empty training split with the classes of the validation split."""
    catalog = make_catalog(config, "val", val)
    draft = Draft(catalog.root, catalog.classes, catalog.mask_table)
    return Recipe([*val.settings, "nothing"], val.inputs, lambda: draft)


def _refuse(problems: Sequence[Problem]) -> None:
    """Raise a UserError if there are problems."""
    if problems:
        first, *more = grouped(problems)
        others = f" (and {len(more)} more, which task=prepare lists)" if more else ""
        raise UserError(f"{first}{others}; or set dataset.strict=false to leave out everything that is broken")


def make_catalog(config: DatasetConfig, split: str, recipe: Recipe) -> Catalog:
    """Return the catalog of a split from the cache, making the catalog first if necessary.

    Raises:
        UserError: if the data or the cache can't be used.
    """
    cache = Path(config.cache)
    identity = _digest([VERSION, config.name, split, recipe.settings])[:8]
    name = f"{config.name}-{split}-{identity}"
    folder = cache / f"{name}-{_digest(_states(recipe.inputs))[:16]}"
    with opening("dataset.cache"):
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{name}.lock"):  # if two processes start at the same time, one makes the catalog
            if not folder.exists():
                with opening("dataset.root"), progress.step(f"reading the {split} split of dataset={config.name}"):
                    draft = recipe.make_draft()
                unfinished = cache / f"{name}.unfinished"
                shutil.rmtree(unfinished, ignore_errors=True)
                write_catalog(draft, unfinished)
                outdated = list(cache.glob(f"{name}-*"))
                unfinished.rename(folder)
                for other in outdated:
                    shutil.rmtree(other, ignore_errors=True)
        return open_catalog(folder)


def _digest(value: object) -> str:
    """Return the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _states(paths: Sequence[Path | str]) -> list[tuple[str, int, int]]:
    """Return the name, size and modification time of each file; for a missing file, size and time are -1."""
    states = []
    for path in map(str, paths):
        try:
            state = os.stat(path)  # noqa: PTH116, creating a Path for each of 100 000 images takes longer than this
            states.append((path, state.st_size, state.st_mtime_ns))
        except OSError:
            states.append((path, -1, -1))
    return states


def _check_classes(config: DatasetConfig, catalogs: Sequence[Catalog]) -> None:
    """Raise a UserError if a selected class is in no split."""
    known = {name for catalog in catalogs for name in catalog.classes}
    for name in config.classes or ():
        if known and name not in known:
            raise UserError(f"dataset.classes: {catalogs[0].place} has no class {name!r}; {nearest(name, known)}")


def _checked_index(config: DatasetConfig, catalog: Catalog, split: str, fetches: bool) -> Index:
    """Return the index of a split after checking its images. If `fetches` is set, fetch missing images first."""
    if (members := catalog.members) is not None:  # each read verifies its image, so none is decoded now
        index = select(catalog, split, config)
        return replace(index, checksums=members.crc32[index.images])
    problem_of: dict[int, Problem] = {}
    is_broken = np.zeros(len(catalog.files), dtype=np.bool_)
    while True:  # with dataset.limit, other images replace the broken ones
        index = select(catalog, split, config, is_broken)
        new_problems = _fetch_images(catalog, index.images) if fetches else {}
        with opening("dataset.cache"), FileLock(catalog.folder.with_suffix(".lock")):
            checks = Checks(catalog)
            new_problems = checks.update(index.images) | new_problems
        problem_of |= new_problems
        if config.strict or not new_problems:
            return replace(
                index,
                checksums=checks.checksum[index.images],
                problems=(*catalog.problems, *(problem_of[image] for image in sorted(problem_of))),
            )
        is_broken[list(new_problems)] = True


def _fetch_images(catalog: Catalog, images: NDArray[np.int32]) -> dict[int, Problem]:
    """Fetch those of the given images that are missing, and return the problems with unavailable ones."""
    paths = zip(images.tolist(), catalog.paths(images), strict=True)
    missing = [image for image, path in paths if not os.path.exists(path)]  # noqa: PTH110
    if not missing:
        return {}
    files = [catalog.root / catalog.file(image) for image in missing]
    with fetch.lock_folder(catalog.root):
        remotes = [
            fetch.Remote(catalog.urls[image].decode(), file, max_bytes=fetch.MAX_IMAGE_BYTES, verify=_is_image)
            for image, file in zip(missing, files, strict=True)
        ]
        refused = fetch.fetch_all(remotes, f"fetching {len(missing)} images")
    return {missing[i]: Problem(str(files[i]), message) for i, message in refused.items()}


def _is_image(path: Path) -> bool:
    """Return whether a file can be decoded as an image."""
    try:
        decode(path.read_bytes())
    except Exception:  # Pillow may raise anything for a broken file
        return False
    return True


class Checks:
    """The cached checks of a catalog's images: each image is decoded once, and again only if its file changes.

    Attributes:
        checksum: (m,) uint32, CRC-32 of each image file; 0 if not checked.
        state: (m, 2) int64, size and modification time of each file when it was checked; -1 if the file was missing,
            and -2 if it must be checked.
        problems: What is wrong with each broken image, by its position.
    """

    def __init__(self, catalog: Catalog) -> None:
        """Load the checks from the cache.

        Args:
            catalog: The images.
        """
        self.catalog = catalog
        self.path = catalog.folder / "checks.npz"
        if self.path.exists():
            with np.load(self.path) as saved:
                self.state, self.checksum = saved["state"], saved["checksum"]
                self.problems: dict[int, str] = {int(i): text for i, text in json.loads(str(saved["problems"])).items()}
        else:
            self.state = np.full((len(catalog.files), 2), -2, dtype=np.int64)
            self.checksum = np.zeros(len(catalog.files), dtype=np.uint32)
            self.problems = {}

    def update(self, images: NDArray[np.int32]) -> dict[int, Problem]:
        """Check those of the given images that are new or have changed.

        Returns:
            The problems with the given images, by position in the catalog.
        """
        paths = self.catalog.paths(images)
        states = np.array([state[1:] for state in _states(paths)], dtype=np.int64).reshape(-1, 2)
        changed = np.flatnonzero((self.state[images] != states).any(axis=1))
        if len(changed):
            self._check(images[changed], [paths[i] for i in changed], states[changed])
        pairs = zip(images.tolist(), paths, strict=True)
        return {image: Problem(path, self.problems[image]) for image, path in pairs if image in self.problems}

    def _check(self, images: NDArray[np.int32], paths: Sequence[str], states: NDArray[np.int64]) -> None:
        """Check images, and save the results even if the check is interrupted."""
        sizes = self.catalog.size[images].tolist()
        executor = ThreadPoolExecutor(os.cpu_count())  # Pillow releases the GIL while it decodes
        results = in_parallel(
            executor, lambda i: check(paths[i], (sizes[i][0], sizes[i][1])), range(len(images)), "checking images"
        )
        try:
            for image, state, (checksum, problem) in zip(images.tolist(), states, results, strict=True):
                self.checksum[image] = checksum
                self.state[image] = -2 if problem == UNREADABLE else state  # permissions may change without a trace
                self.problems.pop(image, None)
                if problem is not None:
                    self.problems[image] = problem
        finally:
            unfinished = self.path.with_suffix(".unfinished.npz")
            problems = np.array(json.dumps(self.problems))
            np.savez(unfinished, state=self.state, checksum=self.checksum, problems=problems)
            unfinished.replace(self.path)


def check(path: str, size: tuple[int, int]) -> tuple[int, str | None]:
    """Check that an image file can be decoded and has the expected size.

    Args:
        path: The file.
        size: Width and height that the annotations of the image assume.

    Returns:
        The checksum of the file, and a message with the problem and the remedy; None if there is no problem.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return 0, "there is no such file; check dataset.root=, fetch the file, or remove it from the data set"
    except OSError:
        return 0, UNREADABLE
    checksum = zlib.crc32(data)
    try:
        width, height = decode(data, size).size
    except Exception as error:  # Pillow may raise anything for a broken file
        return checksum, explain(error)
    if (width, height) != size:
        return checksum, (
            f"the image has {width} x {height} px, but its annotations are for {size[0]} x {size[1]}; correct the "
            "annotations, or fetch the right image"
        )
    return checksum, None
