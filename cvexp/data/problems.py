"""What is wrong with a data set, and how it is reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Problem(NamedTuple):
    """A file or annotation that is left out because something is wrong with it.

    Attributes:
        where: A file, or a position in it.
        what: What is wrong, and the remedy. If there are `values`, this text applies to each of them and contains the
            placeholder `{value}`.
        values: The values in a mask that stand for nothing, as people write them.
    """

    where: str
    what: str
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.values:
            return f"{self.where}: {self.what}"
        others = f" (and {len(self.values) - 1} more such values)" if len(self.values) > 1 else ""
        return f"{self.where}: the mask has {self.what.replace('{value}', self.values[0])}{others}"


def grouped(problems: Sequence[Problem]) -> list[str]:
    """Return the lines to print. Masks that contain the same unknown value share one line."""
    masks_of: dict[str, list[str]] = {}
    for problem in problems:
        for value in problem.values:
            masks_of.setdefault(value, []).append(problem.where)
    lines: dict[str, None] = {}  # an ordered set
    for problem in problems:
        if not problem.values:
            lines[str(problem)] = None
        for value in problem.values:
            masks = masks_of[value]
            subject = f"{len(masks)} masks, such as {masks[0]}, have" if len(masks) > 1 else f"{masks[0]}: the mask has"
            lines[f"{subject} {problem.what.replace('{value}', value)}"] = None
    return list(lines)
