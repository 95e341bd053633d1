import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score
from torchmetrics.functional.classification import multiclass_jaccard_index

from cvexp.metrics import iou
from tests.oracles.iou import class_iou

IGNORE = 255
NUM_CLASSES = 4  # without the background
NAMES = ("a", "b", "c", "d")


def random_maps(seed: int, num_images: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Return predictions and labels that agree at half of the pixels. A tenth of the pixels is ignored."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, NUM_CLASSES + 1, (num_images, 8, 9), generator=generator)
    other = torch.randint(0, NUM_CLASSES + 1, labels.shape, generator=generator)
    predicted = torch.where(torch.rand(labels.shape, generator=generator) < 0.5, labels, other)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = IGNORE
    return predicted, labels


def counts(predicted: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    return iou.count_labels(predicted, labels, NUM_CLASSES, IGNORE).numpy()


@given(
    st.lists(st.tuples(st.integers(0, NUM_CLASSES), st.sampled_from([0, 1, 2, 3, 4, IGNORE])), min_size=1, max_size=40),
)
@settings(max_examples=200, deadline=None)
def test_iou_equals_plain_loops(pixels: list[tuple[int, int]]) -> None:
    predicted, labels = (torch.tensor(values).view(1, 1, -1) for values in zip(*pixels, strict=True))
    ours = iou.iou(counts(predicted, labels)[0])
    for value in range(NUM_CLASSES + 1):
        expected = class_iou([p for p, _ in pixels], [y for _, y in pixels], value, IGNORE)
        assert math.isnan(ours[value]) if expected is None else ours[value] == expected


@pytest.mark.parametrize("seed", range(5))
def test_iou_equals_scikit_learns_and_torchmetrics(seed: int) -> None:
    predicted, labels = random_maps(seed)
    total = counts(predicted, labels).sum(axis=0)
    valid = labels != IGNORE
    reference = jaccard_score(labels[valid], predicted[valid], labels=range(NUM_CLASSES + 1), average=None)
    np.testing.assert_allclose(iou.iou(total), reference)
    metric = multiclass_jaccard_index(predicted, labels, NUM_CLASSES + 1, average="none", ignore_index=IGNORE)
    np.testing.assert_allclose(iou.iou(total), metric.numpy(), rtol=1e-6)
    accuracy = (predicted == labels)[valid].double().mean().item()
    assert iou.summarize(counts(predicted, labels), NAMES)["pixel_accuracy"] == pytest.approx(accuracy)


def test_an_absent_class_has_no_iou_and_is_left_out_of_the_mean() -> None:
    labels = torch.tensor([[[0, 0, 1, 1, 2, IGNORE]]])
    predicted = torch.tensor([[[0, 1, 1, 1, 2, 4]]])  # no class 3; class 4 only at the ignored pixel
    summary = iou.summarize(counts(predicted, labels), NAMES)
    assert "iou/c" not in summary
    assert "iou/d" not in summary
    assert summary["miou"] == pytest.approx((2 / 3 + 1) / 2)
    assert summary["miou_all"] == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)


def test_a_class_that_is_only_predicted_or_only_labeled_has_an_iou_of_zero() -> None:
    total = counts(torch.tensor([[[1, 0]]]), torch.tensor([[[0, 2]]])).sum(axis=0)
    assert iou.iou(total)[:3].tolist() == [0.0, 0.0, 0.0]
    assert np.isnan(iou.iou(total)[3:]).all()


def test_there_are_no_scores_if_all_pixels_are_ignored() -> None:
    labels = torch.full((2, 3, 3), IGNORE)
    assert iou.summarize(counts(torch.ones_like(labels), labels), NAMES) == {}


@pytest.mark.parametrize("seed", range(3))
def test_each_mask_is_counted_like_a_label_map_of_one_class(seed: int) -> None:
    predicted, labels = random_maps(seed)
    queries = torch.arange(NUM_CLASSES).expand(len(labels), -1)
    masks = predicted[:, None] == queries[:, :, None, None] + 1
    np.testing.assert_array_equal(
        iou.count_masks(masks, labels, queries, IGNORE).numpy(), counts(predicted, labels)[:, 1:]
    )


def test_empty_masks_of_absent_classes_have_no_iou() -> None:
    labels = torch.ones(1, 2, 2, dtype=torch.long)
    queries = torch.tensor([[0, 1]])
    masks = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    assert iou.iou(iou.count_masks(masks, labels, queries, IGNORE)[0].numpy()).tolist()[0] == 0.0
    assert np.isnan(iou.iou(iou.count_masks(masks, labels, queries, IGNORE)[0].numpy())[1])


@pytest.mark.parametrize("seed", range(3))
def test_the_courses_formula_equals_plain_loops(seed: int) -> None:
    predicted, labels = random_maps(seed, num_images=4)
    labels[0][labels[0] == 3] = 0
    predicted[0][predicted[0] == 3] = 0
    values = []
    for p, y in zip(predicted, labels, strict=True):
        valid = y != IGNORE
        for c in range(1, NUM_CLASSES + 1):
            intersection = int(((p == c) & (y == c) & valid).sum())
            union = int((((p == c) | (y == c)) & valid).sum())
            if union:
                values.append(intersection / (union + 1))
    assert iou.image_iou(counts(predicted, labels)[:, 1:]) == pytest.approx(np.mean(values))


def test_presence_is_decided_by_masks_that_are_not_empty() -> None:
    labels = torch.tensor([[[1, 1]], [[2, 0]], [[0, 0]]])
    predicted = torch.tensor([[[1, 0]], [[3, 0]], [[0, 0]]])  # one correct, one missed, one false positive
    assert iou.presence_f1(counts(predicted, labels)[:, 1:]) == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))


def test_counts_add_up_over_batches() -> None:
    predicted, labels = random_maps(7, num_images=6)
    parts = [counts(predicted[i : i + 2], labels[i : i + 2]) for i in range(0, 6, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), counts(predicted, labels))


@pytest.mark.parametrize("label", range(NUM_CLASSES + 1))
def test_counts_of_a_constant_prediction_equal_those_of_its_label_map(label: int) -> None:
    predicted, labels = random_maps(3)
    labels[1][labels[1] == label] = 0
    labels[2] = IGNORE
    constant = iou.count_constant(counts(predicted, labels), label)
    np.testing.assert_array_equal(constant, counts(torch.full_like(predicted, label), labels))
    assert iou.summarize(constant, NAMES) == iou.summarize(counts(torch.full_like(labels, label), labels), NAMES)
