"""Measure for how long each command of the demo prints nothing, in a pipe and on a terminal.

    python experiments/silence.py [--only dino,compare] [--on pipe,terminal]

The commands are those of `make demo` and some more, at the size of the demo, each in the folder of the ones before it.
Printed are the seconds of each command, its longest silence, and what it printed last before that. The time until the
first line, which includes the imports, and the time after the last one count, too. What each command printed is in a
file of its name. The exit status is 1 if a command fails, or a silence is longer than 10 seconds.
Expected: no silence above 10 seconds.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

LIMIT = 10.0  # seconds
COMMANDS = {
    "prepare": "task=prepare",
    "dino": "+experiment=demo",
    "simclr": "+experiment=demo_simclr",
    "neighbors": "task=neighbors",
    "features": "task=features",
    "probe": "task=probe",
    "segmentation": "-m +experiment=demo_segmentation task=multiclass,attention backbone.weights=latest:dino",
    "seeds": "-m +experiment=demo_segmentation seed=1,2 hydra/launcher=joblib trainer.max_epochs=2",
    "compare": "task=compare",
    "report": "task=report",
    "predict": "task=predict task.images=[IMAGES]",
    "embed": "task=embed task.images=[IMAGES]",
    "export": "task=export",
    "register": "task=register task.model=demo task.alias=champion",
    "benchmark": "task=benchmark +experiment=demo",
    "study": "+experiment=shapes_study task.seeds=[0,1] task.fractions=[0.05,1.0] task.steps=60",
}
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")  # that move the cursor, or set a color


class Silence(NamedTuple):
    """The longest silence of a command.

    Attributes:
        seconds: How long it was.
        after: The last line before it; empty if it was at the start.
        whole: How long the command took.
        status: Its exit status.
    """

    seconds: float
    after: str
    whole: float
    status: int


def listen(words: list[str], folder: Path, on_terminal: bool, log: Path) -> Silence:
    """Run cvexp in a folder, and note when it prints something, and what."""
    reading, writing = pty.openpty() if on_terminal else os.pipe()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    began = latest = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "cvexp", *words], cwd=folder, stdout=writing, stderr=writing, env=environment
    ) as process:
        os.close(writing)
        printed, longest, after = "", 0.0, ""
        while True:
            try:
                chunk = os.read(reading, 65536)
            except OSError:  # how a terminal ends
                chunk = b""
            now = time.monotonic()
            if now - latest > longest:
                longest, after = now - latest, last_line(printed)
            latest = now
            if not chunk:
                break
            printed += chunk.decode(errors="replace")
    os.close(reading)
    log.write_text(printed)
    if process.returncode:
        print(printed[-4000:], file=sys.stderr)
    return Silence(longest, after, latest - began, process.returncode)


def last_line(printed: str) -> str:
    """Return the last line that is not empty, without the codes of terminals."""
    lines = [CODES.sub("", line).strip() for line in re.split(r"[\r\n]", printed[-4000:])]
    return next((line for line in reversed(lines) if line), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(COMMANDS), help="names of commands")
    parser.add_argument("--on", default="pipe,terminal")
    options = parser.parse_args()
    is_good = True
    for kind in options.on.split(","):
        folder = Path(tempfile.mkdtemp(prefix=f"silence-{kind}-"))
        print(f"\n{kind}, in {folder}\n{'':14}{'took':>8}{'silent':>8}  after", flush=True)
        for name in options.only.split(","):
            images = next(folder.glob("outputs/data/**/val"), folder)
            words = COMMANDS[name].replace("IMAGES", str(images)).split()
            silence = listen(words, folder, kind == "terminal", folder / f"{name}.log")
            is_good &= silence.status == 0 and silence.seconds <= LIMIT
            failed = f"  exit status {silence.status}" if silence.status else ""
            print(f"{name:14}{silence.whole:7.1f}s{silence.seconds:7.1f}s  {silence.after[:80]}{failed}", flush=True)
    sys.exit(not is_good)


if __name__ == "__main__":
    main()
