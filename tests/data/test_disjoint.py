"""Copies of an image in two splits are found, whatever their names."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cvexp.data import disjoint, load, open_splits
from cvexp.data.index import Index
from cvexp.errors import UserError
from tests.helpers import dataset, save_image


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of three splits, with four images each."""
    for split in ("train", "val", "test"):
        for i in range(4):
            save_image(tmp_path / split / f"{i}.png")
    return tmp_path


def settings(root: Path, **keys: object) -> Any:
    return dataset("folder", root, test_images="test", **keys)


def names(index: Index | None) -> list[str]:
    assert index is not None
    return [Path(index.catalog.file(image)).name for image in index.images.tolist()]


@pytest.mark.parametrize("link", [os.symlink, os.link, lambda old, new: Path(new).write_bytes(Path(old).read_bytes())])
@pytest.mark.parametrize(("first", "second"), disjoint.PAIRS)
def test_copies_and_links_are_refused_or_left_out(root: Path, link: Any, first: str, second: str) -> None:
    before = load(settings(root), "pretraining")
    link(root / second / "2.png", root / first / "copy.png")
    with pytest.raises(UserError, match=rf"dataset: 1 {disjoint.NAMES[first]} images .*{first}/copy.png .*2.png; rem"):
        load(settings(root), "pretraining")
    splits = load(settings(root, strict=False), "pretraining")
    assert [names(index) for index in splits] == [["0.png", "1.png", "2.png", "3.png"]] * 3
    assert [len(index) for index in splits] == [4, 4, 4]
    assert [index.checksums.tolist() for index in splits] == [index.checksums.tolist() for index in before]
    ((problem,),) = [index.problems for index in splits if index.problems]
    assert "copy.png: it has the same bytes as" in str(problem)


@pytest.mark.parametrize("drawn", [{"val_fraction": 0.4}, {"val_fraction": 0.2, "test_fraction": 0.3}])
def test_copies_of_drawn_images_are_left_out(
    tmp_path: Path, drawn: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(20):
        save_image(tmp_path / f"IMG_{i}.png", seed=i % 10)
    keys = {"train_images": ".", "val_images": None, **drawn}
    splits = load(dataset("folder", tmp_path, **keys), "pretraining")
    contents = [{index.read_bytes(image) for image in index.images.tolist()} for index in splits]
    assert all(contents)
    assert sum(map(len, contents)) == len(set.union(*contents)) == 10
    assert not any(index.problems for index in splits)
    assert "data: the train split is without" in caplog.text


def test_copies_are_refused_next_to_drawn_images(root: Path) -> None:
    (root / "train" / "copy.png").write_bytes((root / "test" / "1.png").read_bytes())
    with pytest.raises(UserError, match="1 training images have the same bytes as test images"):
        load(settings(root, val_images=None, val_fraction=0.3), "pretraining")


def test_an_image_in_all_splits_stays_in_the_test_split_only(root: Path) -> None:
    for split in ("train", "val"):
        (root / split / "copy.png").write_bytes((root / "test" / "1.png").read_bytes())
    splits = load(settings(root, strict=False), "pretraining")
    assert [len(index) for index in splits] == [4, 4, 4]
    assert [len(index.problems) for index in splits] == [1, 1, 0]
    assert sum("copy.png" in names(index) for index in splits) == 0


def test_equal_checksums_are_no_copies(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvexp.data.prepare.zlib", SimpleNamespace(crc32=lambda content: 7))
    splits = load(settings(root), "pretraining")
    assert set(np.concatenate([index.checksums for index in splits]).tolist()) == {7}
    (root / "train" / "copy.png").write_bytes((root / "val" / "1.png").read_bytes())
    with pytest.raises(UserError, match="dataset: 1 training images have the same bytes as validation images"):
        open_splits(settings(root), "pretraining")


def test_a_file_in_two_splits_is_refused_even_if_not_strict(root: Path) -> None:
    with pytest.raises(UserError, match=r"4 images are in both the validation and the test split, .*checkpoint"):
        load(dataset("folder", root, test_images="val", strict=False), "pretraining")


def test_the_message_says_if_all_images_are_left_out(root: Path) -> None:
    for i in range(4):
        (root / "train" / f"{i}.png").write_bytes((root / "test" / f"{i}.png").read_bytes())
    with pytest.raises(UserError, match=r"all images of the train split .* left out; the first: .* the same bytes"):
        load(settings(root, strict=False), "pretraining")
