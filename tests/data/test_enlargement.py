"""Views much larger than the pictures are reported once, with the sizes that suit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cvexp.data.enlargement import suitable_size
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, save_image, save_mask


@pytest.mark.parametrize(
    ("sides", "size", "expected"),
    [
        ([32] * 9, 96, 32),
        ([32] * 9, 48, None),  # half as large again, which is common
        ([32] * 9, 32, None),
        ([28] * 9, 224, 32),
        ([100] * 9, 256, 96),
        ([32] * 4 + [200] * 5, 96, None),  # most are large enough
        ([32] * 5 + [200] * 4, 96, 32),
        ([4] * 9, 32, None),  # no smaller size suits a network
        ([], 96, None),
    ],
)
def test_a_size_is_suggested_where_most_pictures_are_much_smaller(
    sides: list[int], size: int, expected: int | None
) -> None:
    assert suitable_size(np.array(sides), size) == expected


def make_cifar(root: Path, side: int) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            for i in range(4):
                save_image(root / split / name / f"{i}.png", size=(side, side))


@pytest.mark.slow
@pytest.mark.parametrize(("side", "reported"), [(32, 1), (90, 0)])
def test_dino_names_the_sizes_to_set(cvexp: Callable[..., Outcome], side: int, reported: int) -> None:
    make_cifar(Path("cifar"), side)
    tiny = [argument for argument in TINY if not argument.startswith(("dataset.", "task.global_size"))]
    outcome = cvexp(*tiny, "dataset=folder", "dataset.root=cifar", "trainer.max_steps=1")
    assert outcome.code == 0, outcome.message
    advice = "task.global_size=32 task.eval_size=32 task.local_size=16"
    assert outcome.message.count(advice) == outcome.message.count("enlarged") == reported
    again = cvexp(*tiny, "dataset=folder", "dataset.root=cifar", "trainer.max_steps=1", *advice.split())
    assert again.code == 0, again.message
    assert "enlarged" not in again.message


@pytest.mark.parametrize(("size", "reported"), [(160, 1), (64, 0)])
def test_segmentation_names_the_size_to_set(cvexp: Callable[..., Outcome], size: int, reported: int) -> None:
    for split in ("train", "val"):
        for i in range(4):
            save_image(Path("mine") / split / f"{i}.jpg")
            save_mask(Path("mine") / split / f"{i}.png", 0, 1)
    tiny = [argument for argument in TINY_SEGMENTATION if not argument.startswith("dataset.")]
    data = ["dataset=folder", "dataset.root=mine", "dataset.train_masks=train", "dataset.val_masks=val"]
    data += ["dataset.mask_values={x: 1}", f"dataset.image_size={size}", "trainer.max_steps=1"]
    outcome = cvexp(*tiny, "task=multiclass", *data)
    assert outcome.code == 0, outcome.message
    assert outcome.message.count("dataset.image_size=48") == outcome.message.count("enlarged") == reported
