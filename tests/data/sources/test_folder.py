from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvexp.data import load
from cvexp.errors import UserError
from tests.helpers import dataset, save_image, save_mask


def test_subfolders_are_the_classes(tmp_path: Path) -> None:
    for split, name, file in (("train", "cat", "a.jpg"), ("train", "dog", "deep/b.PNG"), ("val", "cat", "c.webp")):
        save_image(tmp_path / split / name / file)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    save_image(tmp_path / "train" / ".hidden" / "x.jpg")
    splits = load(dataset("folder", tmp_path), "pretraining")
    assert splits.train.classes == splits.val.classes == ("cat", "dog")
    assert [index.counts() for index in splits] == [{"cat": 1, "dog": 1}, {"cat": 1, "dog": 0}]
    assert splits.train.box.tolist() == [[0, 0, 48, 40]] * 2
    assert load(dataset("folder", tmp_path, classes=["cat"]), "pretraining").train.counts() == {"cat": 1}


def test_subfolders_may_mean_nothing(tmp_path: Path) -> None:
    for file in ("2019/a.jpg", "2020 & later/deep/b.jpg", "c.jpg"):
        save_image(tmp_path / "train" / file)
        save_image(tmp_path / "val" / file, seed=len(file))
    for index in load(dataset("folder", tmp_path, folder_classes=False), "pretraining"):
        assert index.classes == ()
        assert index.label.tolist() == [-1] * 3


def test_a_plain_folder_has_no_labels_and_is_split_by_name(tmp_path: Path) -> None:
    for i in range(60):
        save_image(tmp_path / f"{i}.png", seed=i)
    settings = dataset("folder", tmp_path, train_images=".", val_images=None, val_fraction=0.25)
    splits = load(settings, "pretraining")
    assert splits.train.classes == ()
    assert set(splits.train.label.tolist()) == {-1}
    names = [{index.catalog.file(i) for i in index.images.tolist()} for index in splits]
    assert len(names[0] | names[1]) == 60
    assert not names[0] & names[1]
    assert 5 <= len(names[1]) <= 25
    save_image(tmp_path / "new.png")
    again = load(settings, "pretraining").val
    assert names[1] <= {again.catalog.file(i) for i in again.images.tolist()}


@pytest.mark.parametrize("masks", ["{}", "masks/{}"])
@pytest.mark.parametrize("suffix", [".png", "_mask.png"])
def test_masks_lie_beside_their_images_or_in_a_folder_of_their_own(tmp_path: Path, suffix: str, masks: str) -> None:
    keys: dict[str, object] = {"mask_suffix": suffix, "mask_values": {"lake": 4, "road": 9}}
    for split in ("train", "val"):
        keys[f"{split}_masks"] = masks.format(split)
        for name in ("a", "deep/b"):
            save_image(tmp_path / split / f"{name}.jpg")
            save_mask(tmp_path / masks.format(split) / f"{name}{suffix}", 0, 4, 255, 9)
    settings = dataset("folder", tmp_path, **keys, classes=["road", "lake"], min_crop_size=8)
    for use in ("pretraining", "segmentation"):
        for index in load(settings, use):
            assert [index.catalog.file(i).split("/", 1)[1] for i in index.images] == ["a.jpg", "deep/b.jpg"]
            assert index.label_map(0)[:, 0].tolist() == [0] * 10 + [2] * 10 + [255] * 10 + [1] * 10
            assert index.counts() == {"road": 2, "lake": 2}


@pytest.mark.parametrize(
    ("images", "masks"), [("images/{}", "masks/{}"), ("{}", "{}/masks"), ("{}/images", "{}")], ids=str
)
def test_images_may_be_png_like_their_masks(tmp_path: Path, images: str, masks: str) -> None:
    keys: dict[str, object] = {"mask_values": {"x": 1}}
    for split in ("train", "val"):
        keys |= {f"{split}_images": images.format(split), f"{split}_masks": masks.format(split)}
        for name in ("a.png", "deep/b.png"):
            save_image(tmp_path / images.format(split) / name)
            save_mask(tmp_path / masks.format(split) / name, 0, 1)
    index = load(dataset("folder", tmp_path, **keys), "segmentation").train
    assert len(index.images) == 2
    assert index.label_map(0).max() == 1


