"""Keeps secrets out of what a run prints and records."""

from __future__ import annotations

import logging
import os
import re
from urllib.parse import unquote

VARIABLE = "CVEXP_PASSWORD"  # environment variable with the password of the data set, for this process and its children
HIDDEN = "***"
SHORTEST = 4  # characters; hiding a shorter password would also hide ordinary words
CERTAIN = 8  # characters of a secret that is no ordinary word

_VARIABLES = (VARIABLE, "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
_SECRET_VARIABLE = re.compile(r"(?i)(password|passwd|token|secret|_key)$")  # such as AWS_SECRET_ACCESS_KEY and HF_TOKEN
_USER_INFO = re.compile(r"(?<=://)[^/\s]*@")
# Parameters of signed addresses, such as X-Amz-Signature, sig, token and password. The key of a view in MLflow is none.
_QUERY = re.compile(
    r"(?i)([?&](?!viewStateShareKey=)[^=&#\s]*(?:token|secret|passw|pwd|signature|credential|key|\bsig)[^=&#\s]*=)[^&#\s'\"]+"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # but not tabs and the ends of lines


def hide_secrets(text: str, shortest: int = SHORTEST) -> str:
    """Replace user names and passwords in addresses, and other secrets known to this process, with ``***``.

    Known are the values of environment variables whose names end in PASSWORD, TOKEN, SECRET or _KEY.

    Args:
        text: Any text.
        shortest: The least number of characters of the passwords that are replaced.
    """
    _, _, address = os.environ.get("MLFLOW_TRACKING_URI", "").partition("://")
    user_info, _, _ = address.rpartition("@")  # a password may contain "@" and "/", although it should not
    _, _, password = user_info.partition(":")
    known = [user_info, password, unquote(password), *(os.environ.get(name, "") for name in _VARIABLES)]
    others = [value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name)]
    secrets = [value for value in known if len(value) >= shortest] + [v for v in others if len(v) >= CERTAIN]
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _QUERY.sub(rf"\1{HIDDEN}", _USER_INFO.sub(f"{HIDDEN}@", text))


def for_terminal(text: str) -> str:
    """Hide secrets, and remove the characters with which text from elsewhere could control a terminal."""
    return _CONTROL.sub("", hide_secrets(text))


class Formatter(logging.Formatter):
    """Formats log records, including tracebacks, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return for_terminal(super().format(record))
