"""Downloads that are resumed, retried and verified. A file gets its final name only once it is complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
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

from cvexp import progress
from cvexp.data.files.parallel import in_parallel
from cvexp.errors import UserError
from cvexp.redaction import hide_secrets

ATTEMPTS = 5  # maximum number in a row that receive no bytes
BACKOFF = 1.0  # seconds before the second attempt; doubled before each further attempt
TIMEOUT = 30.0  # seconds without receiving a byte
NUM_THREADS = 16
CHUNK_BYTES = 1 << 16
MAX_IMAGE_BYTES = 1 << 28

PERMANENT_ERRORS = (  # another attempt would fail in the same way
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    requests.exceptions.TooManyRedirects,
    urllib3.exceptions.HTTPError,
    ValueError,
)

_local = threading.local()


class Remote(NamedTuple):
    """A file to fetch.

    Attributes:
        url: Its http or https address; empty if unknown.
        path: Where to save it.
        md5: Its checksum, if known.
        max_bytes: Maximum size of the file; None limits it only by the free space.
        verify: Returns whether a fetched file is valid.
    """

    url: str
    path: Path
    md5: str | None = None
    max_bytes: int | None = None
    verify: Callable[[Path], bool] = lambda path: True


class RefusedError(UserError):
    """The server does not have the file or sends something else, so another attempt would not help."""


class _TransientError(Exception):
    """A failure after which another attempt may succeed."""


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Reserve a folder for this process. Other processes that want to fetch into it wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".cvexp.lock"):
        yield


def fetch(
    remote: Remote,
    on_progress: Callable[[int, int | None], None] = lambda num_bytes, total: None,
    stop: Event | None = None,
) -> None:
    """Fetch a file unless it exists, resuming an earlier attempt if there was one.

    Args:
        remote: The file. The caller holds the lock of its folder (`lock_folder`).
        on_progress: Receives the number of bytes so far and the total, which is None if the server does not send it.
        stop: Setting this event stops the download. The part fetched so far is kept.

    Raises:
        RefusedError: if the server does not have the file, or the file is invalid.
        UserError: if the server can't be reached or keeps failing.
    """
    if remote.path.exists():
        return
    if not remote.url:
        raise RefusedError("it is missing, and there is no address to fetch it from; add the file, or remove its entry")
    if not remote.url.startswith(("http://", "https://")):
        raise RefusedError(f"{remote.url}: only http and https addresses are supported; correct the address")
    remote.path.parent.mkdir(parents=True, exist_ok=True)
    part = remote.path.with_name(remote.path.name + ".part")
    if _fetch_part(remote, part, on_progress, stop or Event()):
        _check_content(remote, part)
        part.rename(remote.path)
        _notes_path(part).unlink(missing_ok=True)


def fetch_all(remotes: Sequence[Remote], title: str) -> dict[int, str]:
    """Fetch many files in parallel.

    Args:
        remotes: The files.
        title: What is shown about the progress.

    Returns:
        A message about each refused file, by the position of the file.

    Raises:
        UserError: if a server can't be reached.
    """
    if not remotes:
        return {}
    stop = Event()

    def attempt(remote: Remote) -> str | None:
        try:
            fetch(remote, stop=stop)
        except RefusedError as error:
            return hide_secrets(str(error))  # runs record it, and an address may be signed
        return None

    try:
        messages = in_parallel(ThreadPoolExecutor(NUM_THREADS), attempt, remotes, title)
        return {i: message for i, message in enumerate(messages) if message is not None}
    finally:
        stop.set()


def fetch_with_bar(remote: Remote) -> None:
    """Fetch one large file, and show the progress."""
    with progress.step(f"fetching {remote.path.name}", unit="MB") as step:

        def on_progress(num_bytes: int, total: int | None) -> None:
            step.done = num_bytes // 10**6
            if total is None:
                step.status = f"{step.done:,} MB"
            else:
                step.total = max(total // 10**6, step.done)

        fetch(remote, on_progress)


def _fetch_part(remote: Remote, part: Path, on_progress: Callable[[int, int | None], None], stop: Event) -> bool:
    """Fetch the missing bytes of a file, retrying after failures, and return whether the file is complete."""
    num_failures = 0  # in a row
    largest = _size(part)
    while not stop.is_set():
        try:
            return _attempt(remote, part, on_progress, stop)
        except PERMANENT_ERRORS as error:
            raise RefusedError(f"{remote.url}: {error}; correct the address") from error
        except (_TransientError, requests.RequestException) as error:
            num_failures = 1 if _size(part) > largest else num_failures + 1
            largest = max(largest, _size(part))
            if num_failures >= ATTEMPTS:
                raise UserError(
                    f"{remote.url}: {_explain(error)}, in {ATTEMPTS} attempts in a row; check the internet "
                    "connection and start again; the part fetched so far is kept"
                ) from error
            stop.wait(BACKOFF * 2 ** (num_failures - 1) * random.uniform(0.5, 1.5))
    return False


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _attempt(remote: Remote, part: Path, on_progress: Callable[[int, int | None], None], stop: Event) -> bool:
    """Request the missing bytes of a file once, and return whether the file is complete."""
    num_bytes, headers = 0, {"Accept-Encoding": "identity"}
    notes = _read_notes(part)
    if part.exists() and notes.get("url") == remote.url and notes.get("validator"):
        num_bytes = _size(part)
        headers |= {"Range": f"bytes={num_bytes}-", "If-Range": notes["validator"]}
    with _session().get(remote.url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == 416:  # the part has as many bytes as the file, or belongs to another file
            part.unlink()
            raise _TransientError("the file on the server has changed")
        _check_response(remote, response)
        if response.status_code != 206:
            num_bytes = 0
        total = _check_total(remote, part, response, num_bytes)
        _notes_path(part).write_text(json.dumps({"url": remote.url, "validator": _validator(response)}))
        with part.open("ab" if num_bytes else "wb") as file:
            for chunk in response.iter_content(CHUNK_BYTES):
                if stop.is_set():
                    return False
                file.write(chunk)
                num_bytes += len(chunk)
                if remote.max_bytes is not None and num_bytes > remote.max_bytes:
                    raise RefusedError(
                        f"{remote.url}: it has more than {remote.max_bytes} bytes, the limit for such files; check the "
                        "address"
                    )
                on_progress(num_bytes, total)
    if total is not None and num_bytes != total:
        raise _TransientError(f"the connection was lost after {num_bytes} of {total} bytes")
    return True


def _check_response(remote: Remote, response: requests.Response) -> None:
    """Raise an error unless a response contains a file."""
    status = response.status_code
    if status in (408, 429) or status >= 500:
        raise _TransientError(f"the server answers {status} {response.reason}")
    if status not in (200, 206):
        raise RefusedError(f"{remote.url}: the server answers {status} {response.reason}; check the address")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise RefusedError(
            f"{remote.url}: the server compresses the file, although this was not requested; fetch it manually"
        )
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise RefusedError(
            f"{remote.url}: the server sends a web page instead of {remote.path.name}; open the address in a browser, "
            "because the file may require a login or may have moved"
        )


def _check_total(remote: Remote, part: Path, response: requests.Response, num_bytes: int) -> int | None:
    """Return the size of the file, or None if the server does not send the size. Refuse files that are too large.

    Args:
        remote: The file.
        part: The part fetched so far.
        response: The server's response.
        num_bytes: The size of the part.
    """
    length = response.headers.get("Content-Length", "")
    if not length.isdecimal():
        return None
    total = num_bytes + int(length)
    room = shutil.disk_usage(part.parent).free + num_bytes
    if total > (limit := min(room, remote.max_bytes or room)):
        raise RefusedError(f"{remote.url}: it has {total} bytes, but the limit is {limit}; free some space")
    return total


def _validator(response: requests.Response) -> str | None:
    """Return a header that changes with the file on the server. Without this header, a download can't be resumed."""
    etag = response.headers.get("ETag")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")


