"""Lists image files: those in folders, and those that the user names one by one or by a pattern."""

from __future__ import annotations

import functools
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cvexp.data.files.images import SUFFIXES
from cvexp.errors import UserError, opening
from cvexp.keys import require


def list_images(names: Sequence[str], key: str) -> list[Path]:
    """List the image files that the user names, each once, in the order of the names.

    Args:
        names: Files; folders, which stand for all images in and below them in alphabetical order; and patterns such as
            ``photos/**/*.jpg``. Hidden files and folders are left out unless they are named. A file or folder that
            exists is not a pattern, even if its name contains brackets.
        key: The configuration key of the names.

    Raises:
        UserError: if there are no names, one of them matches nothing or contains no images, or a folder can't be read.
    """
    require(len(names) > 0, key, list(names), "a list of image files, folders, or patterns such as photos/**/*.jpg")
    real_path = functools.cache(os.path.realpath)
    found: dict[tuple[str, str], Path] = {}
    for name in names:
        with opening(key):
            paths = _named(name, key)
        if not paths:
            raise UserError(f"{key}: there are no images in {name}; the names of images end in {', '.join(SUFFIXES)}")
        for path in paths:
            found.setdefault((real_path(path.parent), path.name), path)
    return list(found.values())


def walk(start: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk through a folder and all below it like :func:`os.walk`, in alphabetical order.

    Links are followed, but no folder is visited twice. Hidden files and folders are left out, such as those that macOS
    writes next to images (``._a.jpg``), and files that are no images.

    Yields:
        The folder; the names of its folders, which the caller may remove; and the names of its images.

    Raises:
        UserError: if a folder can't be read.
    """
    visited: set[str] = set()
    for path, folders, names in os.walk(start, followlinks=True, onerror=_refuse):
        if (real_path := os.path.realpath(path)) in visited:  # reached through a link, perhaps to a folder above
            folders.clear()
            continue
        visited.add(real_path)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield path, folders, sorted(filter(_is_image_name, names))


def as_text(path: object) -> str:
    """Return a path, or a message with paths, as text that can be stored: bytes that are not UTF-8 become ``\\xNN``."""
    return os.fsencode(str(path)).decode(errors="backslashreplace")


def _named(name: str, key: str) -> list[Path]:
    """Return the images that one name stands for."""
    path = Path(name)
    if path.is_file():
        return [path]
    if path.is_dir():
        return _in_folder(path)
    matches = _matches(path)
    if not matches:
        raise UserError(f"{key}: there is no file or folder {name!r}, and as a pattern, it matches nothing")
    groups: Iterable[list[Path]] = (_in_folder(match) if match.is_dir() else [match] for match in matches)
    return [image for group in groups for image in group if _is_image_name(image.name)]


def _in_folder(folder: Path) -> list[Path]:
    return [Path(path, name) for path, _, names in walk(folder) for name in names]


def _matches(pattern: Path) -> list[Path]:
    """Return what matches a pattern. Leading folders that exist are not part of it, whatever their names contain."""
    start = next(parent for parent in pattern.parents if parent.is_dir())
    rest = str(pattern.relative_to(start))
    found = glob.glob(rest, root_dir=start, recursive=True)
    return [start / name for name in sorted(found)]


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def _refuse(error: OSError) -> None:
    """Raise a UserError for a folder that can't be listed."""
    raise UserError(f"{error.filename}: it can't be read ({error.strerror}); check its permissions")
