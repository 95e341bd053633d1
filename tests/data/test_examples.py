"""The same items each time, spread over what there is."""

from pathlib import Path

import pytest

from cvexp.data import load, open_splits
from cvexp.data.examples import choose_images, sample
from tests.helpers import CAT, DOG, dataset, write_coco, write_coco_objects


@pytest.mark.parametrize(
    ("labels", "count", "chosen"),
    [
        ([CAT, CAT, CAT, CAT, None, None, CAT, DOG], 2, {0, 7}),
        ([CAT, CAT, CAT, CAT, None, None, CAT, DOG], 4, {0, 7, 3, 1}),
        ([None, CAT, None], 5, {1}),
        ([None] * 5, 3, {0, 2, 4}),
        ([CAT, DOG], 0, set()),
    ],
)
def test_pictured_images_are_spread_over_the_classes(
    tmp_path: Path, labels: list[int | None], count: int, chosen: set[int]
) -> None:
    settings = dataset("coco", write_coco_objects(tmp_path / "coco", labels), classes=["dog", "cat"], empty_images=True)
    assert choose_images(open_splits(settings, "segmentation").val, count) == chosen


def test_a_sample_is_in_order_and_the_same_each_time(tmp_path: Path) -> None:
    index = load(dataset("coco", write_coco(tmp_path / "coco", train=40), classes=["cat", "dog"]), "pretraining").train
    chosen = sample(index, 10)
    assert len(set(chosen)) == 10
    assert chosen == sorted(chosen) == sample(index, 10)
    assert chosen != list(range(10))
    assert set(sample(index, 5)) < set(chosen)
    assert sample(index, 1000) == list(range(40))
