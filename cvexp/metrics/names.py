"""Names of metrics and parameters that contain a name given by a user, such as that of a class."""

from __future__ import annotations

import hashlib
import re

LONGEST = 200  # characters; MLflow takes 250, prefixes such as "best/iou/" included

_REFUSED = re.compile(r"[^\w\-. ]")  # MLflow also takes "/" and ":", but not everywhere in a name
_HASHED = re.compile(r"-[0-9a-f]{12}")


def safe_name(text: str) -> str:
    """Turn any text into a name, or a part of one, that MLflow accepts; different texts give different names.

    Most texts stay as they are. In all others, refused characters become "_", the text is cut, and 12 digits of its
    SHA-256 tell it from others: ``"car (parked)"`` gives ``"car _parked_-"`` and the digits.

    Args:
        text: A user's name for something; of any length.

    Returns:
        At most 200 characters: letters, digits, and ``_-. ``, not only dots and spaces.
    """
    readable = _REFUSED.sub("_", text)
    is_accepted = readable == text and len(text) <= LONGEST and text.strip(". ") != ""
    if is_accepted and not _HASHED.fullmatch(text[-13:]):  # or a class could have the name made for another
        return text
    digits = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]
    return f"{readable[: LONGEST - 13]}-{digits}"
