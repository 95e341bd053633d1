import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from cvexp.data import load
from cvexp.data.sources import shapes
from cvexp.errors import UserError
from tests.helpers import dataset, forked_pool

SETTINGS: dict[str, Any] = {"root": "made", "image_size": 96, "train_images": 20, "val_images": 6, "test_images": 0}


def test_pictures_have_the_same_bytes_on_every_machine() -> None:
    digest = hashlib.sha256()
    for i in range(8):
        pixels, objects = shapes.draw_image(np.random.RandomState([0, i]), 128)
        digest.update(pixels.tobytes())
        for label, mask in objects:
            digest.update(bytes([label]) + mask.tobytes())
    # Recorded once. Whoever changes the pictures raises shapes.VERSION, so that old files aren't taken for new ones.
    recorded = "80f1ef5beeb6884261007ca1728bec923f8a6cd8998b82ee647fcbd384f63984"
    assert (shapes.VERSION, digest.hexdigest()) == (2, recorded)


def test_files_are_coco_and_masks_lie_in_their_boxes() -> None:
    splits = load(dataset("shapes", **SETTINGS), "pretraining")
    content = json.loads((splits.train.root / "annotations" / "train.json").read_text())
    assert len(content["images"]) == 20
    for annotation in content["annotations"]:
        mask = rle.decode({**annotation["segmentation"], "counts": annotation["segmentation"]["counts"].encode()})
        rows, columns = np.nonzero(mask)
        left, top, width, height = annotation["bbox"]
        assert (left, top) == (columns.min(), rows.min())
        assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
        assert mask.sum() == annotation["area"]


def test_objects_of_one_image_do_not_overlap() -> None:
    for i in range(10):
        _, objects = shapes.draw_image(np.random.RandomState([3, i]), 64)
        assert np.sum([mask for _, mask in objects], axis=0).max() <= 1


def test_color_does_not_tell_the_class() -> None:
    """The mean colors of the classes differ by no more than chance makes them (each has some 250 objects)."""
    colors: list[list[np.ndarray]] = [[] for _ in shapes.CLASSES]
    for i in range(400):
        pixels, objects = shapes.draw_image(np.random.RandomState([7, i]), 64)
        for label, mask in objects:
            if mask.sum() >= 50:
                colors[label].append(pixels[mask].mean(0))
    everything = np.concatenate([np.array(own) for own in colors])
    for own in colors:
        error = everything.std(0) / np.sqrt(len(own))
        assert (np.abs(np.mean(own, 0) - everything.mean(0)) < 4 * error).all()


def _generate(folder: str) -> str:
    splits = load(dataset("shapes", **{**SETTINGS, "root": folder}), "pretraining")
    files = sorted(path for path in splits.train.root.rglob("*") if path.is_file())
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


@pytest.mark.slow
def test_two_processes_at_once_make_one_and_the_same(tmp_path: Path) -> None:
    with forked_pool() as pool:
        digests = pool.map(_generate, [str(tmp_path / "both")] * 2)
    assert digests == [_generate(str(tmp_path / "alone"))] * 2
    assert not list((tmp_path / "both").glob("*.unfinished"))


def test_what_an_interruption_left_is_made_anew(tmp_path: Path) -> None:
    expected = _generate(str(tmp_path / "whole"))
    (folder,) = (path for path in (tmp_path / "whole").iterdir() if path.is_dir())
    broken = tmp_path / "broken" / folder.with_suffix(".unfinished").name
    broken.mkdir(parents=True)
    (broken / "rest").write_text("half an image")
    assert _generate(str(tmp_path / "broken")) == expected


def test_other_settings_lie_in_other_folders() -> None:
    first = load(dataset("shapes", **SETTINGS), "pretraining")
    second = load(dataset("shapes", **{**SETTINGS, "generator_seed": 1}), "pretraining")
    assert first.train.root != second.train.root
    assert Image.open(first.train.path(0)).tobytes() != Image.open(second.train.path(0)).tobytes()


def test_the_test_split_leaves_the_other_images_as_they_are() -> None:
    before = load(dataset("shapes", **SETTINGS), "pretraining")
    after = load(dataset("shapes", **{**SETTINGS, "test_images": 5}), "pretraining")
    assert after.test is not None
    assert [len(index.images) for index in after] == [20, 6, 5]
    assert [index.fingerprint() for index in after][:2] == [index.fingerprint() for index in before]
    assert after.train.root == before.train.root
    pixels, _ = shapes.draw_image(np.random.RandomState([2 * shapes.NUM_SEEDS, 0]), 96)
    assert np.array_equal(np.asarray(after.test.read_image(0)), pixels)
    with pytest.raises(UserError, match="test_fraction: got 0"):
        dataset("shapes", test_fraction=0.5)


def test_a_subset_of_classes_is_numbered_by_its_order() -> None:
    splits = load(dataset("shapes", **{**SETTINGS, "classes": ["star", "disk"]}), "pretraining")
    everything = load(dataset("shapes", **SETTINGS), "pretraining").train.counts()
    assert splits.train.counts() == {"star": everything["star"], "disk": everything["disk"]}


@pytest.mark.parametrize(("key", "value"), [("classes", ["disc"]), ("train_images", 0), ("image_size", 8)])
def test_settings_that_make_no_sense_name_their_key(key: str, value: object) -> None:
    with pytest.raises(Exception, match=f"dataset.{key}"):
        dataset("shapes", **{**SETTINGS, key: value})
