"""Errors that are not bugs: user errors, interruptions and pruning."""

from __future__ import annotations

import contextlib
import difflib
import errno
from collections.abc import Iterable, Iterator


class UserError(Exception):
    """An error that the user can fix. The message says what was received, where, and how to fix it."""


class Incomplete(UserError):  # noqa: N818, an ending like Interrupted
    """A job has written its results, but without something that the user asked for.

    Its run ends as finished, with the message as its tag `left_out`, but the exit status is that of an error.
    """


class Interrupted(BaseException):
    """Ctrl-C or SIGTERM. Not an `Exception`, so that it ends a whole sweep and not only the current job."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number


class JobStopped(Exception):  # noqa: N818, an ending like Interrupted
    """A job of a sweep was stopped by a signal. An `Exception`, so that launchers return it like any other result."""


class Pruned(Exception):  # noqa: N818, an ending like Interrupted
    """A run of a search was stopped early, because other runs are better."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Suggest the known words nearest to a misspelled one, or list all of them if none is near."""
    known = sorted(set(known))
    close = difflib.get_close_matches(word, known, n=2, cutoff=0.5)
    if not close:  # "lr" for "optimizer.lr"
        close = [name for name in known if name.rsplit(".", 1)[-1] == word.rsplit(".", 1)[-1]][:2]
    if close:
        return "did you mean " + " or ".join(close) + "?"
    return "known: " + ", ".join(known)


_REMEDIES = {
    errno.ENOSPC: "free some space, or choose another place with {key}=PATH; resume an interrupted run with "
    "resume=RUN_ID",
    errno.ENOTDIR: "a file is where a folder is needed; choose another place with {key}=PATH",
}
_REMEDIES[errno.EDQUOT] = _REMEDIES[errno.ENOSPC]
_REMEDIES[errno.EEXIST] = _REMEDIES[errno.ENOTDIR]

OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def opening(key: str) -> Iterator[None]:
    """Raise a user error if a file or folder can't be used. A bug elsewhere keeps its traceback.

    Args:
        key: The configuration key that names the place.

    Raises:
        UserError: in place of any `OSError` that the operating system raised.
    """
    try:
        yield
    except OSError as error:
        if not error.strerror:
            raise
        raise UserError(explain_os_error(error, key)) from error


def explain_os_error(error: OSError, key: str) -> str:
    """Say in one line which file or folder can't be used, why, and what to do."""
    place = error.filename2 or error.filename or key  # when copying, the destination
    remedy = _REMEDIES.get(error.errno or 0, "check its permissions, or choose another place with {key}=PATH")
    return f"{place}: {error.strerror}; {remedy.format(key=key)}"
