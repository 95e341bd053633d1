"""Names of metrics and parameters that contain a name given by a user, such as that of a class."""

from __future__ import annotations

import hashlib
import re

MAX_LENGTH = 200  # in characters; MLflow accepts 250, including prefixes such as "best/iou/"

_INVALID = re.compile(r"[^\w\-. ]")  # MLflow also accepts "/" and ":", but not everywhere in a name
_HASH_SUFFIX = re.compile(r"-[0-9a-f]{12}")


def safe_name(text: str) -> str:
    """Convert any text to a name, or a part of a name, that MLflow accepts. Different texts give different names.

    Most texts are returned unchanged. In all others, characters that MLflow does not accept become "_", long texts are
    truncated, and 12 digits of the SHA-256 of the text are appended: ``"car (parked)"`` becomes ``"car _parked_-"``
    followed by the digits.

    Args:
        text: A name given by a user, of any length.

    Returns:
        At most 200 letters, digits, and characters of ``_-. ``, and not only dots and spaces.
    """
    replaced = _INVALID.sub("_", text)
    is_valid = replaced == text and len(text) <= MAX_LENGTH and text.strip(". ") != ""
    if is_valid and not _HASH_SUFFIX.fullmatch(text[-13:]):  # the text could equal the name of another text
        return text
    digits = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
    return f"{replaced[: MAX_LENGTH - 13]}-{digits}"
