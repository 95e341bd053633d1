"""Reading the images of shards, which are read in place in a folder, or copied first from elsewhere."""

from __future__ import annotations

import contextlib
import os
import zlib
from pathlib import Path

from PIL import Image

from cvexp.data.files.images import decode_checked, explain
from cvexp.data.members import Members
from cvexp.data.shards.copies import copy_shard, path_of_copy
from cvexp.errors import UserError, opening


def read_bytes(members: Members, image: int) -> bytes:
    """Read the file of an image.

    Args:
        members: The images.
        image: The position of the image.

    Raises:
        UserError: if the shard is missing, cut off or changed.
    """
    shard, place = members.shards[int(members.shard[image])], members.place
    offset, length = int(members.offset[image]), int(members.length[image])
    path = path_of_copy(shard, place) if place.is_remote else Path(place.address(shard.name))
    with opening("dataset.local" if place.is_remote else "dataset.root"):
        data = _read(path, offset, length, place.is_remote)
        while data is None and place.is_remote:  # again if another process needs the space at once
            copy_shard(shard, place)
            data = _read(path, offset, length, is_copy=True)
    remedy = f"delete {path} to fetch it again" if place.is_remote else "restore it, or write the shards again"
    where = f"{place.address(shard.name)}: sample {image:09}"
    if data is None:
        raise UserError(f"{where}: there is no such shard, but one of {shard.num_bytes} bytes is expected; {remedy}")
    if len(data) < length:
        raise UserError(
            f"{where}: the shard ends at byte {offset + len(data)}, but {shard.num_bytes} bytes are expected; {remedy}"
        )
    if (crc32 := zlib.crc32(data)) != (expected := int(members.crc32[image])):
        raise UserError(f"{where}: its CRC-32 is {crc32:08x}, but {expected:08x} is expected; {remedy}")
    return data


def _read(path: Path, offset: int, length: int, is_copy: bool) -> bytes | None:
    """Read bytes of a file, and mark it as just used if it is a copy; return None if there is no such file."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        if is_copy:
            with contextlib.suppress(PermissionError):  # the copy of another user
                os.utime(file)
        return os.pread(file, length, offset)
    finally:
        os.close(file)


def read_image(members: Members, image: int, size: tuple[int, int], at_least: float = 0) -> Image.Image:
    """Read an image as RGB.

    Args:
        members: The images.
        image: The position of the image.
        size: The width and height that it must have.
        at_least: Minimum scale; see `cvexp.data.files.images.read_image`.

    Raises:
        UserError: if the shard is missing, cut off or changed, or the image is broken.
    """
    data = read_bytes(members, image)
    try:
        return decode_checked(data, size, at_least)
    except Exception as error:  # Pillow may raise anything for a broken file
        shard = members.shards[int(members.shard[image])]
        raise UserError(f"{members.place.address(shard.name)}: sample {image:09}: {explain(error)}") from error
