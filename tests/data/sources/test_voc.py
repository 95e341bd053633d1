from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from cvexp.data import load
from cvexp.data.crops import Crops
from cvexp.data.sources.voc import CLASSES
from tests.helpers import SIX, dataset, make_voc


@pytest.mark.slow
def test_crops_of_voc6_are_those_of_the_data_page(voc_animals: Path) -> None:
    splits = load(dataset("voc", voc_animals, classes=SIX), "pretraining")
    assert [len(index) for index in splits] == [3162, 528]
    assert [len(index.images) for index in splits] == [2700, 431]


@pytest.mark.parametrize("unlisted", ["background", pytest.param("ignore", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "classes",
    [
        SIX,
        pytest.param(["sheep", "aeroplane"], marks=pytest.mark.slow),
        pytest.param(list(CLASSES), marks=pytest.mark.slow),
    ],
)
def test_label_maps_equal_the_mask_files_for_any_choice_of_classes(
    voc_animals: Path, classes: list[str], unlisted: str
) -> None:
    index = load(dataset("voc", voc_animals, classes=classes, unlisted=unlisted, empty_images=True), "segmentation").val
    names = (voc_animals / "ImageSets" / "Segmentation" / "val.txt").read_text().split()
    assert len(index.images) == len(names) == 431
    for i, name in zip(index.images.tolist(), names, strict=True):
        numbers = np.array(Image.open(voc_animals / "SegmentationClass" / f"{name}.png"))
        expected = np.zeros_like(numbers)
        for number in np.unique(numbers).tolist():
            if number == 255:
                expected[numbers == 255] = 255
            elif number > 0:
                listed = CLASSES[number - 1] in classes
                value = classes.index(CLASSES[number - 1]) + 1 if listed else {"ignore": 255}.get(unlisted, 0)
                expected[numbers == number] = value
        assert np.array_equal(index.label_map(i), expected), name


def test_components_hang_together_by_sides_and_not_by_corners(tmp_path: Path) -> None:
    mask = np.zeros((120, 200))
    mask[0:50, 0:50] = 8
    mask[50:100, 50:100] = 8  # touches the first at a corner
    mask[0:50, 50:90] = 12  # touches it at a side, but is of another class
    mask[100:120, 150:200] = 12  # too low
    mask[0:40, 190:200] = 255
    index = load(dataset("voc", make_voc(tmp_path / "voc", mask)), "pretraining").train
    found = {(index.classes[label], *box) for label, box in zip(index.label, index.box.tolist(), strict=True)}
    assert found == {("cat", 0, 0, 50, 50), ("cat", 50, 50, 50, 50), ("dog", 50, 0, 40, 50)}
    assert ndimage.label(mask == 8)[1] == 2
    assert Crops(index).picture(0).size == (50, 50)


def test_masks_augmented_by_sbd_are_grey_files_in_another_folder(tmp_path: Path) -> None:
    mask = np.full((60, 60), 15)
    root = make_voc(tmp_path / "voc", mask, mode="L", masks="SegmentationClassAug")
    (root / "ImageSets" / "Segmentation" / "train.txt").rename(root / "ImageSets" / "Segmentation" / "trainaug.txt")
    settings = dataset("voc", root, masks="SegmentationClassAug", train_list="ImageSets/Segmentation/trainaug.txt")
    index = load(settings, "segmentation").train
    assert (index.label_map(0) == CLASSES.index("person") + 1).all()
