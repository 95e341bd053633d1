"""The files that describe shards: `index.json`, and the arrays of each split. Nothing in them is trusted."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from cvexp.data.files.fetch import MAX_IMAGE_BYTES
from cvexp.data.files.rle import MAX_PIXELS
from cvexp.data.members import File
from cvexp.errors import UserError

FORMAT, VERSION = "cvexp shards", 1
LISTING = "index.json"
BLOCK = 512  # bytes; members of a tar file start at multiples of it
MAX_LISTING_BYTES = 2**26
MAX_FILE_BYTES = 2**40
NUM_DIGITS = 9  # of the number of a sample in the name of its members
MAX_SAMPLES = 10**NUM_DIGITS
MAX_CLASSES = 2**15 - 1
ARRAYS: Mapping[str, type[np.generic]] = {
    "shard": np.int32,  # position in the list of shards
    "offset": np.int64,  # of the first byte of the image, in the shard
    "length": np.int32,  # bytes of the image
    "width": np.int32,
    "height": np.int32,
    "label": np.int16,  # -1 if there is none
    "crc32": np.uint32,  # of the bytes of the image
}
SAMPLE_BYTES = sum(np.dtype(kind).itemsize for kind in ARRAYS.values())

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
REMEDY = "copy all files of the folder again, or write the shards again with task=prepare task.shards=FOLDER"


class Part(NamedTuple):
    """A split.

    Attributes:
        arrays: The file with the arrays of all its samples.
        shards: Its shards.
    """

    arrays: File
    shards: tuple[File, ...]


class Listing(NamedTuple):
    """The content of `index.json`.

    Attributes:
        dataset: The name of the source that the shards were made from.
        classes: The names of the classes; empty if there are no labels.
        splits: The splits, by name.
    """

    dataset: str
    classes: tuple[str, ...]
    splits: dict[str, Part]


def write_listing(listing: Listing, path: Path) -> None:
    """Write `index.json`."""
    splits = {
        split: {"arrays": _entry(part.arrays), "shards": [_entry(shard) for shard in part.shards]}
        for split, part in listing.splits.items()
    }
    content = {"format": FORMAT, "version": VERSION, "dataset": listing.dataset, "classes": listing.classes}
    path.write_text(json.dumps({**content, "splits": splits}, indent=1) + "\n")


def _entry(file: File) -> dict[str, Any]:
    return {"name": file.name, "bytes": file.num_bytes, "sha256": file.sha256, "samples": file.num_samples}


def read_listing(path: Path, where: str) -> Listing:
    """Read `index.json`.

    Args:
        path: The file.
        where: How messages name it.

    Raises:
        UserError: if it is not a valid index of shards.
    """
    try:
        if path.stat().st_size > MAX_LISTING_BYTES:
            raise ValueError(f"it has more than {MAX_LISTING_BYTES} bytes")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError(f"its `format` is not {FORMAT!r}")
        if content.get("version") != VERSION:
            raise UserError(f"{where}: its version is {content.get('version')!r}, not {VERSION}; update cvexp")
        return _listing(content)
    except FileNotFoundError as error:
        raise UserError(f"{where}: there is no such file; check dataset.root=, or write the shards first") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{where}: this is not a valid index of shards ({what}); {REMEDY}") from error


def _listing(content: Mapping[str, Any]) -> Listing:
    """Check the content of an index."""
    classes = content["classes"]
    if not isinstance(classes, list) or not all(isinstance(name, str) and name for name in classes):
        raise TypeError("`classes` is not a list of names")
    if len(set(classes)) < len(classes) or len(classes) > MAX_CLASSES:
        raise ValueError("`classes` has repetitions, or too many names")
    splits = {split: _part(content["splits"][split]) for split in ("train", "val")}
    if "test" in content["splits"]:
        splits["test"] = _part(content["splits"]["test"])
    names = [file.name for part in splits.values() for file in (part.arrays, *part.shards)]
    if len(set(names)) < len(names):
        raise ValueError("two files have the same name")
    return Listing(str(content["dataset"]), tuple(classes), splits)


def _part(entry: Mapping[str, Any]) -> Part:
    """Check the files of a split."""
    part = Part(_file(entry["arrays"], ".npz"), tuple(_file(shard, ".tar") for shard in entry["shards"]))
    if part.arrays.num_samples != sum(shard.num_samples for shard in part.shards):
        raise ValueError("the shards of a split do not have as many samples as the split")
    if part.arrays.num_bytes > SAMPLE_BYTES * part.arrays.num_samples + 2**16:
        raise ValueError(f"{part.arrays.name} is larger than the arrays of {part.arrays.num_samples} samples")
    return part


def _file(entry: Mapping[str, Any], suffix: str) -> File:
    """Check the entry of a file."""
    file = File(entry["name"], entry["bytes"], entry["sha256"], entry["samples"])
    if not isinstance(file.name, str) or not _NAME.fullmatch(file.name) or not file.name.endswith(suffix):
        raise ValueError(f"{str(file.name)[:100]!r} is not the name of a file that ends in {suffix}")
    if not isinstance(file.sha256, str) or not _SHA256.fullmatch(file.sha256):
        raise ValueError(f"the SHA-256 of {file.name} is not 64 hexadecimal digits")
    for key, value, largest in (("bytes", file.num_bytes, MAX_FILE_BYTES), ("samples", file.num_samples, MAX_SAMPLES)):
        if type(value) is not int or not 0 <= value <= largest:
            raise ValueError(f"`{key}` of {file.name} is not a whole number from 0 to {largest}")
    return file


def read_arrays(path: Path, where: str, part: Part, num_classes: int) -> dict[str, NDArray[Any]]:
    """Read the arrays of a split; see `ARRAYS`.

    Args:
        path: The file.
        where: How messages name it.
        part: The split.
        num_classes: Number of classes.

    Raises:
        UserError: if an array is missing or has an impossible value.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name: _array(archive, name, part.arrays.num_samples) for name in ARRAYS}
        _check_arrays(arrays, part, num_classes)
    except (ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(f"{where}: this does not describe its shards ({error}); {REMEDY}") from error
    return arrays


def _array(archive: zipfile.ZipFile, name: str, length: int) -> NDArray[Any]:
    """Read an array, of which neither type nor size are trusted, and without unpickling anything."""
    kind = np.dtype(ARRAYS[name])
    if archive.getinfo(f"{name}.npy").compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"`{name}` is compressed")
    with archive.open(f"{name}.npy") as file:
        if npy_format.read_magic(file) != (1, 0):
            raise ValueError(f"`{name}` is not in NumPy's format 1.0")
        shape, _, found = npy_format.read_array_header_1_0(file)
        if (shape, found) != ((length,), kind):
            raise ValueError(f"`{name}` has shape {shape} and type {found}, not {(length,)} and {kind}")
        return np.frombuffer(file.read(length * kind.itemsize), dtype=kind, count=length)


