"""`dataset.limit` draws over the classes: by name and seed, nested, and the same everywhere."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvexp.data import load, open_splits
from cvexp.data.index import Index
from cvexp.errors import UserError
from tests.helpers import FIVE, SIX, Outcome, add_dogs, dataset, save_image, write_coco


def make_tree(root: Path, sizes: dict[str, int], side: int = 32) -> Path:
    """A folder of classes as CIFAR-10 has them: `CLASS/0001.png`, sorted by class."""
    for split in ("train", "val"):
        for name, count in sizes.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                save_image(root / split / name / f"{i:04d}.png", size=(side, side))
    return root


def files(index: Index) -> list[str]:
    return [index.catalog.file(i) for i in index.images.tolist()]


def test_a_folder_sorted_by_class_keeps_all_classes_in_proportion(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "cifar", {f"class{i}": 20 for i in range(10)})
    for index in load(dataset("folder", root, limit=50), "pretraining"):
        assert index.counts() == {f"class{i}": 5 for i in range(10)}
        assert index.images.tolist() == sorted(index.images.tolist())
        assert len({Path(file).name for file in files(index)}) > 10  # drawn in each class, not its first files


def test_a_rare_class_is_not_lost_and_common_ones_keep_their_proportion(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", {"common": 80, "less": 40, "rare": 1})
    counts = load(dataset("folder", root, limit=31), "pretraining").train.counts()
    assert counts == {"common": 20, "less": 10, "rare": 1}
    assert load(dataset("folder", root, limit=3), "pretraining").train.counts() == {"common": 1, "less": 1, "rare": 1}


@pytest.mark.parametrize("seed", range(4))
def test_a_class_is_represented_by_an_object_that_is_large_enough(coco_root: Path, seed: int) -> None:
    """Every image has a tiny dog; one has a large one."""
    add_dogs(coco_root, large=5)
    settings = dataset("coco", coco_root, classes=["cat", "dog"], limit=2, limit_seed=seed)
    assert load(settings, "pretraining").train.counts()["dog"] == 1


def nested(limited: Iterable[Index]) -> bool:
    sets = [set(files(index)) for index in limited]
    return all(small < large for small, large in pairwise(sets))


def test_coco_keeps_all_classes_and_smaller_limits_are_among_larger_ones(coco_mini: Path) -> None:
    keys = {"classes": FIVE, "strict": False}
    splits = [load(dataset("coco", coco_mini, limit=limit, **keys), "pretraining") for limit in (8, 20, 40)]
    for train, val in splits:
        assert min(train.counts().values()) >= 1
        assert min(val.counts().values()) >= 1
    assert [len(val.images) for _, val in splits] == [8, 20, 40]
    assert nested(train for train, _ in splits)
    assert nested(val for _, val in splits)


def image_shares(index: Index) -> np.ndarray:
    """The share of the images that have each class."""
    images = (index.catalog.image[index.value_of[index.catalog.label] == i + 1] for i in range(len(index.classes)))
    return np.array([len(set(own.tolist()) & set(index.images.tolist())) for own in images]) / len(index.images)


@pytest.mark.slow
def test_voc_keeps_all_classes_and_smaller_limits_are_among_larger_ones(voc_animals: Path) -> None:
    splits = [load(dataset("voc", voc_animals, classes=SIX, limit=limit), "segmentation") for limit in (6, 30, 300)]
    for train, val in splits:
        assert min(train.counts().values()) >= 1
        assert min(val.counts().values()) >= 1
    assert nested(train for train, _ in splits)
    whole = load(dataset("voc", voc_animals, classes=SIX), "segmentation").train
    assert np.abs(image_shares(splits[2].train) - image_shares(whole)).max() < 0.03


def test_images_without_objects_are_drawn_in_proportion(coco_root: Path) -> None:
    settings = dataset("coco", coco_root, classes=["cat"], empty_images=True, limit=4)
    for index in load(settings, "segmentation"):
        assert len(index.images) == 4
    assert index.num_objects() == {"cat": 2}  # of 4 images 2 have a cat
    assert load(settings, "segmentation").train.num_objects() == {"cat": 2}  # of 8 images 4


def test_what_is_broken_makes_room_and_limits_stay_nested(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", {"a": 30, "b": 30})
    whole = load(dataset("folder", root, limit=6), "pretraining").train
    for file in files(whole)[::2]:
        path = root / file
        path.write_bytes(path.read_bytes()[:-20])  # its header is whole, so the catalog has it
    limited = [
        open_splits(dataset("folder", root, limit=limit, strict=False), "pretraining").train for limit in (2, 6, 12, 57)
    ]
    assert [len(index.images) for index in limited] == [2, 6, 12, 57]
    assert nested(limited)
    assert set(files(whole)[1::2]) <= set(files(limited[2]))
    assert limited[0].counts() == {"a": 1, "b": 1}


def test_an_image_keeps_its_place_when_others_come(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        for i in range(20):
            save_image(root / split / f"{i:04d}.png")
    before = load(dataset("folder", root, limit=10), "pretraining").train
    assert before.classes == ()
    assert before.images.tolist() != list(range(10))
    for i in range(10):
        Image.new("RGB", (32, 32)).save(root / "train" / f"00{i:02d}-new.png")
    after = load(dataset("folder", root, limit=10), "pretraining").train
    assert {file for file in files(after) if "new" not in file} < set(files(before))


@pytest.mark.slow
def test_what_is_drawn_depends_on_the_seed_and_on_nothing_else_of_the_process(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco", train=40)
    code = (
        "from tests.helpers import dataset\n"
        "from cvexp.data import load\n"
        f"index = load(dataset('coco', {str(root)!r}, classes=['cat', 'dog'], limit=10), 'pretraining').train\n"
        "print(index.images.tolist())"
    )
    repository = Path(__file__).parents[2]
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(repository)},
        ).stdout
        for seed in ("1", "2")
    }
    settings = {"classes": ["cat", "dog"], "limit": 10}
    here = load(dataset("coco", root, **settings), "pretraining").train
    assert printed == {f"{here.images.tolist()}\n"}
    other = load(dataset("coco", root, **settings, limit_seed=1), "pretraining").train
    assert other.images.tolist() != here.images.tolist()
    assert list(other.counts().values()) == list(here.counts().values()) == [5, 5]
    root.rename(tmp_path / "moved")
    assert load(dataset("coco", tmp_path / "moved", **settings), "pretraining").train.fingerprint() == (
        here.fingerprint()
    )


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_classes_without_objects_are_reported_once_for_each_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_tree(tmp_path / "tree", {"a": 3, "b": 3, "c": 3})
    for path in (root / "val" / "b").iterdir():
        path.unlink()
    load(dataset("folder", root), "pretraining")
    (only,) = warnings(caplog)
    assert "the val split has no object of the class b" in only
    assert "dataset.limit" not in only
    caplog.clear()
    load(dataset("folder", root, limit=1), "pretraining")
    train, val = warnings(caplog)
    assert "train split" in train
    assert "dataset.limit=1 leaves out" in train
    assert "val split has no object of the classes" in val
    assert "b" in val.split("of the classes")[1].split(";")[0]
    assert "dataset.limit=1 leaves out" in val
    assert "b" not in val.split("leaves out")[1]


def test_prepare_names_what_limit_leaves_out(cvexp: Callable[..., Outcome], tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", {"a": 3, "b": 3})
    outcome = cvexp("task=prepare", "dataset=folder", f"dataset.root={root}", "dataset.limit=1")
    assert outcome.code == 0, outcome.message
    assert outcome.message.count("dataset.limit=1 leaves out") == 2


def test_errors_that_limit_causes_name_it(tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for i in range(20):
            side = 40 if i == 0 else 8
            save_image(tmp_path / split / f"{i}.png", size=(side, side))
    assert len(load(dataset("folder", tmp_path), "pretraining").train) == 1
    with pytest.raises(UserError, match=r"dataset\.limit: .* 2 images .*train split .*at least 32 px"):
        load(dataset("folder", tmp_path, limit=2, limit_seed=1), "pretraining")