def _notes_path(part: Path) -> Path:
    """Return the path of the notes on a partial file: its URL and validator."""
    return part.with_name(part.name + ".json")


def _read_notes(part: Path) -> Mapping[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        notes = json.loads(_notes_path(part).read_text())
        if isinstance(notes, dict):
            return notes
    return {}


def _check_content(remote: Remote, part: Path) -> None:
    """Check a fetched file. If the file is invalid, delete it and raise a RefusedError."""
    with part.open("rb") as file:
        md5 = hashlib.file_digest(file, "md5").hexdigest()
    if remote.md5 is not None and md5 != remote.md5:
        problem = f"the MD5 of the file is {md5}, but it should be {remote.md5}"
    elif not remote.verify(part):
        problem = f"the server sent an incomplete or invalid {remote.path.suffix or 'file'}"
    else:
        return
    part.unlink()
    _notes_path(part).unlink(missing_ok=True)
    raise RefusedError(
        f"{remote.url}: {problem}; the file was damaged in transit or has changed on the server, and was deleted; "
        "start again, or fetch the file manually"
    )


def _session() -> requests.Session:
    """Return the session of this thread. A forked process gets its own, because it must not share connections."""
    if getattr(_local, "process", None) != os.getpid():
        _local.process, _local.session = os.getpid(), requests.Session()
    session: requests.Session = _local.session
    return session


def _explain(error: Exception) -> str:
    if isinstance(error, _TransientError):
        return str(error)
    return f"the server can't be reached, stalls or drops the connection ({type(error).__name__})"
