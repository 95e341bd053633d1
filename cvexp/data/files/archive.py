"""Zip archives that nobody has checked yet."""

from __future__ import annotations

import errno
import lzma
import multiprocessing
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path, PurePosixPath, PureWindowsPath

from cvexp.data.files.progress import in_parallel
from cvexp.errors import UserError

MOST_TIMES_LARGER = 200  # unpacked than packed, of all members together; images and text stay far below


DAMAGED = (
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
    path: Path, folder: Path, wanted: Callable[[str], bool] = lambda name: True, password: str | None = None
) -> None:
    """Unpack a zip archive into a new folder, which appears only once all of it is there.

    Args:
        path: The archive.
        folder: Where to; its parent is made.
        wanted: Which members.
        password: For members that need one.

    Raises:
        PasswordError: when a password is needed and missing, or wrong.
        UserError: when the archive is damaged, or a member would lie outside the folder, is a link, or is absurdly
            large. Nothing is left behind then.
    """
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
        _check_members(path, members)
        members = [member for member in members if wanted(member.filename)]
        _check_size(path, members, folder)
        unfinished.mkdir(parents=True)
        names = [member.filename for member in members]
        if any(member.flag_bits & 1 for member in members):
            if password is None:
                raise PasswordError(f"{path}: it is protected by a password; give it with dataset.password=...")
            _extract((path, unfinished, names[:1], password))  # a wrong one is told at once
            # Python deciphers 1 MB a second, so all processors do.
            jobs = [(path, unfinished, part, password) for part in _parts(names)]
            spawn = multiprocessing.get_context("spawn")
            work = ProcessPoolExecutor(os.cpu_count(), mp_context=spawn)
            for _ in in_parallel(work, _extract, jobs, f"unpacking {path.name}"):
                pass
        else:
            _extract((path, unfinished, names, password))
    except FileNotFoundError as error:
        raise UserError(f"{path}: there is no such archive") from error
    except DAMAGED as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise UserError(f"{path}: this is no whole zip archive ({error}); delete it and fetch it again") from error
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise UserError(f"{path}: a member can't be written ({error}); fetch the archive again") from error
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    unfinished.rename(folder)


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for member in members:
        name = member.filename
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or PureWindowsPath(name).drive:
            raise UserError(f"{path}: the member {name!r} would lie outside the folder; this archive is not unpacked")
        mode = member.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise UserError(f"{path}: the member {name!r} is a link or a device; this archive is not unpacked")
        if name in seen:
            raise UserError(f"{path}: the member {name!r} is there twice; this archive is not unpacked")
        seen.add(name)


def _check_size(path: Path, members: Sequence[zipfile.ZipInfo], folder: Path) -> None:
    size = sum(member.file_size for member in members)
    if size > MOST_TIMES_LARGER * path.stat().st_size:
        raise UserError(
            f"{path}: it would grow from {path.stat().st_size} to {size} bytes, which no archive of images does; it is "
            "not unpacked"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    if size > (free := shutil.disk_usage(folder.parent).free):
        raise UserError(f"{path}: unpacked it takes {size} bytes, but {folder.parent} has room for {free}; free some")


def _parts(names: Sequence[str], length: int = 256) -> list[Sequence[str]]:
    return [names[first : first + length] for first in range(0, len(names), length)]


def _extract(job: tuple[Path, Path, Sequence[str], str | None]) -> None:
    """Extract some members; in a process of its own where they are many."""
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
                        f"{path}: the password does not fit, or the archive is damaged ({error}); give the right one "
                        "with dataset.password=..."
                    ) from error
                raise zipfile.BadZipFile(f"{name}: {error}") from error
