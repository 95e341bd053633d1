"""What the values in mask files stand for: classes, the background, or ignored pixels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cvexp.errors import UserError

OTHERS = "others"  # in place of a value: all values that are not listed
FORMS = 'a number from 0 to 65535, or a color such as "#804080" or [128,64,128]'

Values = NDArray[np.uint16] | NDArray[np.uint32]


@dataclass(frozen=True)
class MaskTable:
    """What the values in mask files stand for.

    A value is the number of a pixel, or its color as 65536 * red + 256 * green + blue.

    Attributes:
        classes: The value of each class.
        background: The value of pixels without a class; None if there is no such value.
        ignored: The value of pixels that losses and metrics skip; None if there is no such value.
        others: What all other values stand for, ``"background"`` or ``"ignore"``; None if they are mistakes.
        has_colors: Whether the values are colors.
    """

    classes: tuple[int, ...] = ()
    background: int | None = 0
    ignored: int | None = 255
    others: str | None = None
    has_colors: bool = False

    @property
    def has_background(self) -> bool:
        """Whether pixels may belong to no class."""
        return self.background is not None or self.others == "background"

    def name(self, value: int) -> str:
        """Return a value as people write it, ``11`` or ``#804080``."""
        return f"#{value:06X}" if self.has_colors else str(value)

    def unknown(self, values_hw: Values) -> list[int]:
        """Return the values in a mask that are mistakes, in ascending order."""
        if self.others is not None:
            return []
        return sorted(set(np.unique(values_hw).tolist()) - {*self.classes, self.background, self.ignored})

    def num_ignored(self, values_hw: Values) -> int:
        """Count the ignored pixels in a mask (h, w)."""
        if self.others == "ignore":
            known = [value for value in (*self.classes, self.background) if value is not None]
            return int(np.isin(values_hw, known, invert=True).sum())
        return 0 if self.ignored is None else int((values_hw == self.ignored).sum())

    def labels(
        self, values_hw: Values, of_classes: NDArray[np.integer], background: int, ignored: int
    ) -> NDArray[np.uint8]:
        """Convert the values of a mask to labels.

        Args:
            values_hw: (h, w).
            of_classes: The label of each class.
            background: The label of pixels without a class.
            ignored: The label of ignored pixels.

        Returns:
            (h, w) uint8.
        """
        others = ignored if self.others == "ignore" else background
        label_of = {self.background: background, self.ignored: ignored}
        label_of |= dict(zip(self.classes, of_classes.tolist(), strict=True))
        known = sorted(value for value in label_of if value is not None)
        labels = np.array([label_of[value] for value in known], dtype=np.uint8)
        if not self.has_colors:
            table = np.full(2**16, others, dtype=np.uint8)
            table[known] = labels
            return table[values_hw]
        values = np.array(known, dtype=np.uint32)
        position = np.searchsorted(values, values_hw).clip(max=len(values) - 1)
        return np.where(values[position] == values_hw, labels[position], np.uint8(others))


def parse_table(mask_values: Mapping[str, object], background_value: object, ignore_value: object) -> MaskTable:
    """Return the table that `dataset.mask_values`, `dataset.background_value` and `dataset.ignore_value` describe.

    Args:
        mask_values: A number or a color for each class. A color is ``"#RRGGBB"``, or a list of red, green and blue.
        background_value, ignore_value: The same, or ``"others"``, or None. Among colors, a number n is the gray of n.

    Raises:
        UserError: if a value has another form, or stands for two things.
    """
    key = "dataset.mask_values"
    has_colors = any(not _is_number(value) for value in mask_values.values())
    classes: dict[int, str] = {}
    for name, given in mask_values.items():
        if has_colors and _is_number(given):
            raise UserError(f"{key}.{name}: got {given!r}, but other classes have colors; {_GRAY}")
        value = _parse(f"{key}.{name}", given, has_colors)
        if value is not None and value in classes:
            raise UserError(f"{key}: {classes[value]} and {name} have the same value, {given!r}; give each its own")
        classes[value] = name
    named = {"background": background_value, "ignore": ignore_value}
    values = {
        word: None if given is None or given == OTHERS else _parse(f"dataset.{word}_value", given, has_colors)
        for word, given in named.items()
    }
    others = [word for word, given in named.items() if given == OTHERS]
    if len(others) > 1:
        raise UserError("dataset.ignore_value: got others, like dataset.background_value; set one of them to a value")
    other = others[0] if others else None
    table = MaskTable(tuple(classes), values["background"], values["ignore"], other, has_colors)
    _refuse_double_use(table, classes)
    return table


_GRAY = "numbers are for gray and palette masks, colors for masks with colors, so give all classes the same kind"


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _parse(key: str, given: object, has_colors: bool) -> int:
    """Return the number, or the color as a number.

    Raises:
        UserError: if it is neither, or a color is given where there are only numbers.
    """
    color: list[int] | None = None
    if isinstance(given, str) and re.fullmatch("#[0-9a-fA-F]{6}", given):
        color = list(bytes.fromhex(given[1:]))
    elif isinstance(given, list | tuple) and len(given) == 3 and all(_is_number(part) for part in given):
        color = list(given)
    elif has_colors and isinstance(given, int) and _is_number(given):
        color = [given] * 3
    elif isinstance(given, int) and _is_number(given) and 0 <= given < 2**16:
        return given
    if color is None or not 0 <= min(color) <= max(color) <= 255:
        raise UserError(f"{key}: got {given!r}, but it must be {FORMS}")
    if not has_colors:
        raise UserError(f"{key}: got {given!r}, but dataset.mask_values has numbers; {_GRAY}")
    red, green, blue = color
    return 65536 * red + 256 * green + blue


def _refuse_double_use(table: MaskTable, classes: Mapping[int, str]) -> None:
    """Raise a UserError if a value stands for the background or ignored pixels, and for something else."""
    for value, key, without in (
        (table.background, "dataset.background_value", "every pixel belongs to a class"),
        (table.ignored, "dataset.ignore_value", "no pixels are ignored"),
    ):
        if value is not None and value in classes:
            raise UserError(
                f"dataset.mask_values: {table.name(value)} is the value of {classes[value]}, and also {key}; if "
                f"{without}, add {key}=null, otherwise {key}=VALUE with another value"
            )
    if table.background is not None and table.background == table.ignored:
        raise UserError(
            f"dataset.ignore_value: {table.name(table.background)} is also dataset.background_value; if every other "
            "pixel belongs to a class, add dataset.background_value=null, otherwise change one of the values"
        )
