"""Rewrites the command line into the form that Hydra accepts."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from cvexp.redaction import VARIABLE

QUESTIONS = ("--help", "-h", "--hydra-help", "--cfg", "-c", "--info", "-i", "--version")  # Hydra's, but for the last


def with_sweeper(arguments: list[str], conf: Path) -> list[str]:
    """Make a sweep of `task=study`, even if an experiment chooses this task, unless Hydra is only asked about it.

    Args:
        arguments: The command line without the program's name.
        conf: Folder of the configuration groups.
    """
    tasks = [word for word in arguments if word.startswith("task=")]
    chosen = [word.lstrip("+").partition("=") for word in arguments]
    names = [name for key, _, value in chosen if key == "experiment" for name in value.strip("[]").split(",")]
    files = [file for name in names if len(name) < 200 and (file := conf / "experiment" / f"{name}.yaml").is_file()]
    by_experiment = any("override /task: study" in file.read_text() for file in files)
    is_question = any(word in QUESTIONS or word.startswith("--cfg=") for word in arguments)
    if is_question or (tasks != ["task=study"] and (tasks or not by_experiment)):
        return arguments
    flag = [] if {"-m", "--multirun"} & set(arguments) else ["-m"]
    return [*flag, "hydra/sweeper=study", *arguments]


def for_hydra(arguments: list[str], conf: Path) -> list[str]:
    """Rewrite a command line for Hydra.

    * A password moves into an environment variable, because Hydra writes its arguments into files.
    * Keys inside a free dictionary, such as ``backbone.args.drop_rate=0.1`` or ``backbone.args={drop_rate: 0.1}``, need
      no ``+``.
    * A sweep over a group may set keys that only the swept options have, such as ``task.dropout=0``. Hydra first
      composes what all jobs share, without the swept groups, and refuses these keys at that point (hydra#2888).

    With ``++``, Hydra accepts any key. The schema later finds misspelled ones.

    `task=benchmark task.of=NAME` becomes `task=NAME benchmark=true`, so that all keys of that task can be set. Without
    `task.of`, the task is that of the experiment, or the default.

    Args:
        arguments: The command line without the program's name.
        conf: Folder of the configuration groups.
    """
    if "task=benchmark" in arguments:
        others = [word.replace("task.of=", "task=", 1) for word in arguments if word != "task=benchmark"]
        arguments = [*others, "benchmark=true"]
    is_sweep = bool({"-m", "--multirun"} & set(arguments))
    pairs = [_without_password(argument).partition("=") for argument in arguments]
    swept = {group for group, _, value in pairs if is_sweep and "," in value and (conf / group).is_dir()}
    rewritten = []
    for key, equals, value in pairs:
        group, *inner = key.split(".")
        is_free = (len(inner) >= 2 or (bool(inner) and value.startswith("{"))) and (conf / group).is_dir()
        is_of_swept = group in swept and bool(inner)
        rewritten.append("".join(("++" * (is_free or is_of_swept), key, equals, value)))
    return rewritten


def _without_password(argument: str) -> str:
    """Move the value of a password into the environment, and return a reference to it."""
    key, _, value = argument.partition("=")
    if not re.fullmatch(r"\+{0,2}[\w.]*password", key) or value in ("", "null") or value.startswith("${"):
        return argument
    if value[0] in "'\"":
        with contextlib.suppress(HydraException):  # otherwise the quotes belong to the password
            value = str(OverridesParser.create().parse_override(argument).value())
    os.environ[VARIABLE] = value
    return f"{key}=${{oc.env:{VARIABLE}}}"


def quoted(value: str) -> str:
    """Return a string as Hydra's command line takes it, with quotes if it needs any, keeping interpolations.

    Hydra unescapes quotes, and backslashes only before quotes.
    """
    if re.fullmatch(r"[A-Za-z/][\w./:%-]*", value) and value.lower() not in ("null", "true", "false", "nan", "inf"):
        return value
    return "'" + re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + (match[2] and "\\'"), value) + "'"


def setting(key: str, value: object) -> str:
    """Return the override that gives a key a value: a string, a number, or nested lists and mappings of them."""
    return f"{key}={_literal(value)}"


def _literal(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        is_plain = quoted(value) == value or set(value) & {'"', "\\"}
        return quoted(value) if is_plain else f'"{value}"'  # which a shell's own quotes leave readable
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_literal(content)}" for name, content in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(_literal, value)) + "]"
    return repr(value)
