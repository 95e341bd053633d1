"""Images that a job could not read, and without which it goes on."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from cvexp.console import print_line
from cvexp.data.files.listing import as_text
from cvexp.errors import Incomplete, UserError
from cvexp.tracking.run import ReadOnlyRun

MAX_NAMED = 10


class LeftOut:
    """Names the first images that can't be read as they come, and at the end records all of them.

    Args:
        key: The configuration key that names the images.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self.reasons: list[tuple[str, str]] = []

    def add(self, path: Path, reason: str) -> None:
        """Leave out an image.

        Args:
            path: The image.
            reason: The message of the error, which may start with the path.
        """
        name = as_text(path)
        self.reasons.append((name, as_text(reason).removeprefix(f"{name}: ")))
        if len(self.reasons) <= MAX_NAMED:
            print_line(f"left out: {name}: {self.reasons[-1][1]}", style="bold yellow")

    def finish(self, run: ReadOnlyRun, num_images: int, folder: str) -> None:
        """End the job after everything else was written: record `left_out.csv` in a folder of the run's artifacts.

        Raises:
            Incomplete: if some of the images were left out.
            UserError: if all of them were.
        """
        if not self.reasons:
            return
        if len(self.reasons) > MAX_NAMED:
            print_line(f"left out: and {len(self.reasons) - MAX_NAMED} more", style="bold yellow")
        text = io.StringIO()
        csv.writer(text).writerows([("path", "reason"), *self.reasons])
        run.log_text(text.getvalue(), f"{folder}/left_out.csv")
        listed = f"{run.artifacts}/{folder}/left_out.csv says why"
        if len(self.reasons) == num_images:
            raise UserError(f"{self.key}: none of the {num_images} images can be read; {listed}")
        raise Incomplete(
            f"{self.key}: {len(self.reasons)} of {num_images} images can't be read and were left out; {listed}, and "
            "everything else was written"
        )