def test_png_masks_among_png_images_need_an_ending_of_their_own(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save_image(tmp_path / split / "a.png")
        save_mask(tmp_path / split / "a_mask.png", 1)
    keys: dict[str, object] = {"mask_values": {"x": 1}, "train_masks": "train", "val_masks": "val"}
    with pytest.raises(UserError, match=r"no images in .* except those that end in \.png, the masks"):
        load(dataset("folder", tmp_path, **keys), "segmentation")
    assert len(load(dataset("folder", tmp_path, **keys, mask_suffix="_mask.png"), "segmentation").train.images) == 1


def test_folders_may_lie_anywhere(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save_image(tmp_path / "elsewhere" / split / "cat" / "a.jpg")
    keys = {f"{split}_images": str(tmp_path / "elsewhere" / split) for split in ("train", "val")}
    (tmp_path / "root").mkdir()
    assert load(dataset("folder", tmp_path / "root", **keys), "pretraining").train.counts() == {"cat": 1}


def test_a_split_by_name_is_never_empty(tmp_path: Path) -> None:
    for name in "ab":
        save_image(tmp_path / f"{name}.jpg")
    settings = dataset("folder", tmp_path, train_images=".", val_images=None, val_fraction=1e-9)
    assert [len(index) for index in load(settings, "pretraining")] == [1, 1]


def test_folders_that_are_links_count_and_links_back_do_not_hang(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save_image(tmp_path / split / "cat" / "a.jpg")
    save_image(tmp_path / "elsewhere" / "b.jpg")
    (tmp_path / "train" / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train" / "cat" / "back").symlink_to(tmp_path / "train")
    assert load(dataset("folder", tmp_path), "pretraining").train.counts() == {"cat": 1, "dog": 1}


def test_more_classes_than_a_label_map_has_room_for_serve_pretraining(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for i in range(260):
            save_image(tmp_path / split / f"c{i:03d}" / "a.png", size=(32, 32))
    assert sum(load(dataset("folder", tmp_path), "pretraining").train.counts().values()) == 260


def test_masks_of_16_bits_hold_larger_numbers(tmp_path: Path) -> None:
    for split in ("train", "val"):
        save_image(tmp_path / split / "a.jpg")
        Image.fromarray(np.full((40, 48), 1000, dtype=np.uint16)).save(tmp_path / split / "a.png")
    settings = dataset("folder", tmp_path, train_masks="train", val_masks="val", mask_values={"x": 1000})
    assert (load(settings, "segmentation").train.label_map(0) == 1).all()


def test_images_without_any_object_are_used_unless_told_otherwise(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name, number in (("a", 0), ("b", 1)):
            save_image(tmp_path / split / f"{name}.jpg")
            save_mask(tmp_path / split / f"{name}.png", number)
    keys = {"train_masks": "train", "val_masks": "val", "mask_values": {"x": 1}}
    assert len(load(dataset("folder", tmp_path, **keys), "segmentation").train.images) == 2
    assert len(load(dataset("folder", tmp_path, **keys, empty_images=False), "segmentation").train.images) == 1


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"train_images": "nowhere"}, "dataset.train_images: there is no folder"),
        ({"train_masks": "train", "mask_values": {"x": 0}}, "dataset.mask_values"),
        ({"train_masks": "train", "mask_values": {"x": 255}}, "dataset.mask_values"),
        ({"train_masks": "train", "mask_values": {"x": 1, "y": 1}}, "dataset.mask_values"),
        ({"train_masks": "nowhere", "val_masks": "val", "mask_values": {"x": 1}}, "there is no folder"),
        ({"train_masks": "train", "mask_values": {"x": 1}}, "dataset.val_masks: got null"),
        ({"val_fraction": 1.0}, "dataset.val_fraction"),
        ({"classes": ["horse"]}, "no class 'horse'"),
    ],
)
def test_settings_that_do_not_fit_name_their_key(tmp_path: Path, keys: dict[str, object], words: str) -> None:
    for split in ("train", "val"):
        save_image(tmp_path / split / "cat" / "a.jpg")
    with pytest.raises(UserError, match=words):
        load(dataset("folder", tmp_path, **keys), "pretraining")
