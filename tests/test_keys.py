"""The fields of the schema: which values they allow, and what their messages say."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from cvexp.composition import CONF, compose
from cvexp.errors import UserError
from cvexp.keys import (
    Choice,
    Key,
    Range,
    area_scale,
    check_values,
    choice,
    color_jitter,
    keys_of,
    number,
    numbers,
    share,
)


@dataclass(kw_only=True)
class Example:
    words: ClassVar[list[str]] = ["own"]

    size: int = number(2, unit="pixels")
    limit: int | None = number(1)
    ratio: float = share()
    rate: float = number(above=0, at_most=1)
    level: float = number(0.5, below=1)
    open: float = number(above=0, below=1)
    weight: float = number(above=0)
    rates: list[int] = numbers(3, "three whole numbers, at least 1", at_least=1)
    scale: list[float] = area_scale()
    jitter: list[float] = color_jitter()
    kind: str = choice("red", "green")
    kinds: list[str] | None = choice("red", "green")
    own: str = choice(of=lambda owner: owner.words)
    text: str = ""


VALID: dict[str, Any] = {
    "size": 2,
    "limit": None,
    "ratio": 0,
    "rate": 1,
    "level": 0.5,
    "open": 0.5,
    "weight": 1e-9,
    "rates": [1, 1, 9],
    "scale": [0.3, 0.3],
    "jitter": [9, 0, 0, 0.5],
    "kind": "red",
    "kinds": ["green", "red"],
    "own": "own",
    "text": "",
}


def test_values_at_the_bounds_are_allowed() -> None:
    check_values(Example(**VALID))
    check_values(Example(**{**VALID, "limit": 1, "ratio": 1, "kinds": None}))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("size", 1, "a.size: got 1, but it must be at least 2 (pixels)"),
        ("limit", 0, "a.limit: got 0, but it must be at least 1, or null"),
        ("ratio", 1.1, "a.ratio: got 1.1, but it must be from 0 to 1"),
        ("rate", 0, "a.rate: got 0, but it must be greater than 0, and at most 1"),
        ("level", 1, "a.level: got 1, but it must be from 0.5 to below 1"),
        ("open", 1, "a.open: got 1, but it must be between 0 and 1"),
        ("weight", 0, "a.weight: got 0, but it must be positive"),
        ("weight", float("inf"), "a.weight: got inf, but it must be a finite number, positive"),
        ("weight", float("nan"), "a.weight: got nan, but it must be a finite number, positive"),
        ("rates", [1, 1], "a.rates: got [1, 1], but it must be three whole numbers, at least 1"),
        ("rates", [1, 1, 0], "a.rates: got [1, 1, 0], but it must be three whole numbers, at least 1"),
        ("scale", [0.5, 0.4], "a.scale: got [0.5, 0.4], but it must be two shares of the area"),
        ("jitter", [0, 0, 0, 0.6], "a.jitter: got [0, 0, 0, 0.6], but it must be brightness"),
        ("kind", "reed", "a.kind: there is no 'reed'; did you mean red"),
        ("kinds", ["red", "grey"], "a.kinds: there is no 'grey'; did you mean green"),
        ("own", "red", "a.own: there is no 'red'; known: own"),
    ],
)
def test_other_values_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(UserError) as raised:
        check_values(Example(**{**VALID, key: value}), "a.")
    assert str(raised.value).startswith(message)


def test_the_schema_says_what_a_key_is() -> None:
    keys = keys_of(Example)
    assert list(keys) == list(VALID)
    assert keys["limit"] == Key(int, True, Range(at_least=1), Example)
    assert keys["kinds"] == Key(list[str], True, Choice(("red", "green")), Example)
    assert keys["kinds"].item is str
    assert keys["text"].allowed is None


@pytest.mark.parametrize("task", sorted(path.stem for path in (CONF / "task").glob("*.yaml")))
def test_values_are_checked_in_every_task(task: str) -> None:
    """A class whose `__post_init__` does not call that of its base is checked, too."""
    with pytest.raises(UserError, match=r"^dataset\.limit: got 0"):
        compose(f"task={task}", "dataset.limit=0")
    with pytest.raises(UserError, match=r"^seed: got -1, but it must be from 0 to 4294967295"):
        compose(f"task={task}", "seed=-1")
