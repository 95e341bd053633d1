"""What is wrong with a data set, and how it is reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Problem(NamedTuple):
    """A file or annotation that is left out because something is wrong with it.

    Attributes:
        where: A file, or a position in it.
        what: What is wrong, and the remedy. If there are `numbers`, this text applies to each of them and contains the
            placeholder `{number}`.
        numbers: The numbers in a mask that do not stand for a class.
    """

    where: str
    what: str
    numbers: tuple[int, ...] = ()

    def __str__(self) -> str:
        if not self.numbers:
            return f"{self.where}: {self.what}"
        others = f" (and {len(self.numbers) - 1} more such numbers)" if len(self.numbers) > 1 else ""
        return f"{self.where}: the mask has {self.what.replace('{number}', str(self.numbers[0]))}{others}"


def grouped(problems: Sequence[Problem]) -> list[str]:
    """Return the lines to print. Masks that contain the same unknown class number share one line."""
    masks_of: dict[int, list[str]] = {}
    for problem in problems:
        for number in problem.numbers:
            masks_of.setdefault(number, []).append(problem.where)
    lines: dict[str, None] = {}  # an ordered set
    for problem in problems:
        if not problem.numbers:
            lines[str(problem)] = None
        for number in problem.numbers:
            masks = masks_of[number]
            subject = f"{len(masks)} masks, such as {masks[0]}, have" if len(masks) > 1 else f"{masks[0]}: the mask has"
            lines[f"{subject} {problem.what.replace('{number}', str(number))}"] = None
    return list(lines)
