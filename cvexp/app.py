"""The command line: turns user errors into one message, and signals into an exit status."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from importlib.metadata import version
from types import TracebackType
from typing import NoReturn

from cvexp import completion, processes, schema
from cvexp.command import execute
from cvexp.errors import Interrupted, UserError
from cvexp.redaction import for_terminal


def main() -> None:
    """Do what `sys.argv` says, and turn user errors into one message and an exit status."""
    sys.excepthook = _print_traceback
    if "--version" in sys.argv[1:]:
        print(f"cvexp {version('cvexp')}")
        return
    if script := completion.script(sys.argv[1:]):
        print(script)
        return
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"  # which `execute` sets
    try:
        if (group := schema.asked(sys.argv[1:])) is not None:
            print(json.dumps(schema.make(group), indent=2, ensure_ascii=False))
            return
        execute(sys.argv[1:])
    except UserError as error:
        if wants_traceback:
            raise
        _exit(for_terminal(f"cvexp: error: {error}"))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Interrupted as interrupted:
        sys.exit(128 + interrupted.signal_number)


def _exit(message: str) -> NoReturn:
    """Exit with one message. If several processes have the same one, only one of them prints it."""
    if processes.world_size() == 1:
        sys.exit(message)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun stops the other processes after the first error
    if processes.is_first_with(message):
        print(message, file=sys.stderr, flush=True)
    sys.exit(1)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(for_terminal("".join(traceback.format_exception(kind, error, trace))))
