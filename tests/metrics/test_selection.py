import pytest

from cvexp.metrics.selection import describe, direction, objective, selects


@pytest.mark.parametrize(
    ("monitor", "expected"), [("last", [0, 1, 2, 3]), ("val/loss", [0, 1]), ("val/feature_rank", [0, 3])]
)
def test_an_epoch_is_selected_if_it_is_later_or_better(monitor: str, expected: list[int]) -> None:
    epochs = [
        {"val/loss": loss, "val/feature_rank": rank} for loss, rank in ((3.0, 2.0), (1.0, 1.0), (2.0, 2.0), (1.0, 5.0))
    ]
    best: dict[str, float] = {}
    selected = []
    for number, metrics in enumerate(epochs):
        if selects(monitor, metrics, best):
            selected.append(number)
            best = metrics
    assert selected == expected


@pytest.mark.parametrize(
    ("monitor", "metric", "to", "words"),
    [
        ("last", "val/loss", "minimize", "epoch 7 of 12: the last one"),
        ("val/loss", "val/loss", "minimize", "epoch 7 of 12: the lowest val/loss"),
        ("val/miou", "val/miou", "maximize", "epoch 7 of 12: the highest val/miou"),
    ],
)
def test_runs_are_compared_by_a_metric_whatever_selects_the_epoch(
    monitor: str, metric: str, to: str, words: str
) -> None:
    assert (objective(monitor), direction(monitor)) == (metric, to)
    assert describe(monitor, 6.0, 12) == words
