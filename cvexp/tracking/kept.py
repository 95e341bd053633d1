"""Files that a run has recorded and reads back at its end, kept on this machine because the store may be away then."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from cvexp.tracking.store import Content, Store

FOLDERS = ("embeddings",)  # of the artifacts that are kept


class KeptFiles:
    """Copies of a run's own artifacts, which can be listed and read as those in a store.

    Args:
        folder: Where the copies are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, file: Path, folder: str) -> None:
        """Copy a file that is recorded in a folder of the artifacts, if it is one of those that are kept."""
        if folder in FOLDERS:
            (self._folder / folder).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, self._folder / folder / file.name)

    def fetch(self, store: Store, run_id: str) -> None:
        """Fetch those of the files that the run recorded before it was interrupted and that this machine lacks."""
        for folder in FOLDERS:
            missing = set(store.files(run_id, folder)) - set(self.files(run_id, folder))
            for path in sorted(missing):
                store.read(run_id, path, lambda file, folder=folder: self.keep(file, folder))  # type: ignore[misc]

    def files(self, run_id: str, folder: str) -> list[str]:
        """List the paths of the artifacts in a folder, as :meth:`Store.files` does."""
        return sorted(f"{folder}/{path.name}" for path in (self._folder / folder).glob("*"))

    def read(self, run_id: str, path: str, parse: Callable[[Path], Content]) -> Content:
        """Read an artifact, as :meth:`Store.read` does."""
        return parse(self._folder / path)

    def delete(self) -> None:
        """Delete the copies."""
        shutil.rmtree(self._folder, ignore_errors=True)
