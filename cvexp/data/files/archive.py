"""Unpacking of zip archives that may be damaged or hostile."""

from __future__ import annotations

import contextlib
import errno
import lzma
import multiprocessing
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path, PurePosixPath, PureWindowsPath

from cvexp.data.files.parallel import in_parallel
from cvexp.errors import UserError

MAX_EXPANSION = 200  # maximum unpacked size as a multiple of the archive's size; images and text stay far below it
MEMBERS_PER_JOB = 256

DAMAGED = (  # what zipfile raises for a damaged archive
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    UnicodeError,
    IndexError,
    RuntimeError,
)


class PasswordError(UserError):
    """The password is missing or wrong."""


def unpack(
    path: Path, folder: Path, is_wanted: Callable[[str], bool] = lambda name: True, password: str | None = None
) -> None:
    """Unpack a zip archive into a new folder, which appears only once it is complete.

    Args:
        path: The archive.
        folder: The new folder. Its parent is created if necessary.
        is_wanted: Selects members by their names.
        password: The password of the encrypted members.

    Raises:
        PasswordError: if a password is needed but is missing or wrong.
        UserError: if the archive is damaged, is implausibly large, or has a member that is a link or lies outside the
            folder. No files are left behind.
        OSError: if the folder can't be written.
    """
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with _failures_explained(path):
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
        _check_members(path, members)
        members = [member for member in members if is_wanted(member.filename)]
        _check_size(path, members, folder)
        try:
            unfinished.mkdir(parents=True)
            _extract_members(path, unfinished, members, password)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    unfinished.rename(folder)


@contextlib.contextmanager
def _failures_explained(path: Path) -> Iterator[None]:
    """Turn exceptions during unpacking into UserErrors, except for failures to write to the folder."""
    try:
        yield
    except BrokenExecutor:  # a RuntimeError, but it means that a process was killed; the archive may be fine
        raise
    except DAMAGED as error:
        raise UserError(
            f"{path}: this is not a complete zip archive ({error}); delete it and fetch it again"
        ) from error
    except OSError as error:
        if error.filename == str(path):
            raise UserError(
                f"{path}: it can't be read ({error.strerror}); check dataset.root= and the file's permissions"
            ) from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise UserError(f"{path}: a member can't be written ({error}); fetch the archive again") from error


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Raise a UserError if a member is not a file inside the folder, or appears twice."""
    names: set[str] = set()
    for member in members:
        name = member.filename
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or PureWindowsPath(name).drive:
            raise UserError(f"{path}: the member {name!r} would lie outside the folder; use another archive")
        mode = member.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise UserError(f"{path}: the member {name!r} is a link or a device; use another archive")
        if name in names:
            raise UserError(f"{path}: the member {name!r} appears twice; use another archive")
        names.add(name)


def _check_size(path: Path, members: Sequence[zipfile.ZipInfo], folder: Path) -> None:
    """Raise a UserError if the members are implausibly large, or the disk has no room for them."""
    size = sum(member.file_size for member in members)
    if size > MAX_EXPANSION * path.stat().st_size:
        raise UserError(
            f"{path}: it would grow from {path.stat().st_size} to {size} bytes, which is implausible for images; use "
            "another archive"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    if size > (free := shutil.disk_usage(folder.parent).free):
        raise UserError(
            f"{path}: unpacking it needs {size} bytes, but {folder.parent} has room for {free}; free some space"
        )


def _extract_members(path: Path, folder: Path, members: Sequence[zipfile.ZipInfo], password: str | None) -> None:
    """Extract members, in parallel if they are encrypted, because Python decrypts only 1 MB per second."""
    names = [member.filename for member in members]
    if not any(member.flag_bits & 1 for member in members):
        _extract((path, folder, names, password))
        return
    if password is None:
        raise PasswordError(f"{path}: the archive is protected; give the password with dataset.password=...")
    _extract((path, folder, names[:1], password))  # to report a wrong password at once
    jobs = [
        (path, folder, names[first : first + MEMBERS_PER_JOB], password)
        for first in range(0, len(names), MEMBERS_PER_JOB)
    ]
    executor = ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn"))
    for _ in in_parallel(executor, _extract, jobs, f"unpacking {path.name}"):
        pass


def _extract(job: tuple[Path, Path, Sequence[str], str | None]) -> None:
    """Extract the named members of an archive into a folder. A job is a tuple that can be sent to a process."""
    path, folder, names, password = job
    with zipfile.ZipFile(path) as archive:
        for name in names:
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with (
                    archive.open(name, pwd=password.encode() if password else None) as source,
                    target.open("wb") as file,
                ):
                    shutil.copyfileobj(source, file, 1 << 20)
            except (RuntimeError, zlib.error, zipfile.BadZipFile) as error:
                if password is not None and archive.getinfo(name).flag_bits & 1:
                    raise PasswordError(
                        f"{path}: the password is wrong, or the archive is damaged ({error}); give the right password "
                        "with dataset.password=..."
                    ) from error
                raise zipfile.BadZipFile(f"{name}: {error}") from error
