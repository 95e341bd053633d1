"""Checkpoint files: a crash leaves the old file or the new one whole, and files are verified before they are used.

PyTorch writes a zip archive with a CRC-32 checksum of each tensor, but does not compare it when it reads the file.
Safetensors files, and PyTorch files from before version 1.6, have no checksums.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch

CHUNK = 2**20  # bytes that are read at a time
FOLDER = 0x10  # the attribute with which PyTorch, unlike zipfile, reads nothing


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a new file, which replaces `path` at the end of the block, or is removed after an error.

    All files of a folder use the same new path, so that what a killed process left is overwritten by the next one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name("unfinished")
    try:
        yield unfinished
        write_through(unfinished)  # or a crash of the machine could leave the new name with an empty file
        unfinished.replace(path)
        with contextlib.suppress(OSError):  # some file systems refuse it for folders
            write_through(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def write_through(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def verify_checksums(path: Path) -> None:
    """Compare the content of a file with the checksums in it, if it has any.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                if file.read(2) in (b"", b"PK"):  # the beginning of an archive, whose end is missing
                    raise ValueError("its end is missing")
            return
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if record.external_attr & FOLDER:
                    raise ValueError(f"{record.filename} is marked as a folder")
                if record.CRC:  # 0 where torch.serialization.set_crc32_options(False) left it out
                    with archive.open(record) as content:
                        while content.read(CHUNK):
                            pass
    # What zipfile raises for a damaged file: its structure, its content, its end, a method of compression or a mark of
    # encryption that a changed bit has set, and an offset outside of the file.
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise ValueError(str(error)) from error


def verify(path: Path) -> None:
    """Check that a checkpoint that cvexp wrote is whole, and holds nothing but data.

    Raises:
        ValueError: if it is damaged, or would run code when loaded.
    """
    verify_checksums(path)
    try:
        torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError("it holds more than tensors, and reading that could run code") from error
    except Exception as error:  # torch raises many types for damaged files
        raise ValueError(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}") from error
