"""Copies of remote shards in a local folder, which all processes of this machine share."""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path

from filelock import FileLock, Timeout

from cvexp.data.files import fetch, s3
from cvexp.data.members import File, Place
from cvexp.errors import UserError, opening

_COPY = re.compile(r"[0-9a-f]{64}\.(tar|reserved)")  # the only files that are counted or removed


def path_of_copy(shard: File, place: Place) -> Path:
    """Return where the copy of a shard is, if there is one."""
    return Path(place.local) / f"{shard.sha256}.tar"


def copy_shard(shard: File, place: Place) -> None:
    """Fetch a shard, unless another process does so first. Least recently used copies make room for it.

    Raises:
        UserError: if the shard is missing or not the one that is expected, or its copy can't be written.
    """
    path = path_of_copy(shard, place)
    with opening("dataset.local"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                _fetch_copy(shard, place, path)


def _fetch_copy(shard: File, place: Place, path: Path) -> None:
    """Reserve space for a copy, and fetch it. The caller holds the lock of the copy.

    The reserved space counts as a copy until there is one. If this process is killed, others notice by the lock that
    the reservation is void.
    """
    reserved, fetched = path.with_suffix(".reserved"), path.with_suffix(".fetched")
    while not _reserve(reserved, shard.num_bytes, place.max_bytes):
        time.sleep(0.1)  # other processes are using the space for fetching
    fetch_file(shard, place, fetched)
    with _folder_lock(path.parent):
        fetched.rename(path)
        reserved.unlink()


def fetch_file(file: File, place: Place, path: Path) -> None:
    """Fetch a file of a remote data set, and check it.

    Raises:
        UserError: if it is missing, or not the one that is expected.
    """
    address = place.address(file.name)
    try:
        fetch_address(address, path, file.num_bytes)
    except fetch.RefusedError as error:
        raise UserError(
            f"{error}; {file.name} should have {file.num_bytes} bytes, so restore it, or copy the whole data set there "
            "again"
        ) from error
    try:
        check_file(path, file, address, "copy the whole data set there again")
    except UserError:
        path.unlink()
        raise


def fetch_address(address: str, path: Path, max_bytes: int) -> None:
    """Fetch a file from an http, https or s3 address.

    Raises:
        UserError: if this fails.
    """
    if address.startswith("s3://"):
        s3.fetch(address, path, max_bytes)
    else:
        fetch.fetch(fetch.Remote(address, path, max_bytes=max_bytes))


def check_file(path: Path, file: File, where: str, remedy: str) -> None:
    """Raise a UserError unless a file has the expected size and SHA-256."""
    check_size(path, file, where, remedy)
    with path.open("rb") as opened:
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
    if sha256 != file.sha256:
        raise UserError(f"{where}: its SHA-256 is {sha256}, but {file.sha256} is expected; {remedy}")


def check_size(path: Path, file: File, where: str, remedy: str) -> None:
    """Raise a UserError unless there is a file of the expected size."""
    try:
        num_bytes = os.stat(path).st_size  # noqa: PTH116, faster for many shards
    except FileNotFoundError as error:
        raise UserError(
            f"{where}: there is no such file, but one of {file.num_bytes} bytes is expected; {remedy}"
        ) from error
    if num_bytes != file.num_bytes:
        raise UserError(f"{where}: it has {num_bytes} bytes, but {file.num_bytes} are expected; {remedy}")


def _folder_lock(folder: Path) -> FileLock:
    return FileLock(folder / "folder.lock")


def _reserve(reserved: Path, num_bytes: int, max_bytes: int) -> bool:
    """Reserve space for a copy if that is possible, and return whether it is."""
    with _folder_lock(reserved.parent):
        entries = [(path, path.stat()) for path in reserved.parent.iterdir() if _COPY.fullmatch(path.name)]
        entries = [(path, state) for path, state in entries if path != reserved]
        excess = sum(state.st_size for _, state in entries) + num_bytes - max_bytes
        entries.sort(key=lambda entry: (entry[0].suffix != ".reserved", entry[1].st_mtime_ns))
        for path, state in entries:  # remains of killed processes first
            if excess > 0 and (path.suffix == ".tar" or _is_void(path)):
                path.unlink()
                excess -= state.st_size
        if excess > 0:
            return False
        reserved.touch()
        os.truncate(reserved, num_bytes)  # takes no space on the disk
        return True


def _is_void(reserved: Path) -> bool:
    """Return whether the process that reserved space is gone. If so, remove what it has fetched."""
    try:
        with FileLock(reserved.with_suffix(".lock"), timeout=0):
            for path in reserved.parent.glob(f"{reserved.stem}.fetched*"):
                path.unlink()
            return True
    except Timeout:
        return False
