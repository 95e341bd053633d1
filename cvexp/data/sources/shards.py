"""Crops that `task=prepare task.shards=FOLDER` has written into tar files, in a folder, behind HTTP, or in S3."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import MISSING

from cvexp.config import DatasetConfig
from cvexp.data.catalog import Content
from cvexp.data.files.fetch import lock_folder
from cvexp.data.mask_table import MaskTable
from cvexp.data.members import File, Members, Place
from cvexp.data.prepare import Recipe, Recipes, Use
from cvexp.data.shards.copies import check_file, check_size, fetch_address, fetch_file
from cvexp.data.shards.format import (
    LISTING,
    MAX_LISTING_BYTES,
    NUM_DIGITS,
    REMEDY,
    Listing,
    Part,
    read_arrays,
    read_listing,
)
from cvexp.errors import UserError, opening
from cvexp.keys import number, require
from cvexp.redaction import HIDDEN, hide_secrets


@dataclass(kw_only=True)
class Config(DatasetConfig):
    local: str = MISSING
    local_gb: float = number(above=0, unit="GB")
    shuffle_shards: int = number(1)

    def __post_init__(self) -> None:
        super().__post_init__()
        needed = "null, because the shards of each split are written before; give it to task=prepare task.shards=FOLDER"
        require(self.test_fraction is None, "dataset.test_fraction", self.test_fraction, needed)
        if "://" in self.root:
            hidden = re.sub(r"[?#].*", f"?{HIDDEN}", hide_secrets(self.root))
            is_known = re.fullmatch(r"(https?://[^/?#\s]+[^?#\s]*|s3://[^/?#\s]+[^?#\s]*)", self.root) is not None
            is_known = is_known and HIDDEN not in hidden
            require(
                is_known,
                "dataset.root",
                hidden,
                "a folder, or an address http://HOST/PATH, https://HOST/PATH or s3://BUCKET/PREFIX without a password; "
                "put that into ~/.netrc, or into AWS_SECRET_ACCESS_KEY for S3",
            )


def uses(config: Config) -> tuple[Use, ...]:
    """Return what the data can be used for."""
    return ("pretraining",)


def recipes(config: Config, use: Use) -> Recipes:
    """Return the recipes of the splits. Fetch the index of remote shards first.

    Raises:
        UserError: if the index is missing or invalid, or a local shard is missing or has another size.
    """
    root = config.root if "://" in config.root else str(Path(config.root).absolute())
    place = Place(root, str(Path(config.local).absolute()), int(config.local_gb * 1e9))
    path = _fetch_listing(place) if place.is_remote else Path(root) / LISTING
    listing = read_listing(path, place.address(LISTING))
    if place.is_remote:
        _check_space(listing, place, config)
    else:
        for part in listing.splits.values():
            for file in (part.arrays, *part.shards):
                address = place.address(file.name)
                check_size(Path(address), file, address, REMEDY)
    return Recipes(**{split: _recipe(config, listing, split, place, path) for split in listing.splits})


def _fetch_listing(place: Place) -> Path:
    """Fetch the index of remote shards, and return the path of the copy, which is written only if it changes."""
    local = Path(place.local)
    path = local / (re.sub(r"[^A-Za-z0-9]+", "-", place.root)[-150:] + f"-{LISTING}")
    with opening("dataset.local"), lock_folder(local):
        fetched = path.with_suffix(".fetched")
        fetched.unlink(missing_ok=True)
        fetch_address(place.address(LISTING), fetched, MAX_LISTING_BYTES)
        if path.exists() and path.read_bytes() == fetched.read_bytes():
            fetched.unlink()
        else:
            fetched.replace(path)
    return path


def _check_space(listing: Listing, place: Place, config: Config) -> None:
    """Raise a UserError if the local copies may not take enough space for the shards that are needed at once."""
    shards = [shard for part in listing.splits.values() for shard in part.shards]
    largest = max((shard.num_bytes for shard in shards), default=0)
    num_needed = min(2 * config.shuffle_shards, len(shards))  # some workers are ahead, in the next window
    if place.max_bytes < num_needed * largest:
        raise UserError(
            f"dataset.local_gb: got {config.local_gb:g}, but {num_needed} shards of {largest / 1e9:.3g} GB are needed "
            f"at once; give at least {num_needed * largest / 1e9:.3g}, or lower dataset.shuffle_shards="
        )


def _recipe(config: Config, listing: Listing, split: str, place: Place, path: Path) -> Recipe:
    """Return the recipe of a split.

    Args:
        config: Specifies how many shards are shuffled together.
        listing: The index of the shards.
        split: The name of the split.
        place: Where the shards are.
        path: The file that contains the index.
    """
    arrays = listing.splits[split].arrays
    inputs = [path] if place.is_remote else [path, Path(place.address(arrays.name))]
    draft = partial(_read, listing, split, place, config.shuffle_shards)
    return Recipe([*place, config.shuffle_shards], inputs, draft)


def _read(listing: Listing, split: str, place: Place, shuffle_shards: int) -> Content:
    """Read the arrays of a split, without making an object for each sample."""
    part = listing.splits[split]
    address = place.address(part.arrays.name)
    if place.is_remote:
        path = Path(place.local) / f"{part.arrays.sha256}.npz"
        with lock_folder(path.parent):
            fetch_file(part.arrays, place, path)
            arrays = read_arrays(path, address, part, len(listing.classes))
            path.unlink()
    else:
        check_file(Path(address), part.arrays, address, REMEDY)
        arrays = read_arrays(Path(address), address, part, len(listing.classes))
    return _content(arrays, part, listing.classes, place, shuffle_shards)


def _content(
    arrays: dict[str, NDArray[Any]], part: Part, classes: tuple[str, ...], place: Place, shuffle_shards: int
) -> Content:
    """Return the content of a catalog in which each image is one object."""
    width, height = arrays["width"], arrays["height"]
    num_samples = len(width)
    box = np.zeros((num_samples, 4), dtype=np.float32)
    box[:, 2], box[:, 3] = width, height
    columns: dict[str, NDArray[Any]] = {
        "size": np.stack([width, height], 1),
        "ignored": np.zeros(num_samples, dtype=np.int64),
        "first": np.arange(num_samples + 1, dtype=np.int64),
        "image": np.arange(num_samples, dtype=np.int32),
        "label": arrays["label"],
        "box": box,
        "crowd": np.zeros(num_samples, dtype=np.bool_),
        "area": width.astype(np.int64) * height,
        **{name: arrays[name] for name in Members.ARRAYS},
    }
    for name in ("mask_files", "urls", "runs"):
        columns[f"{name}.offsets"] = np.zeros(num_samples + 1, dtype=np.int64)
        columns[f"{name}.content"] = np.zeros(0, dtype=np.uint8)
    columns["files.offsets"], columns["files.content"] = _names(arrays["shard"], part.shards)
    members = {"place": place, "shards": part.shards, "shuffle_shards": shuffle_shards}
    root = place.local if place.is_remote else place.root
    return Content(root, list(classes), MaskTable(), [], columns, members)


def _names(shard: NDArray[np.int32], shards: tuple[File, ...]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Return the names of all samples as offsets and content of `Blobs`, such as `train-00000.tar/000000012`."""
    prefixes = np.array([os.fsencode(f"{file.name}/") for file in shards] or [b""])
    powers = 10 ** np.arange(NUM_DIGITS)[::-1]
    digits = (np.arange(len(shard))[:, None] // powers % 10 + ord("0")).astype(np.uint8)
    lengths = np.char.str_len(prefixes)[shard] + digits.shape[1]
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    width = prefixes.dtype.itemsize
    padded = np.concatenate([prefixes.view(np.uint8).reshape(len(prefixes), width)[shard], digits], 1)
    return offsets, padded[padded != 0]
