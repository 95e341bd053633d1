"""What to say when a disk is full: where, how much is missing, and which runs could make room."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import re
import shutil
from collections import Counter
from pathlib import Path

from cvexp.errors import OUT_OF_SPACE
from cvexp.tracking.run import ReadOnlyRun
from cvexp.tracking.store import FAILURES, first_line

NUM_NAMED = 3  # runs in a message


def is_out_of_space(error: Exception, run: ReadOnlyRun) -> bool:
    """Return whether an error of the system, or of SQLite, means that a disk of this machine or a quota is full."""
    if isinstance(error, OSError):
        return error.errno in OUT_OF_SPACE
    is_local = run.store.address.startswith("sqlite")
    return is_local and isinstance(error, FAILURES) and "database or disk is full" in str(error)


def explain(error: Exception, run: ReadOnlyRun, needed: int | None = None) -> str:
    """Say in one line what could not be written, how much room there is, and which runs take the most.

    Args:
        error: An error for which :func:`is_out_of_space` is true.
        run: The open run.
        needed: The size in bytes of what could not be written, if it is known.
    """
    folder = Path(run.tracking_folder)
    problem = f"MLflow's store failed ({first_line(error)})"
    if isinstance(error, OSError):
        problem = f"{error.filename2 or error.filename or run.folder}: {error.strerror}"
    sizes = [] if needed is None else [f"{_readable(needed)} are needed"]
    if not (isinstance(error, OSError) and error.errno == errno.EDQUOT):  # the disk may have more than the quota
        with contextlib.suppress(OSError):
            sizes.append(f"{_readable(shutil.disk_usage(run.folder if run.folder.exists() else folder).free)} are free")
    largest = ", ".join(_describe(run, run_id, size) for run_id, size in _largest_runs(folder, run.id))
    such_as = f", such as runs that you no longer need (docs/faults.md); the largest are {largest}" if largest else ""
    figures = f" ({', '.join(sizes)})" if sizes else ""
    return (
        f"{problem}{figures}; free some space{such_as}; then resume with: {run.resume_command}; or start again "
        "elsewhere with tracking.folder=PATH"
    )


def _largest_runs(folder: Path, but: str) -> list[tuple[str, int]]:
    """Return the ids and sizes in bytes of the runs that take the most room in a tracking folder, but for one run."""
    sizes: Counter[str] = Counter()
    for path in folder.glob("artifacts/*"):
        sizes[path.name] += _size(path)
    for pattern in ("runs/*/*/run_id", "sweeps/*/*/*/run_id"):  # where checkpoints wait for a server
        for path in map(folder.joinpath, glob.iglob(pattern, root_dir=folder)):
            with contextlib.suppress(OSError):
                sizes[path.read_text().strip()] += _size(path.parent)
    others = [(name, size) for name, size in sizes.most_common() if re.fullmatch(r"[0-9a-f]{32}", name) and name != but]
    return others[:NUM_NAMED]


def _describe(run: ReadOnlyRun, run_id: str, size: int) -> str:
    name = run_id
    with contextlib.suppress(*FAILURES):
        name = f"{run.store.client.get_run(run_id).info.run_name} ({run_id})"
    return f"{name}: {_readable(size)}"


def _size(folder: Path) -> int:
    """Return the size in bytes of all files in a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += (Path(place) / name).lstat().st_size
    return total


def _readable(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
