import math

import pytest

from cvexp.models.schedules import cosine, linear, warmup_constant, warmup_cosine


@pytest.mark.parametrize("steps", [3, 100, 3_000_000])
def test_schedules_equal_their_closed_forms_whatever_the_length(steps: int) -> None:
    for step in {0, 1, steps // 3, steps // 2, steps - 1, steps}:
        done = step / steps
        assert linear(done, 2, 5) == pytest.approx(2 + 3 * done)
        assert cosine(done, 0.996, 1) == pytest.approx(1 - 0.004 * (math.cos(math.pi * step / steps) + 1) / 2)
        if done < 0.25:
            assert warmup_cosine(done, 0.25, 8, 1) == pytest.approx(8 * done / 0.25)
            assert warmup_constant(done, 0.25, 0.02, 0.04) == pytest.approx(0.02 + 0.02 * done / 0.25)
        else:
            after = (done - 0.25) / 0.75
            assert warmup_cosine(done, 0.25, 8, 1) == pytest.approx(1 + 7 * (1 + math.cos(math.pi * after)) / 2)
            assert warmup_constant(done, 0.25, 0.02, 0.04) == 0.04


@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_no_warmup_and_nothing_but_warmup_are_defined_everywhere(warmup: float) -> None:
    values = [warmup_cosine(step / 10, warmup, 1.0, 0.0) for step in range(11)]
    assert all(0 <= value <= 1 for value in values)
    assert values[0] == 1 - warmup
