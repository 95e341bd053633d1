"""Fields of the configuration's schema: which values a key may have, besides its type.

A field with `choice`, `number` or `numbers` states them once, for the check, the reference and the JSON schema. What
several keys must fulfill together is checked in the `__post_init__` of their class.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from cvexp.errors import UserError, nearest

ALLOWED = "allowed"  # in the metadata of a field


def require(condition: bool, key: str, got: object, needed: str) -> None:
    """Raise a UserError that names the key unless the condition holds."""
    if not condition:
        raise UserError(f"{key}: got {got!r}, but it must be {needed}")


def require_one_of(key: str, got: str, known: Iterable[str]) -> None:
    """Raise a UserError with the nearest known value unless `got` is one of `known`."""
    if got not in (known := list(known)):
        raise UserError(f"{key}: there is no {got!r}; {nearest(got, known)}")


@dataclass(frozen=True)
class Choice:
    """The words that a key may have, or each item of its list."""

    words: Sequence[str] | Callable[[Any], Sequence[str]]

    def known(self, owner: type) -> list[str]:
        """List the words, which may depend on the class of the configuration."""
        return list(self.words(owner) if callable(self.words) else self.words)


@dataclass(frozen=True, kw_only=True)
class Range:
    """The numbers that a key may have, or each item of its list.

    Attributes:
        length: Number of items of the list; None for a number, or a list of any length.
        unit: What the number counts or measures.
        described: What a list must be, if the bounds do not say it.
        fits: What else must hold for a list within the bounds.
    """

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    length: int | None = None
    unit: str = ""
    described: str = ""
    fits: Callable[[list[float]], bool] = lambda values: True

    @property
    def needed(self) -> str:
        """What the value must be, to complete "it must be ..."."""
        return self.described or self._bounds + (f" ({self.unit})" if self.unit else "")

    @property
    def _bounds(self) -> str:
        low, high = self.at_least, self.at_most
        if self.above is not None and self.below is not None:
            return f"between {self.above} and {self.below}"
        if self.above is not None and high is not None:
            return f"greater than {self.above}, and at most {high}"
        if self.above is not None:
            return "positive" if self.above == 0 else f"greater than {self.above}"
        if self.below is not None:
            return f"from {low} to below {self.below}"
        return f"at least {low}" if high is None else f"from {low} to {high}"

    def holds(self, value: float) -> bool:
        """Return whether a finite number is within the bounds."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


Allowed = Choice | Range


def choice(*words: str, of: Callable[[Any], Sequence[str]] | None = None) -> Any:
    """Declare a key that is one of several words, or a list of some of them.

    Args:
        words: The words.
        of: Instead of them, a function that lists the words for the class of the configuration.
    """
    return _declare(Choice(of or words))


def number(
    at_least: float | None = None,
    *,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    unit: str = "",
) -> Any:
    """Declare a key that is a number within bounds, or a list of such numbers."""
    return _declare(Range(at_least=at_least, above=above, at_most=at_most, below=below, unit=unit))


def share() -> Any:
    """Declare a key that is from 0 to 1."""
    return number(0, at_most=1)


def numbers(length: int, described: str, **more: Any) -> Any:
    """Declare a key that is a list of some length, of numbers within bounds.

    Args:
        length: Number of items.
        described: What the list must be.
        more: Other attributes of `Range`.
    """
    return _declare(Range(length=length, described=described, **more))


def area_scale() -> Any:
    """Declare a key that is a range of shares of an area."""
    described = "two shares of the area, 0 < smallest <= largest <= 1"
    return numbers(2, described, above=0, at_most=1, fits=lambda values: values[0] <= values[1])


def color_jitter() -> Any:
    """Declare a key that is the strength of a color jitter."""
    described = "brightness, contrast, saturation >= 0, and hue from 0 to 0.5"
    return numbers(4, described, at_least=0, fits=lambda values: values[3] <= 0.5)


def _declare(allowed: Allowed) -> Any:
    return field(default=MISSING, metadata={ALLOWED: allowed})


@dataclass(frozen=True)
class Key:
    """What the schema says about a key.

    Attributes:
        kind: The type, such as `int`, or `list[str]`; `Any` if it has several.
        is_optional: Whether it may be null.
        allowed: Which values it may have, besides its type; None for all.
        owner: The class of the configuration.
    """

    kind: Any
    is_optional: bool
    allowed: Allowed | None
    owner: type

    @property
    def item(self) -> Any:
        """The type of the items of a list, or of the value itself."""
        return get_args(self.kind)[0] if get_origin(self.kind) is list else self.kind

    def check(self, name: str, value: Any) -> None:
        """Raise a UserError that names the key unless its value, which has the right type, is allowed."""
        if self.allowed is None or value is None:
            return
        items = value if isinstance(value, list) else [value]
        if isinstance(self.allowed, Choice):
            for word in items:
                require_one_of(name, word, self.allowed.known(self.owner))
            return
        needed = self.allowed.needed + (", or null" if self.is_optional else "")
        require(self.allowed.length in (None, len(items)), name, value, needed)
        require(all(map(math.isfinite, items)), name, value, f"a finite number, {needed}")
        require(all(map(self.allowed.holds, items)) and self.allowed.fits(items), name, value, needed)


def keys_of(owner: type) -> dict[str, Key]:
    """Return what the schema says about each key of a configuration's class."""
    hints = get_type_hints(owner)
    keys = {}
    for each in fields(owner):
        kind, is_optional = hints[each.name], False
        if get_origin(kind) in (Union, types.UnionType):
            kind, is_optional = next(part for part in get_args(kind) if part is not types.NoneType), True
        metadata: Mapping[str, Allowed] = each.metadata
        keys[each.name] = Key(kind, is_optional, metadata.get(ALLOWED), owner)
    return keys


def check_values(config: object, prefix: str = "") -> None:
    """Raise a UserError that names the first key of a configuration whose value is not allowed."""
    for name, key in keys_of(type(config)).items():
        key.check(prefix + name, getattr(config, name))
