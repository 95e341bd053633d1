import math

import pytest
import torch
from scipy.stats import entropy as scipy_entropy

from cvexp.metrics.collapse import (
    effective_rank,
    entropy,
    feature_std,
    feature_warnings,
    kl_from_uniform,
    teacher_warnings,
)


def test_entropy_and_divergence_equal_scipys() -> None:
    p = torch.softmax(torch.randn(6, 9, dtype=torch.double), -1)
    assert entropy(p) == pytest.approx(scipy_entropy(p.numpy(), axis=-1).mean())
    assert kl_from_uniform(p[0]) == pytest.approx(
        scipy_entropy(p[0].numpy(), torch.full((9,), 1 / 9).numpy()), abs=1e-6
    )


def test_one_hot_and_uniform_outputs_have_extreme_values() -> None:
    assert entropy(torch.eye(5)) == 0
    assert kl_from_uniform(torch.eye(5).mean(0)) == pytest.approx(0, abs=1e-7)
    assert kl_from_uniform(torch.eye(5)[0]) == pytest.approx(math.log(5))
    assert entropy(torch.full((2, 5), 0.2)) == pytest.approx(math.log(5))


def test_independent_features_have_standard_deviation_one_by_root_d_and_full_rank() -> None:
    torch.manual_seed(0)
    x = torch.randn(4000, 16)
    assert feature_std(x) == pytest.approx(1 / math.sqrt(16), rel=0.02)
    assert effective_rank(x) == pytest.approx(16, rel=0.01)


@pytest.mark.parametrize("rank", [1, 3])
def test_effective_rank_counts_equally_strong_directions(rank: int) -> None:
    q, _ = torch.linalg.qr(torch.randn(50, rank, dtype=torch.double))
    r, _ = torch.linalg.qr(torch.randn(20, rank, dtype=torch.double))
    assert effective_rank(5 * q @ r.T) == pytest.approx(rank, rel=1e-6)


def warnings(measures: dict[str, float]) -> list[str]:
    return teacher_warnings(measures, out_dim=1024) + feature_warnings(measures, feature_dim=512)


HEALTHY = {"teacher_entropy": 3.0, "teacher_kl": 0.4, "feature_std": 0.04, "feature_rank": 60.0}


def test_healthy_measures_raise_no_warning() -> None:
    assert warnings(HEALTHY) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"teacher_entropy": math.log(1024)}, "uniform"),
        ({"teacher_kl": math.log(1024)}, "all images the same output"),
        ({"feature_std": 1e-4}, "same way"),
        ({"feature_rank": 1.01}, "hardly one dimension"),
    ],
)
def test_each_type_of_collapse_has_a_warning(changed: dict[str, float], words: str) -> None:
    (warning,) = warnings(HEALTHY | changed)
    assert words in warning
