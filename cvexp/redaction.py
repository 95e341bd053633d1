"""Keeps secrets out of what a run prints and records."""

from __future__ import annotations

import logging
import os
import re
from urllib.parse import unquote

VARIABLE = "CVEXP_PASSWORD"  # environment variable with the password of the data set, for this process and its children
HIDDEN = "***"
SHORTEST = 4  # characters; hiding a shorter password would also hide ordinary words

_USER_INFO = re.compile(r"(?<=://)[^/\s]*@")


def hide_secrets(text: str) -> str:
    """Replace user names and passwords in addresses, and other secrets known to this process, with ``***``."""
    _, _, address = os.environ.get("MLFLOW_TRACKING_URI", "").partition("://")
    user_info, _, _ = address.rpartition("@")  # a password may contain "@" and "/", although it should not
    _, _, password = user_info.partition(":")
    known = [os.environ.get(name, "") for name in (VARIABLE, "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")]
    for secret in (user_info, password, unquote(password), *known):
        if len(secret) >= SHORTEST:
            text = text.replace(secret, HIDDEN)
    return _USER_INFO.sub(f"{HIDDEN}@", text)


class Formatter(logging.Formatter):
    """Formats log records, including tracebacks, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        return hide_secrets(super().format(record))
