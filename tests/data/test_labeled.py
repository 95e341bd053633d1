"""`dataset.fraction` draws the training images whose labels are used."""

from pathlib import Path

import pytest

from cvexp.composition import compose
from cvexp.data import load, open_splits
from cvexp.data.index import Index
from cvexp.errors import UserError
from cvexp.sweeps.earlier import Data
from tests.helpers import dataset, save_image, save_mask

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
