"""Stores that were moved: MLflow records absolute addresses, which are corrected when the store is next used."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from pathlib import Path
from urllib.parse import unquote, urlparse

log = logging.getLogger("cvexp")

# Columns of MLflow's tables that hold the address of an artifact folder.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def correct_addresses(folder: Path, artifacts: str) -> None:
    """Replace the former location of a moved store in all addresses that the store records.

    Args:
        folder: Where the store is now.
        artifacts: The recorded address of the store's artifacts.
    """
    if not _was_moved(artifacts, folder):
        return
    former = Path(unquote(urlparse(artifacts).path)).parent
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db", timeout=120)) as database, database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        changes = [(table, column, former.as_uri(), folder.as_uri(), "1") for table, column in ADDRESSES]
        changes.append(("tags", "value", str(former), str(folder), "key = 'cvexp.folder'"))
        for table, column, old, new, condition in changes:
            if table in tables:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {condition} AND substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, len(old) + 1, f"{old}/"),
                )
    log.info("%s was moved here from %s; the addresses in it were corrected", folder, former)


def _was_moved(artifacts: str, folder: Path) -> bool:
    """Return whether a store in `folder` records another location for its artifacts, although they are in `folder`."""
    address = urlparse(artifacts)
    recorded, here = Path(unquote(address.path)), folder / "artifacts"
    if address.scheme != "file" or recorded.name != "artifacts" or not here.is_dir():
        return False
    return not (recorded.exists() and recorded.samefile(here))
