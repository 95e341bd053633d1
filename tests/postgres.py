"""PostgreSQL on this machine, for tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

DEBIAN = Path("/usr/lib/postgresql")
USER = "postgres"  # who runs the server if we are root, because it refuses to run as root

# There is nothing to lose, so it need not wait for the disk.
OPTIONS = "-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c listen_addresses=''"


def _programs() -> Path:
    """Return the folder with PostgreSQL's programs, the newest ones on Debian, which keeps them out of PATH."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = sorted(DEBIAN.glob("*/bin"), key=lambda path: float(path.parent.name))
    if not versions:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    return versions[-1]


@contextmanager
def postgres_cluster() -> Iterator[dict[str, str]]:
    """Run PostgreSQL with all of its files in a temporary folder, and without a password.

    Yields the environment variables with which its programs and clients find it, through a socket and as its
    administrator. Skips the test unless PostgreSQL is installed.
    """
    programs = _programs()
    user = USER if os.geteuid() == 0 else None
    # Not one of pytest's folders, which are closed to other users; and short, because paths of sockets are.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        if user is not None:
            try:
                shutil.chown(folder, user)
            except LookupError:
                pytest.skip(f"needs a user {USER}, because PostgreSQL refuses to run as root")
        variables = {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PGHOST": str(folder),
            "PGUSER": USER,
        }

        def call(*command: str) -> None:
            ended = subprocess.run(
                [str(programs / command[0]), *command[1:]],
                user=user,
                cwd=folder,
                env={"PATH": variables["PATH"], "LC_ALL": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # a pipe would stay open, because the server inherits it
                stderr=subprocess.DEVNULL,
                check=False,
            )
            if ended.returncode != 0:
                log = folder / "log"
                raise RuntimeError(f"{command[0]} failed: {log.read_text() if log.exists() else ''}")

        call("initdb", "--pgdata=data", f"--username={USER}", "--auth=trust", "--no-sync")
        try:
            call("pg_ctl", "start", "--wait", "--pgdata=data", "--log=log", f"--options={OPTIONS} -k {folder}")
            yield variables
        finally:
            if (folder / "data/postmaster.pid").exists():
                call("pg_ctl", "stop", "--pgdata=data", "--mode=immediate")
    finally:
        shutil.rmtree(folder)
