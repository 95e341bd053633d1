import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from cvexp.data import load, open_splits
from cvexp.data.files.rle import decode
from cvexp.data.index import Index
from cvexp.errors import UserError
from tests.helpers import FIVE, dataset
from tests.oracles.masks import label_map


@pytest.mark.parametrize("smallest", [1, 32, 64])
def test_crops_are_the_objects_that_pycocotools_finds(coco_mini: Path, smallest: int) -> None:
    splits = load(dataset("coco", coco_mini, classes=FIVE, min_crop_size=smallest), "pretraining")
    for index in splits:
        api = COCO(coco_mini / "annotations" / f"instances_{index.split}2017.json")
        expected = set()
        for label, name in enumerate(FIVE):
            for a in api.loadAnns(api.getAnnIds(catIds=api.getCatIds([name]), iscrowd=False)):
                if min(a["bbox"][2:]) >= smallest:
                    file = f"{index.split}2017/{api.imgs[a['image_id']]['file_name']}"
                    expected.add((file, label, *(round(value, 2) for value in a["bbox"])))
        assert contents(index) == expected
        assert len(index) == len(expected)


def contents(index: Index) -> set[tuple[object, ...]]:
    rows = zip(index.image.tolist(), index.label.tolist(), index.box.astype(float).round(2).tolist(), strict=True)
    return {(index.catalog.file(image), label, *box) for image, label, box in rows}


def test_counts_are_those_of_the_data_page(coco_mini: Path) -> None:
    splits = load(dataset("coco", coco_mini, classes=FIVE, min_crop_size=1), "pretraining")
    assert [len(index) for index in splits] == [883, 253]
    images = [
        {name: len(set(index.image[index.label == label].tolist())) for label, name in enumerate(FIVE)}
        for index in splits
    ]
    assert images == [dict(zip(FIVE, counts, strict=True)) for counts in ([171, 14, 29, 16, 10], [49, 8, 15, 4, 8])]
    everything = load(dataset("coco", coco_mini, empty_images=True), "segmentation")
    assert len(everything.train.classes) == 80
    assert sum(len(index.images) for index in everything) == 300
    assert 300 - sum(len(index.images) for index in splits) == 50


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_instance_has_the_mask_of_pycocotools(coco_mini: Path, split: str) -> None:
    index = getattr(load(dataset("coco", coco_mini, empty_images=True), "segmentation"), split)
    api = COCO(coco_mini / "annotations" / f"instances_{split}2017.json")
    images = {f"{split}2017/{image['file_name']}": image["id"] for image in api.imgs.values()}
    compared = 0
    for i in range(len(index.catalog.files)):
        own = [a for a in api.dataset["annotations"] if a["image_id"] == images[index.catalog.file(i)]]
        first, end = index.catalog.first[i], index.catalog.first[i + 1]
        assert end - first == len(own)
        for position, annotation in zip(range(first, end), own, strict=True):
            ours = decode(index.catalog.runs[position], *index.catalog.size[i].tolist())
            assert np.array_equal(ours, api.annToMask(annotation))
            assert ours.sum() == index.catalog.area[position]
            assert index.catalog.crowd[position] == annotation["iscrowd"]
            compared += 1
    assert compared == len(api.anns) > 700


