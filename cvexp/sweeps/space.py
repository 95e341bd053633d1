"""Search spaces, written as Hydra's sweeps on the command line or in YAML, as distributions of Optuna."""

from __future__ import annotations

import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    RangeSweep,
    Transformer,
)
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from cvexp.errors import UserError

SYNTAX = "choice(a,b), range(1,10), interval(0.1,1), int(interval(1,9)), or tag(log,interval(1e-4,1))"


def split(overrides: Sequence[str]) -> tuple[dict[str, str], dict[str, BaseDistribution]]:
    """Divide overrides into fixed ones, by key, and the search space.

    Raises:
        UserError: if an override is a sweep without a distribution, or there is no search space.
    """
    fixed: dict[str, str] = {}
    space: dict[str, BaseDistribution] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element()
        fixed.pop(key, None)
        space.pop(key, None)
        if override.is_sweep_override():
            space[key] = _distribution(key, override)
        else:
            fixed[key] = f"{key}={override.get_value_element_as_str()}"
    if not space:
        raise UserError(
            f"hydra.sweeper.params: there is nothing to search; choose +search=NAME, or give a key a range: {SYNTAX}"
        )
    return fixed, space


def _distribution(key: str, override: Override) -> BaseDistribution:
    value: Any = override.value()
    is_log = "log" in getattr(value, "tags", ())
    try:
        if override.is_choice_sweep():
            assert isinstance(value, ChoiceSweep)
            choices = [str(choice) for choice in override.sweep_iterator(Transformer.encode)]
            return CategoricalDistribution(choices)
        if isinstance(value, RangeSweep):
            numbers = (value.start or 0, value.stop, value.step)
            start, stop, step = (Decimal(str(number)) for number in numbers)
            last = start + step * (math.ceil((stop - start) / step) - 1)  # the end is exclusive, as in Python
            if all(isinstance(number, int) for number in numbers):
                return IntDistribution(int(start), int(last), log=is_log, step=1 if is_log else int(step))
            return FloatDistribution(float(start), float(last), log=is_log, step=None if is_log else float(step))
        assert isinstance(value, IntervalSweep)
        assert value.start is not None
        assert value.end is not None
        if isinstance(value.start, int) and isinstance(value.end, int):
            return IntDistribution(value.start, value.end, log=is_log)
        return FloatDistribution(float(value.start), float(value.end), log=is_log)
    except (ValueError, AssertionError, TypeError, ArithmeticError) as error:
        given = override.input_line or value
        raise UserError(f"{key}: {given} is no range to search ({error}); use {SYNTAX}") from error


def as_override(key: str, value: object) -> str:
    """Return the override that gives a key a value from the search space."""
    return f"{key}={value!r}" if isinstance(value, float) else f"{key}={value}"
