"""Which runs of a comparison are paired, and what represents them."""

import numpy as np
import pytest

from cvexp.metrics import iou
from cvexp.metrics.bootstrap import paired_difference
from cvexp.metrics.comparison import Comparison, Evaluated, Group, differences

CLASSES = ("cat", "dog")


def random_counts(seed: int, quality: float = 0.6) -> iou.Counts:
    """Counts of 20 images with fewer pixels of cats than of dogs."""
    random = np.random.default_rng(seed)
    labeled = np.stack([random.integers(low, 2 * low, 20) for low in (400, 20, 60)], axis=-1)
    intersection = random.binomial(labeled, quality)
    return np.stack([intersection, intersection + 5, labeled], axis=-1)


def evaluated(method: str, start: str, seed: int, quality: float = 0.6) -> Evaluated:
    number = hash_of(method, start, seed)
    return Evaluated(f"{method}-{start}-{seed}", method, start, seed, random_counts(number, quality), (1.0,), 10)


def hash_of(*parts: object) -> int:
    return sum(ord(character) for character in str(parts))


def compare(*runs: Evaluated) -> Comparison:
    return Comparison(CLASSES, [f"{i}.jpg" for i in range(20)], runs, differences(runs, 200, 0.95), 0.95)


def test_methods_are_compared_from_each_start_and_each_start_with_random_weights() -> None:
    runs = [
        evaluated(method, start, seed)
        for method in ("multiclass", "attention")
        for start in ("dino", "random")
        for seed in (0, 1)
    ]
    found = {difference.name: difference for difference in differences(runs, 200, 0.95)}
    assert {name: difference.num_pairs for name, difference in found.items()} == {
        "attention - multiclass, from dino": 2,
        "attention - multiclass, from random": 2,
        "attention - multiclass, from all": 4,
        "dino - random, multiclass": 2,
        "dino - random, attention": 2,
    }
    assert [d.is_between_methods for d in found.values()] == [True] * 3 + [False] * 2
    counts = {run.run_id: run.counts[:, 1:] for run in runs}
    first, second = (
        np.stack([counts[f"multiclass-{start}-{seed}"] for seed in (0, 1)]) for start in ("dino", "random")
    )
    assert found["dino - random, multiclass"].interval == paired_difference(first, second, 200, 0.95)


def test_only_equal_seeds_and_starts_are_paired() -> None:
    runs = [evaluated("multiclass", "random", 0), evaluated("multiclass", "random", 1)]
    assert differences(runs, 200, 0.95) == []
    assert differences([*runs, evaluated("attention", "random", 2)], 200, 0.95) == []
    assert differences([*runs, evaluated("attention", "dino", 1)], 200, 0.95) == []
    (only,) = differences([*runs, evaluated("attention", "random", 1)], 200, 0.95)
    assert (only.first, only.second) == (Group("attention", "random"), Group("multiclass", "random"))
    assert only.num_pairs == 1


def test_constant_predictions_are_the_largest_class_and_the_background() -> None:
    run = evaluated("multiclass", "random", 0)
    largest, background = compare(run).constants()
    assert (largest.label, background.label) == ("dog", "background")
    labeled = run.counts[:, :, 2].sum(axis=0)
    assert largest.scores["pixel_accuracy"] == pytest.approx(labeled[2] / labeled.sum())
    assert background.scores["pixel_accuracy"] == pytest.approx(labeled[0] / labeled.sum())
    assert background.scores["miou"] == 0


def test_methods_are_represented_from_the_best_start_that_all_have() -> None:
    runs = [
        evaluated("multiclass", "random", 0, 0.3),
        evaluated("multiclass", "random", 1, 0.9),
        evaluated("multiclass", "timm", 0, 0.99),
        evaluated("multiclass", "dino", 3, 0.8),
        evaluated("attention", "random", 0, 0.5),
        evaluated("attention", "dino", 4, 0.8),
    ]
    assert [run.run_id for run in compare(*runs).representatives()] == ["multiclass-dino-3", "attention-dino-4"]
    assert [run.run_id for run in compare(*runs[:4]).representatives()] == ["multiclass-timm-0"]
    alone = [evaluated("multiclass", "random", 0, 0.3), evaluated("attention", "dino", 0, 0.8)]
    assert [run.run_id for run in compare(*alone).representatives()] == ["attention-dino-0"]
