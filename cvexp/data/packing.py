"""Writing the crops of a data set into shards; see `cvexp.data.shards`."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from cvexp import progress
from cvexp.data.crops import Crops
from cvexp.data.files.images import FORMATS
from cvexp.data.index import Index, Splits
from cvexp.data.members import File
from cvexp.data.shards.format import ARRAYS, BLOCK, LISTING, NUM_DIGITS, Listing, Part, write_listing
from cvexp.errors import UserError

SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # of the files that are kept as they are
END = bytes(2 * BLOCK)  # of a tar file


class Settings(NamedTuple):
    """How shards are written.

    Attributes:
        shard_bytes: Approximate size of a shard.
        quality: Quality of JPEG files; None for PNG files.
    """

    shard_bytes: int
    quality: int | None


class Sample(NamedTuple):
    """An encoded crop: its file, the suffix of the file's name, and its width and height in pixels."""

    content: bytes
    suffix: str
    size: tuple[int, int]


def check_new(folder: Path) -> None:
    """Raise a UserError if the folder for the shards exists."""
    if folder.exists():
        raise UserError(f"task.shards: {folder} exists; delete it, or choose another folder with task.shards=FOLDER")


def write_shards(splits: Splits, name: str, folder: Path, settings: Settings) -> Listing:
    """Write the crops of all splits into shards in a new folder, which gets its name when it is complete.

    The training samples are spread over the shards at random, because folders are often sorted by class. The same data
    and settings give the same bytes.

    Args:
        splits: The data.
        name: The name of the data source.
        folder: The folder.
        settings: How the shards are written.

    Raises:
        UserError: if the folder exists, or an image can't be read.
    """
    check_new(folder)
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    parts = {index.split: _write_split(index, unfinished, settings) for index in splits}
    listing = Listing(name, splits.train.classes or splits.val.classes, parts)
    write_listing(listing, unfinished / LISTING)
    unfinished.rename(folder)
    return listing


def _write_split(index: Index, folder: Path, settings: Settings) -> Part:
    """Write the shards of a split, and the file with its arrays."""
    num_samples = len(index)
    order = np.random.RandomState(0).permutation(num_samples) if index.split == "train" else np.arange(num_samples)
    crops = Crops(index)
    arrays = {name: np.zeros(num_samples, dtype=kind) for name, kind in ARRAYS.items()}
    arrays["label"][:] = index.label
    shards: list[File] = []
    writer: ShardWriter | None = None
    samples = _encode_all(lambda position: encode(crops, position, settings.quality), order, f"writing {index.split}")
    for position, sample in zip(order.tolist(), samples, strict=True):
        if writer is not None and writer.num_bytes + len(sample.content) > settings.shard_bytes:
            shards.append(writer.close())
            writer = None
        writer = writer or ShardWriter(folder / f"{index.split}-{len(shards):05}.tar")
        offset = writer.add(position, sample, int(index.label[position]))
        values = (len(shards), offset, len(sample.content), *sample.size)
        for name, value in zip(("shard", "offset", "length", "width", "height"), values, strict=True):
            arrays[name][position] = value
        arrays["crc32"][position] = zlib.crc32(sample.content)
    if writer is not None:
        shards.append(writer.close())
    path = folder / f"{index.split}.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return Part(File(path.name, path.stat().st_size, sha256, num_samples), tuple(shards))


def _encode_all(encode_one: Callable[[int], Sample], order: NDArray[Any], title: str) -> Iterator[Sample]:
    """Encode crops in parallel, in order, and only a few ahead, so that they do not accumulate."""
    num_ahead = 4 * (os.cpu_count() or 1)
    waiting: deque[Future[Sample]] = deque()
    with ThreadPoolExecutor(os.cpu_count()) as executor:  # Pillow releases the GIL
        for position in progress.track(order.tolist(), title):
            waiting.append(executor.submit(encode_one, position))
            if len(waiting) == num_ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def encode(crops: Crops, position: int, quality: int | None) -> Sample:
    """Encode a crop. A crop that is a whole image keeps the bytes of its file, if this is possible.

    Raises:
        UserError: if the image can't be read.
    """
    index = crops.index
    image = int(index.image[position])
    height, width = crops.sizes[position].tolist()
    if (width, height) == index.size(image):
        content = index.read_bytes(image)
        if suffix := _suffix(content, (width, height)):
            return Sample(content, suffix, (width, height))
    encoded = io.BytesIO()
    picture = crops.picture(position)
    if quality is None:
        picture.save(encoded, "PNG")
    else:
        picture.save(encoded, "JPEG", quality=quality)
    return Sample(encoded.getvalue(), "png" if quality is None else "jpg", (width, height))


def _suffix(content: bytes, size: tuple[int, int]) -> str | None:
    """Return the suffix of an image file that any reader decodes to the same pixels, and None for other files.

    Such a file has 8 bits per channel, no transparency, and is not rotated by its EXIF data.
    """
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        is_upright = image.getexif().get(ExifTags.Base.Orientation, 1) not in range(2, 9) and image.size == size
        is_plain = image.mode in ("RGB", "L") and not image.has_transparency_data
        has_8_bits = image.format != "PNG" or content[24] == 8  # the byte in the header that says so
        is_kept = is_upright and is_plain and has_8_bits
        return SUFFIXES.get(str(image.format)) if is_kept else None


class ShardWriter:
    """Writes a shard as an uncompressed tar file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("wb")
        self.sha256 = hashlib.sha256()
        self.num_bytes = 0
        self.num_samples = 0

    def add(self, position: int, sample: Sample, label: int) -> int:
        """Add a sample.

        Args:
            position: The position of the sample in its split.
            sample: The sample.
            label: The number of its class; -1 if there is none.

        Returns:
            Where in the shard the bytes of the image start.
        """
        key = f"{position:0{NUM_DIGITS}}"
        offset = self._add_member(f"{key}.{sample.suffix}", sample.content)
        if label >= 0:
            self._add_member(f"{key}.cls", str(label).encode())
        self.num_samples += 1
        return offset

    def close(self) -> File:
        """Complete the shard, and return its description."""
        self._write(END)
        self.file.close()
        return File(self.path.name, self.num_bytes, self.sha256.hexdigest(), self.num_samples)

    def _add_member(self, name: str, content: bytes) -> int:
        member = tarfile.TarInfo(name)  # its time, user and group are 0
        member.size = len(content)
        self._write(member.tobuf(tarfile.USTAR_FORMAT))
        offset = self.num_bytes
        self._write(content + bytes(-len(content) % BLOCK))
        return offset

    def _write(self, data: bytes) -> None:
        self.file.write(data)
        self.sha256.update(data)
        self.num_bytes += len(data)


def describe(listing: Listing) -> Sequence[str]:
    """Return a line about each split."""
    return [
        f"{split}: {part.arrays.num_samples} crops in {len(part.shards)} shards, "
        f"{sum(shard.num_bytes for shard in part.shards) / 1e6:,.1f} MB"
        for split, part in listing.splits.items()
    ]