def _check_arrays(arrays: Mapping[str, NDArray[Any]], part: Part, num_classes: int) -> None:
    """Raise a ValueError if a value is impossible."""
    shard, offset, length = arrays["shard"], arrays["offset"], arrays["length"]
    pixels = arrays["width"].astype(np.int64) * arrays["height"]
    limits = {
        "shard": (shard, 0, len(part.shards) - 1),
        "offset": (offset, BLOCK, MAX_FILE_BYTES),
        "length": (length, 1, MAX_IMAGE_BYTES),
        "width": (arrays["width"], 1, MAX_PIXELS),
        "height": (arrays["height"], 1, MAX_PIXELS),
        "width * height": (pixels, 1, MAX_PIXELS),
        "label": (arrays["label"], -1, num_classes - 1),
    }
    for name, (values, least, most) in limits.items():
        if len(values) and not least <= values.min() <= values.max() <= most:
            raise ValueError(f"`{name}` is from {values.min()} to {values.max()}, not from {least} to {most}")
    counts = np.bincount(shard, minlength=len(part.shards))
    if counts.tolist() != [file.num_samples for file in part.shards]:
        raise ValueError("the shards have other numbers of samples")
    sizes = np.array([file.num_bytes for file in part.shards], dtype=np.int64)
    if len(offset) and ((offset % BLOCK != 0).any() or (offset + length > sizes[shard]).any()):
        raise ValueError("a sample is not within its shard")