@pytest.mark.parametrize("unlisted", ["background", pytest.param("ignore", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "classes",
    [
        FIVE,
        pytest.param(["dog", "person"], marks=pytest.mark.slow),
        pytest.param(["chair", "dining table", "bottle", "person"], marks=pytest.mark.slow),
    ],
)
def test_every_label_map_equals_one_composed_independently(coco_mini: Path, classes: list[str], unlisted: str) -> None:
    settings = dataset("coco", coco_mini, classes=classes, unlisted=unlisted, empty_images=True)
    values = set()
    for index in load(settings, "segmentation"):
        api = COCO(coco_mini / "annotations" / f"instances_{index.split}2017.json")
        images = {f"{index.split}2017/{image['file_name']}": image["id"] for image in api.imgs.values()}
        for i in index.images.tolist():
            expected = label_map(api, images[index.catalog.file(i)], classes, unlisted == "ignore")
            ours = index.label_map(i)
            assert np.array_equal(ours, expected), index.catalog.file(i)
            values |= set(np.unique(ours).tolist())
    assert values == {0, *range(1, len(classes) + 1), 255}


def test_the_smaller_of_two_objects_lies_on_top_and_crowds_are_ignored(coco_root: Path) -> None:
    def square(category: int, left: int, side: int, **more: object) -> dict[str, object]:
        polygon = [left, 0, left + side, 0, left + side, side, left, side]
        return {"id": left, "image_id": 0, "category_id": category, "segmentation": [polygon], "iscrowd": 0, **more}

    path = coco_root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    crowd = {"size": [60, 80], "counts": [60 * 10, 60 * 2, 60 * 68]}
    content["annotations"] = [
        *(a for a in content["annotations"] if a["image_id"] != 0),
        square(18, 2, 4),
        square(17, 0, 20),
        square(18, 15, 10, bbox=[15, 0, 10, 10]),
        square(1, 30, 9),
        square(17, 0, 0, segmentation=crowd, iscrowd=1),
    ]
    path.write_text(json.dumps(content))
    index = load(dataset("coco", coco_root, classes=["cat", "dog"]), "segmentation").train
    row = index.label_map(0)[2].tolist()
    expected = [1] * 2 + [2] * 4 + [1] * 4 + [255] * 2 + [1] * 3 + [2] * 10 + [0] * 55
    assert row == expected


def test_fingerprint_changes_with_the_data_and_with_nothing_else(coco_root: Path, tmp_path: Path) -> None:
    def fingerprint(root: Path = coco_root, **keys: object) -> str:
        return load(dataset("coco", root, **{"classes": ["cat", "dog"], **keys}), "pretraining").train.fingerprint()

    first = fingerprint()
    assert fingerprint(mean=[0.1] * 3) == first
    coco_root.rename(tmp_path / "moved")
    assert fingerprint(tmp_path / "moved") == first
    (tmp_path / "moved").rename(coco_root)
    others = {fingerprint(classes=["dog", "cat"]), fingerprint(limit=3), fingerprint(unlisted="ignore")}
    path = coco_root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"][0] += 1
    path.write_text(json.dumps(content))
    others.add(fingerprint())
    (coco_root / "train2017" / "train0.jpg").write_bytes((coco_root / "train2017" / "train1.jpg").read_bytes())
    others.add(fingerprint())
    assert len(others) == 5
    assert first not in others


def test_validation_images_never_enter_training(coco_root: Path) -> None:
    same = {"val_annotations": "annotations/instances_train2017.json", "val_images": "train2017"}
    with pytest.raises(UserError, match="8 images are in both the training and the validation split"):
        load(dataset("coco", coco_root, classes=["cat", "dog"], **same), "pretraining")


def test_a_slash_more_does_not_hide_that_images_are_in_both_splits(coco_root: Path) -> None:
    same = {"val_annotations": "annotations/instances_train2017.json", "val_images": "./train2017/"}
    with pytest.raises(UserError, match="8 images are in both the training and the validation split"):
        load(dataset("coco", coco_root, classes=["cat", "dog"], **same), "pretraining")


def test_boxes_are_cut_off_at_the_edge_of_the_image(coco_root: Path) -> None:
    path = coco_root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    boxes = [[-100, 5, 150, 45], [-100, 5, 100, 45], [40, 5, 1e300, 1e300]]
    for annotation, box in zip(content["annotations"], boxes, strict=False):
        annotation["bbox"] = box
    path.write_text(json.dumps(content))
    index = load(dataset("coco", coco_root, classes=["cat", "dog"]), "pretraining").train
    assert index.box[:2].tolist() == [[0, 5, 50, 45], [40, 5, 40, 55]]  # the second has no width left


def test_where_an_object_is_not_known_nothing_counts_as_background(coco_root: Path) -> None:
    path = coco_root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"].append({**content["annotations"][0], "id": 99, "segmentation": [[1, 2]]})
    path.write_text(json.dumps(content))
    cats, dogs = (
        load(dataset("coco", coco_root, classes=[name], strict=False, empty_images=True), "segmentation").train
        for name in ("cat", "dog")
    )
    assert set(np.unique(cats.label_map(0))) == {255}
    assert set(np.unique(dogs.label_map(0))) == {0}  # the lost object is a cat


def test_limit_reads_no_image_that_is_not_drawn(coco_root: Path) -> None:
    settings = dataset("coco", coco_root, classes=["cat", "dog"], limit=3)
    drawn = open_splits(settings, "pretraining").train
    for i in set(range(8)) - set(drawn.images.tolist()):
        drawn.path(i).unlink()
    shutil.rmtree("outputs")
    assert open_splits(settings, "pretraining").train.images.tolist() == drawn.images.tolist()


def test_boxes_without_masks_serve_pretraining_alone(coco_root: Path) -> None:
    for split in ("train", "val"):
        path = coco_root / "annotations" / f"instances_{split}2017.json"
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        path.write_text(json.dumps(content))
    settings = dataset("coco", coco_root, classes=["cat", "dog"])
    assert len(load(settings, "pretraining").train) == 8
    with pytest.raises(UserError, match="has no masks"):
        load(settings, "segmentation")


def test_by_default_all_classes_of_the_file_in_its_order(coco_root: Path) -> None:
    splits = load(dataset("coco", coco_root), "pretraining")
    assert splits.train.classes == splits.val.classes == ("cat", "dog", "person")
    assert splits.train.counts() == {"cat": 4, "dog": 4, "person": 0}


@pytest.fixture
def other_categories(coco_root: Path) -> Path:
    """The validation file has other categories, in another order and by other ids: 5 dogs' ids, birds, no person."""
    path = coco_root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["categories"] = [{"id": 3, "name": "bird"}, {"id": 17, "name": "dog"}, {"id": 1, "name": "cat"}]
    for annotation, category in zip(content["annotations"], (3, 17, 17, 1), strict=True):
        annotation["category_id"] = category
    path.write_text(json.dumps(content))
    return coco_root


@pytest.mark.parametrize(("unlisted", "value"), [("background", 0), ("ignore", 255)])
def test_where_category_lists_differ_the_training_files_number_the_classes(
    other_categories: Path, unlisted: str, value: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings = dataset("coco", other_categories, unlisted=unlisted, empty_images=True)
    splits = load(settings, "segmentation")
    assert splits.train.classes == splits.val.classes == ("cat", "dog", "person")
    assert splits.val.num_objects() == {"cat": 1, "dog": 2, "person": 0}
    assert [set(np.unique(splits.val.label_map(i))) for i in range(4)] == [{0, value}, {0, 2}, {0, 2}, {0, 1}]
    assert "only the val split has the class bird" in caplog.text
    assert load(settings, "pretraining").val.counts() == {"cat": 1, "dog": 2, "person": 0}


def test_a_class_that_is_chosen_must_be_in_one_of_the_files(other_categories: Path) -> None:
    splits = load(dataset("coco", other_categories, classes=["dog", "bird", "person"]), "pretraining")
    assert splits.train.counts() == {"dog": 4, "bird": 0, "person": 0}
    assert splits.val.counts() == {"dog": 2, "bird": 1, "person": 0}
    with pytest.raises(UserError, match=r"dataset\.classes: .* has no class 'birds'; did you mean bird"):
        load(dataset("coco", other_categories, classes=["birds"]), "pretraining")
