"""Files from the network: resumed, retried, checked, and never half there under their own name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import requests
import urllib3
from filelock import FileLock

from cvexp.data.files import progress
from cvexp.errors import UserError

ATTEMPTS = 5  # in a row without a byte
BACKOFF = 1.0  # seconds before the second attempt; each further one waits twice as long
TIMEOUT = 30.0  # seconds without a byte
PARALLEL = 16
CHUNK = 1 << 16
LARGEST_IMAGE = 1 << 28

NEVER_MENDED = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    requests.exceptions.TooManyRedirects,
)

_local = threading.local()


class Remote(NamedTuple):
    """A file to fetch.

    Attributes:
        url: Where it is; http or https.
        path: Where it is to lie.
        md5: Its checksum, where its publisher tells it.
        most: More bytes than this are refused; None: as many as the disk has room for.
        verify: Tells whether a fetched file is what it should be.
    """

    url: str
    path: Path
    md5: str | None = None
    most: int | None = None
    verify: Callable[[Path], bool] = lambda path: True


class RefusedError(UserError):
    """The server says that it doesn't have the file, or sends something else: trying again is of no use."""


class _BrokenOffError(Exception):
    """What a further attempt may mend."""


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; others that want to fetch into it wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".cvexp.lock"):
        yield


def fetch(
    remote: Remote, report: Callable[[int, int | None], None] = lambda done, total: None, stop: Event | None = None
) -> None:
    """Fetch a file unless it is there. What a former attempt left of it is gone on with.

    Args:
        remote: What to fetch; the caller holds its folder (`alone`).
        report: Is told how many bytes are there, and of how many where the server says so.
        stop: When it is set, the work ends with what is there.

    Raises:
        RefusedError: when the server doesn't have it, or it is not what it should be.
        UserError: when the server can't be reached or goes on breaking off, and what can be done.
    """
    if remote.path.exists():
        return
    if not remote.url:
        raise RefusedError("it is not there, and no address is known to fetch it from; put it there, or take it out")
    if not remote.url.startswith(("http://", "https://")):
        raise RefusedError(f"{remote.url}: only http and https addresses are fetched; correct it")
    remote.path.parent.mkdir(parents=True, exist_ok=True)
    part = remote.path.with_name(remote.path.name + ".part")
    if _fetch_part(remote, part, report, stop or Event()):
        _check_content(remote, part)
        part.rename(remote.path)
        _notes(part).unlink(missing_ok=True)


def fetch_all(remotes: Sequence[Remote], title: str) -> dict[int, str]:
    """Fetch many files at once.

    Returns:
        What is wrong with those that the server doesn't have, by their position.

    Raises:
        UserError: when a server can't be reached.
    """
    if not remotes:
        return {}

    stop = Event()

    def attempt(remote: Remote) -> str | None:
        try:
            fetch(remote, stop=stop)
        except RefusedError as error:
            return str(error)
        return None

    try:
        results = progress.in_parallel(ThreadPoolExecutor(PARALLEL), attempt, remotes, title)
        return {i: error for i, error in enumerate(results) if error is not None}
    finally:
        stop.set()


def fetch_with_bar(remote: Remote) -> None:
    """Fetch one large file, with a bar."""
    with progress.bar() as shown:
        row = shown.add_task(remote.path.name, total=None, status="")

        def report(done: int, total: int | None) -> None:
            shown.update(row, completed=done, total=total, status=f"{done / 1e6:.0f} MB")

        fetch(remote, report)


def _fetch_part(remote: Remote, part: Path, report: Callable[[int, int | None], None], stop: Event) -> bool:
    """Fetch what is missing of a file; whether it is whole."""
    failures = 0
    most = part.stat().st_size if part.exists() else 0
    while not stop.is_set():
        try:
            return _attempt(remote, part, report, stop)
        except (*NEVER_MENDED, ValueError, urllib3.exceptions.HTTPError) as error:
            raise RefusedError(f"{remote.url}: {error}; correct the address") from error
        except (_BrokenOffError, requests.RequestException) as error:
            size = part.stat().st_size if part.exists() else 0
            failures = 1 if size > most else failures + 1
            most = max(most, size)
            if failures >= ATTEMPTS:
                raise UserError(
                    f"{remote.url}: {_plain(error)}, at {ATTEMPTS} attempts in a row; check the network and start "
                    "again: what is there is kept"
                ) from error
            stop.wait(BACKOFF * 2 ** (failures - 1) * random.uniform(0.5, 1.5))
    return False


