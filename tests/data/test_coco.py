import json
from pathlib import Path

import pytest
from pycocotools.coco import COCO

from cvexp.data import coco, load
from cvexp.data.index import Index
from cvexp.errors import UserError


def settings(root: Path, classes: list[str], **changed: object) -> coco.Config:
    defaults = {
        "name": "coco",
        "root": str(root),
        "classes": classes,
        "min_crop_size": 32,
        "image_size": 64,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "train_annotations": "annotations/instances_train2017.json",
        "train_images": "train2017",
        "val_annotations": "annotations/instances_val2017.json",
        "val_images": "val2017",
        "crowds": False,
    }
    return coco.Config(**{**defaults, **changed})


FIVE = ["person", "bicycle", "car", "cat", "dog"]


@pytest.mark.parametrize("smallest", [1, 32, 64])
@pytest.mark.parametrize("crowds", [False, True])
def test_index_holds_what_pycocotools_finds(coco_mini: Path, smallest: int, crowds: bool) -> None:
    splits = load(settings(coco_mini, FIVE, min_crop_size=smallest, crowds=crowds))
    for index in splits:
        api = COCO(coco_mini / "annotations" / f"instances_{index.split}2017.json")
        expected = set()
        for label, name in enumerate(FIVE):
            for a in api.loadAnns(api.getAnnIds(catIds=api.getCatIds([name]), iscrowd=None if crowds else False)):
                if min(a["bbox"][2:]) >= smallest:
                    file = f"{index.split}2017/{api.imgs[a['image_id']]['file_name']}"
                    expected.add((file, label, *(round(value, 2) for value in a["bbox"])))
        assert contents(index) == expected
        assert len(index) == len(expected)


def contents(index: Index) -> set[tuple[object, ...]]:
    rows = zip(index.image.tolist(), index.label.tolist(), index.box.astype(float).round(2).tolist(), strict=True)
    return {(index.files[image], label, *box) for image, label, box in rows}


def test_counts_of_all_sizes_equal_those_of_the_data_page(coco_mini: Path) -> None:
    splits = load(settings(coco_mini, FIVE, min_crop_size=1))
    assert (len(splits.train), len(splits.val)) == (883, 253) or (
        # instances whose box is narrower than a pixel are no crops
        883 - len(splits.train) < 5 and 253 - len(splits.val) < 5
    )


def test_fingerprint_changes_with_the_data_and_with_nothing_else(coco_root: Path) -> None:
    first = load(settings(coco_root, ["cat", "dog"])).train.fingerprint()
    assert load(settings(coco_root, ["cat", "dog"], mean=[0.1] * 3)).train.fingerprint() == first
    assert load(settings(coco_root, ["dog", "cat"])).train.fingerprint() != first
    path = coco_root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][0] += 1
    path.write_text(json.dumps(content))
    assert load(settings(coco_root, ["cat", "dog"])).train.fingerprint() != first


def test_validation_images_never_enter_training(coco_root: Path) -> None:
    same = {"val_annotations": "annotations/instances_train2017.json", "val_images": "train2017"}
    with pytest.raises(UserError, match="8 images are in the training and in the validation split"):
        load(settings(coco_root, ["cat", "dog"], **same))


@pytest.mark.parametrize("name", ["../secret.jpg", "/etc/passwd"])
def test_file_names_that_leave_the_root_are_refused(coco_root: Path, name: str) -> None:
    path = coco_root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"][0]["file_name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="leaves the folder"):
        load(settings(coco_root, ["cat", "dog"]))
