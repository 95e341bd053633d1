"""`dataset.fraction` draws the training images whose labels are used."""

from pathlib import Path

import pytest

from cvexp.composition import compose
from cvexp.data import load, open_splits
from cvexp.data.examples import choose_images
from cvexp.data.index import Index
from cvexp.errors import UserError
from cvexp.report.data import describe
from cvexp.sweeps.earlier import Data
from tests.helpers import add_dogs, dataset, save_image, save_mask

MASKS = {"train_masks": "train", "val_masks": "val", "mask_values": {"x": 1, "rare": 2}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of 40 training images with masks, one of which shows a rare class."""
    for split, count in (("train", 40), ("val", 2)):
        for i in range(count):
            save_image(tmp_path / split / f"{i}.jpg")
            save_mask(tmp_path / split / f"{i}.png", 2 if i == 0 else 1)
    return tmp_path


def names(index: Index) -> set[str]:
    return {index.catalog.file(image) for image in index.images.tolist()}


def test_shares_are_nested_stratified_and_of_the_training_images_alone(root: Path) -> None:
    splits = [load(dataset("folder", root, **MASKS, fraction=share), "segmentation") for share in (0.01, 0.2, 0.5, 1.0)]
    assert [len(one.train.images) for one in splits] == [2, 8, 20, 40]
    assert [one.train.num_objects()["rare"] for one in splits] == [1, 1, 1, 1]
    assert names(splits[0].train) < names(splits[1].train) < names(splits[2].train) < names(splits[3].train)
    assert len({one.val.fingerprint() for one in splits}) == 1
    assert len({one.train.fingerprint() for one in splits}) == 4
    assert len(splits[1].train) == len(splits[1].train.checksums) == 8
    whole = {i: splits[3].train.label_map(i).tolist() for i in splits[3].train.images.tolist()}
    assert all(splits[1].train.label_map(i).tolist() == whole[i] for i in splits[1].train.images.tolist())


def test_shares_are_drawn_after_limit_and_by_seed(root: Path) -> None:
    limited = load(dataset("folder", root, **MASKS, limit=20), "segmentation").train
    shares = [
        load(dataset("folder", root, **MASKS, limit=20, fraction=0.5, fraction_seed=seed), "segmentation").train
        for seed in (1, 2)
    ]
    assert [len(share.images) for share in shares] == [10, 10]
    assert all(names(share) < names(limited) for share in shares)
    assert names(shares[0]) != names(shares[1])


def test_only_what_uses_labels_is_limited(root: Path) -> None:
    settings = dataset("folder", root, **MASKS, fraction=0.2)
    assert len(load(settings, "pretraining").train.images) == 40
    assert len(load(settings, "pretraining", uses_labels=True).train.images) == 8
    assert len(open_splits(settings, "segmentation").train.images) == 8
    assert len(open_splits(settings, "segmentation", uses_labels=False).train.images) == 40


def test_without_labels_or_masks_the_message_says_so(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for i in range(4):
            save_image(tmp_path / split / f"{i}.jpg")
    settings = dataset("folder", tmp_path, fraction=0.5)
    assert len(load(settings, "pretraining", uses_labels=True).train.images) == 4
    with pytest.raises(UserError, match="has no masks"):
        load(settings, "segmentation")


@pytest.mark.parametrize("seed", range(4))
def test_no_class_is_lost_to_objects_that_are_too_small(
    coco_root: Path, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    """Every image has a tiny dog; one has a large one."""
    add_dogs(coco_root, large=5)
    settings = dataset(
        "coco", coco_root, classes=["cat", "dog", "person"], limit=8, fraction=0.01, fraction_seed=seed, strict=False
    )
    train = load(settings, "pretraining", uses_labels=True).train
    assert len(train.images) <= 2  # no image shows a person
    assert train.counts()["dog"] == 1
    (message,) = [record.getMessage() for record in caplog.records if "train split" in record.getMessage()]
    assert message.endswith("no object of the class person that is at least 32 px wide and high")


def test_data_may_have_more_classes_than_a_label_map(tmp_path: Path) -> None:
    """The value of the 255th class in label maps would be that of ignored pixels."""
    for split in ("train", "val"):
        for i in range(256):
            save_image(tmp_path / split / f"{i:03}" / "0.png", size=(32, 32))
    whole = load(dataset("folder", tmp_path), "pretraining").train
    assert whole.num_objects() == dict.fromkeys(whole.classes, 1)
    assert choose_images(whole, 256) == set(range(256))
    assert [entry["instances"] for entry in describe(whole)["classes"].values()] == [1] * 256
    some = load(dataset("folder", tmp_path, fraction=0.5), "pretraining", uses_labels=True).train
    assert some.counts() == dict.fromkeys(some.classes, 1)


def test_a_sweep_recognizes_the_data_of_its_runs(root: Path) -> None:
    folder = ["dataset=folder", f"dataset.root={root}", "dataset.train_masks=train", "dataset.val_masks=val"]
    folder += ["dataset.mask_values={x: 1, rare: 2}", "dataset.fraction=0.2"]
    known = Data()
    seen = []
    for seed in (0, 1):
        config = compose("task=multiclass", f"seed={seed}", *folder)
        assert config.dataset.fraction_seed == seed
        splits = load(config.dataset, "segmentation")
        assert known.fingerprints(config) == {index.split: index.fingerprint() for index in splits}
        seen.append(splits.train.fingerprint())
    assert seen[0] != seen[1]
    same = [known.fingerprints(compose("task=dino", f"seed={seed}", *folder)) for seed in (0, 1)]
    assert same[0] == same[1]


@pytest.mark.parametrize(("key", "value"), [("fraction", 0.0), ("fraction", 1.5), ("test_fraction", 1.0)])
def test_shares_that_make_no_sense_name_their_key(root: Path, key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"dataset\.{key}: got {value}"):
        dataset("folder", root, **{key: value})
