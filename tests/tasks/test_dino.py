from collections.abc import Callable

import pytest

from tests.conftest import TINY, Outcome, runs

LONGER = ["dataset.train_images=24", "trainer.max_epochs=3"]
COLLAPSES = {
    "nothing centres": (
        ["task.center_momentum=1", "task.teacher_momentum=0.9", "optimizer.lr=0.01"],  # soon
        "gives all images the same output",
    ),
    "nothing sharpens": (["task.warmup_teacher_temperature=1", "task.teacher_temperature=1"], "output is uniform"),
}


@pytest.mark.parametrize("name", COLLAPSES)
def test_a_run_that_collapses_warns(name: str, cvexp: Callable[..., Outcome]) -> None:
    overrides, words = COLLAPSES[name]
    outcome = cvexp(*TINY, *LONGER, *overrides)
    assert outcome.code == 0
    assert "warning, step" in outcome.message
    assert words in " ".join(outcome.message.split())  # of lines that may be wrapped
    assert words in runs()[0].data.tags["warning"]


def test_a_run_that_does_not_collapse_does_not_warn(cvexp: Callable[..., Outcome]) -> None:
    outcome = cvexp(*TINY, *LONGER)
    assert outcome.code == 0
    assert "collapse" not in outcome.message
    assert "warning" not in runs()[0].data.tags
