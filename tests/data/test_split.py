"""Data of one split: part of the training images validates, or there is nothing to train on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvexp.data import load, open_splits
from cvexp.data.index import Index, Splits
from cvexp.errors import UserError
from tests.helpers import (
    TINY,
    TINY_SEGMENTATION,
    Outcome,
    dataset,
    make_voc,
    runs,
    save_image,
    save_mask,
    store,
    write_coco,
)

MASKS = {"train_masks": "train", "val_masks": "val", "mask_values": {"x": 1}}


def make_many_voc(root: Path, num_train: int = 40) -> Path:
    mask = np.zeros((60, 60))
    mask[5:50, 5:50] = 8
    make_voc(root, mask)
    for i in range(num_train):
        save_image(root / "JPEGImages" / f"{i}.jpg", size=(60, 60))
        (root / "SegmentationClass" / f"{i}.png").write_bytes((root / "SegmentationClass" / "a.png").read_bytes())
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("\n".join(map(str, range(num_train))) + "\n")
    return root


def make_folder(root: Path, num_train: int = 40) -> Path:
    for split, count in (("train", num_train), ("val", 4)):
        for i in range(count):
            save_image(root / split / f"{i}.jpg")
            save_mask(root / split / f"{i}.png", 1)
    return root


# How each source is made, and what its configuration says of both splits.
SOURCES: dict[str, tuple[Callable[[Path, int], Path], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "coco": (
        write_coco,
        {"classes": ["cat", "dog"]},
        {"train_annotations": None, "train_images": None},
        {"val_annotations": None, "val_images": None},
    ),
    "voc": (make_many_voc, {"classes": ["cat"]}, {"train_list": None}, {"val_list": None}),
    "folder": (make_folder, MASKS, {"train_images": None, "train_masks": None}, {"val_images": None}),
}


def names(index: Index) -> set[str]:
    return {index.catalog.file(i) for i in index.images.tolist()}


@pytest.mark.parametrize("source", SOURCES)
def test_without_validation_data_a_part_of_the_training_images_validates(tmp_path: Path, source: str) -> None:
    make, keys, _, without_val = SOURCES[source]
    root = make(tmp_path / "data", 40)
    whole = load(dataset(source, root, **keys), "segmentation").train
    settings = dataset(source, root, **keys, **without_val, val_fraction=0.25)
    splits = load(settings, "segmentation")
    assert names(splits.train) | names(splits.val) == names(whole)
    assert not names(splits.train) & names(splits.val)
    assert 4 <= len(splits.val.images) <= 18
    position_of = {whole.catalog.file(i): i for i in whole.images.tolist()}
    for index in splits:
        assert len(index) == len(index.images)
        for i in index.images.tolist():
            assert np.array_equal(index.label_map(i), whole.label_map(position_of[index.catalog.file(i)]))
    more = load(dataset(source, root, **keys, **without_val, val_fraction=0.5), "segmentation").val
    assert names(splits.val) < names(more)
    smallest = load(dataset(source, root, **keys, **without_val, val_fraction=1e-9), "segmentation").val
    assert len(names(smallest)) == 1


@pytest.mark.parametrize("source", SOURCES)
def test_without_training_data_there_is_a_validation_split(tmp_path: Path, source: str) -> None:
    make, keys, without_train, _ = SOURCES[source]
    root = make(tmp_path / "data", 4)
    val = load(dataset(source, root, **keys), "segmentation").val
    settings = dataset(source, root, **{**keys, **without_train})
    for use in ("segmentation", "pretraining"):
        splits = load(settings, use, needs_training=False)
        assert len(splits.train.images) == len(splits.train) == 0
        assert splits.train.classes == val.classes
        assert splits.val.fingerprint() == val.fingerprint()
        assert isinstance(open_splits(settings, use), Splits)
        key = next(iter(without_train))
        with pytest.raises(UserError, match=rf"dataset\.{key}: got null, .*dataset\.{key}="):
            load(settings, use)


@pytest.mark.parametrize("source", SOURCES)
def test_without_any_data_one_message_names_both_keys(tmp_path: Path, source: str) -> None:
    _, _, without_train, without_val = SOURCES[source]
    both = [f"dataset.{next(iter(keys))}" for keys in (without_train, without_val)]
    with pytest.raises(UserError, match=f"{both[0]}, {both[1]}: got null for both"):
        dataset(source, tmp_path, **without_train, **without_val)


@pytest.mark.parametrize(
    ("source", "keys", "words"),
    [
        ("coco", {"train_images": None}, "dataset.train_images: got null"),
        ("coco", {"val_images": None}, "dataset.val_images: got null"),
        ("folder", {**MASKS, "train_masks": None}, "dataset.train_masks: got null"),
        ("coco", {"val_fraction": 1.0}, "dataset.val_fraction"),
        ("voc", {"val_fraction": 0.0}, "dataset.val_fraction"),
    ],
)
def test_settings_that_do_not_fit_name_their_key(tmp_path: Path, source: str, keys: dict[str, Any], words: str) -> None:
    root = SOURCES[source][0](tmp_path / "data", 4)
    with pytest.raises(UserError, match=words):
        load(dataset(source, root, **keys), "segmentation")


def test_problems_of_divided_data_are_reported_once(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco", train=40)
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"][3]["width"] = -1
    content["annotations"][7]["bbox"] = [500, 500, 5, 5]
    path.write_text(json.dumps(content))
    settings = dataset("coco", root, val_annotations=None, val_fraction=0.5, strict=False)
    splits = load(settings, "pretraining")
    assert sum(len(index.problems) for index in splits) == 2
    assert sum(len(index) for index in splits) == 38


def test_a_tree_of_classes_may_be_of_one_split(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for i in range(20):
            save_image(tmp_path / "all" / name / f"{i}.jpg")
    splits = load(dataset("folder", tmp_path, train_images="all", val_images=None, val_fraction=0.3), "pretraining")
    assert splits.train.classes == splits.val.classes == ("cat", "dog")
    assert sum(len(index) for index in splits) == 40
    only = open_splits(dataset("folder", tmp_path, train_images=None, val_images="all"), "pretraining")
    assert only.train.classes == ("cat", "dog")
    assert [len(index) for index in only] == [0, 40]


def test_prepare_describes_an_empty_split(cvexp: Callable[..., Outcome], coco_root: Path) -> None:
    keys = ["dataset=coco", f"dataset.root={coco_root}", "dataset.train_annotations=null"]
    outcome = cvexp("task=prepare", *keys, "tracking.system_metrics=false")
    assert outcome.code == 0, outcome.message
    assert "train: empty, because dataset.train_annotations is null" in outcome.message
    assert "val: 4 of 4 images" in outcome.message
    report = json.loads(Path(store().download_artifacts(runs()[0].info.run_id, "data/report.json", ".")).read_text())
    assert [report["pretraining"][split]["images"] for split in ("train", "val")] == [0, 4]
    tiny = [argument for argument in TINY if not argument.startswith("dataset.")]
    assert "dataset.train_annotations: got null" in cvexp(*tiny, *keys).message


@pytest.mark.parametrize("source", SOURCES)
def test_a_test_split_is_drawn_without_moving_images_between_training_and_validation(
    tmp_path: Path, source: str
) -> None:
    make, keys, _, without_val = SOURCES[source]
    root = make(tmp_path / "data", 40)
    before = load(dataset(source, root, **keys, **without_val, val_fraction=0.3), "segmentation")
    after = load(dataset(source, root, **keys, **without_val, val_fraction=0.3, test_fraction=0.3), "segmentation")
    assert after.test is not None
    assert after.scored is after.test
    assert 3 <= len(after.test.images) <= 21
    assert names(after.train) == names(before.train) - names(after.test)
    assert names(after.val) == names(before.val) - names(after.test)
    assert names(after.train) != names(before.train)
    assert names(after.val) != names(before.val)  # the draws are independent
    assert after.test.classes == after.train.classes
    larger = load(dataset(source, root, **keys, **without_val, test_fraction=0.6), "segmentation").test
    assert larger is not None
    assert names(after.test) < names(larger)


def test_a_test_split_is_drawn_from_the_validation_images_if_there_are_any(tmp_path: Path) -> None:
    root = make_folder(tmp_path, 6)
    before = load(dataset("folder", root, **MASKS), "segmentation")
    after = load(dataset("folder", root, **MASKS, test_fraction=0.5), "segmentation")
    assert after.test is not None
    assert after.train.fingerprint() == before.train.fingerprint()
    assert names(after.val) | names(after.test) == names(before.val)
    assert not names(after.val) & names(after.test)


# For each source, the test data: a copy of the validation data, whose images are changed.
OWN_TEST: dict[str, dict[str, Any]] = {
    "coco": {"test_annotations": "annotations/test.json", "test_images": "test"},
    "voc": {"test_list": "ImageSets/Segmentation/test.txt"},
    "folder": {"test_images": "test", "test_masks": "test"},
}


@pytest.mark.parametrize("source", OWN_TEST)
def test_each_source_has_a_key_for_test_data(tmp_path: Path, source: str) -> None:
    make, keys, _, without_val = SOURCES[source]
    root = make(tmp_path / "data", 20)
    if source == "coco":
        annotations = root / "annotations"
        (annotations / "test.json").write_bytes((annotations / "instances_val2017.json").read_bytes())
        for entry in json.loads((annotations / "test.json").read_text())["images"]:
            save_image(root / "test" / entry["file_name"], size=(entry["width"], entry["height"]))
    elif source == "voc":
        save_image(root / "JPEGImages" / "c.jpg", size=(60, 60))
        (root / "SegmentationClass" / "c.png").write_bytes((root / "SegmentationClass" / "a.png").read_bytes())
        (root / "ImageSets" / "Segmentation" / "test.txt").write_text("c\n")
    else:
        save_image(root / "test" / "0.jpg")
        save_mask(root / "test" / "0.png", 1)
    for held_out in ({}, without_val):  # test data work as well where validation images are held out
        before = load(dataset(source, root, **keys, **held_out), "segmentation")
        after = load(dataset(source, root, **keys, **held_out, **OWN_TEST[source]), "segmentation")
        assert after.test is not None
        assert [index.fingerprint() for index in after][:2] == [index.fingerprint() for index in before]
        assert names(after.test)
        assert len(load(dataset(source, root, **keys, **OWN_TEST[source], limit=1), "segmentation").scored.images) == 1
    with pytest.raises(UserError, match=r"dataset\.test_fraction: got 0\.5, but it must be null"):
        dataset(source, root, **keys, **OWN_TEST[source], test_fraction=0.5)
    broken = after.scored.path(int(after.scored.images[0]))
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(UserError, match=broken.name):
        load(dataset(source, root, **keys, **OWN_TEST[source]), "segmentation")


def test_classes_of_the_test_split_alone_do_not_change_the_labels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split, classes in (("train", "bd"), ("val", "bd"), ("test", "abcd")):
        for name in classes:
            save_image(tmp_path / split / name / "0.jpg")
    splits = load(dataset("folder", tmp_path, test_images="test"), "pretraining")
    assert splits.test is not None
    assert splits.train.classes == splits.test.classes == ("b", "d")
    assert splits.test.counts() == {"b": 1, "d": 1}
    assert "only the test split has the classes a, c" in caplog.text


def without_training_data(run_id: str) -> None:
    """Let a run's recorded configuration say that there are no training data."""
    path = Path(store().download_artifacts(run_id, "config.yaml", "."))
    text = path.read_text()
    assert "train_annotations: annotations" in text
    path.write_text(text.replace("train_annotations: annotations/instances_train2017.json", "train_annotations: null"))
    store().log_artifact(run_id, str(path))


@pytest.mark.slow
def test_jobs_on_finished_runs_need_the_validation_split_alone(cvexp: Callable[..., Outcome], coco_root: Path) -> None:
    data = ["dataset=coco", f"dataset.root={coco_root}", "dataset.classes=[cat,dog]", "trainer.max_steps=1"]
    tiny = [argument for argument in TINY if not argument.startswith("dataset.")]
    assert cvexp(*tiny, *data).code == 0
    without_training_data(runs()[0].info.run_id)
    tiny = [argument for argument in TINY_SEGMENTATION if not argument.startswith("dataset.")] + [
        "dataset.image_size=64"
    ]
    for task in ("multiclass", "attention"):
        assert cvexp(*tiny, *data, f"task={task}").code == 0
        without_training_data(runs()[0].info.run_id)
    Image.new("RGB", (1, 1)).save(coco_root / "train2017" / "train0.jpg")  # would be noticed
    outcome = cvexp("task=neighbors", "task.k=2")
    assert outcome.code == 0, outcome.message
    outcome = cvexp("task=compare", "task.samples=200", "task.timed_images=2", "task.pictured_images=1")
    assert outcome.code == 0, outcome.message