def _attempt(remote: Remote, part: Path, report: Callable[[int, int | None], None], stop: Event) -> bool:
    """One request, for what is not there yet; whether the file is whole then."""
    done, headers = 0, {"Accept-Encoding": "identity"}
    notes = _read_notes(part)
    if part.exists() and notes.get("url") == remote.url and notes.get("validator"):
        done = part.stat().st_size
        headers |= {"Range": f"bytes={done}-", "If-Range": notes["validator"]}
    with _session().get(remote.url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # the part is whole already, or of another file
            part.unlink()
            raise _BrokenOffError("the server has another file than before")
        _check_answer(remote, answer)
        if answer.status_code != 206:
            done = 0
        length = answer.headers.get("Content-Length", "")
        total = done + int(length) if length.isdecimal() else None
        room = shutil.disk_usage(part.parent).free + done
        if total is not None and total > (most := min(room, remote.most or room)):
            raise RefusedError(f"{remote.url}: it has {total} bytes, and at most {most} can be taken; free some space")
        _notes(part).write_text(json.dumps({"url": remote.url, "validator": _validator(answer)}))
        with part.open("ab" if done else "wb") as file:
            for chunk in answer.iter_content(CHUNK):
                if stop.is_set():
                    return False
                file.write(chunk)
                done += len(chunk)
                if remote.most is not None and done > remote.most:
                    raise RefusedError(f"{remote.url}: it has more than {remote.most} bytes, which no such file has")
                report(done, total)
    if total is not None and done != total:
        raise _BrokenOffError(f"the connection broke off after {done} of {total} bytes")
    return True


def _check_answer(remote: Remote, answer: requests.Response) -> None:
    status = answer.status_code
    if status in (408, 429) or status >= 500:
        raise _BrokenOffError(f"the server answers {status} {answer.reason}")
    if status not in (200, 206):
        raise RefusedError(f"{remote.url}: the server answers {status} {answer.reason}; check the address")
    if answer.headers.get("Content-Encoding", "identity") != "identity":
        raise RefusedError(f"{remote.url}: the server sends it compressed, unasked; fetch it by hand")
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        raise RefusedError(
            f"{remote.url}: the server sends a web page instead of {remote.path.name}; open the address in a browser: "
            "it may ask for a login, or be another one now"
        )


def _validator(answer: requests.Response) -> str | None:
    """What tells whether the server's file is still the same; without it nothing can be gone on with."""
    etag = answer.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else answer.headers.get("Last-Modified")


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_notes(part: Path) -> Mapping[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        notes = json.loads(_notes(part).read_text())
        if isinstance(notes, dict):
            return notes
    return {}


def _check_content(remote: Remote, part: Path) -> None:
    with part.open("rb") as file:
        got = hashlib.file_digest(file, "md5").hexdigest()
    if remote.md5 is not None and got != remote.md5:
        wrong = f"the file's MD5 is {got}, but should be {remote.md5}"
    elif not remote.verify(part):
        wrong = f"what the server sends is no whole {remote.path.suffix or 'file'}"
    else:
        return
    part.unlink()
    _notes(part).unlink(missing_ok=True)
    raise RefusedError(
        f"{remote.url}: {wrong}; it was damaged on its way or is another one now, and is not kept: start again, or "
        "fetch it by hand"
    )


def _session() -> requests.Session:
    if not hasattr(_local, "session"):
        _local.session = requests.Session()
    session: requests.Session = _local.session
    return session


def _plain(error: Exception) -> str:
    if isinstance(error, _BrokenOffError):
        return str(error)
    return f"the server can't be reached, stalls or breaks off ({type(error).__name__})"
