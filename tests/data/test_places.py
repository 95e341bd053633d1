"""Folders that can't be used: one line names the path, the key that sets it, and the remedy."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvexp.data import load, open_splits, prepare
from cvexp.data.catalog import write_array
from cvexp.data.files import images
from cvexp.data.sources import course, shapes
from cvexp.errors import UserError
from tests.helpers import dataset

SMALL: dict[str, Any] = {"train_images": 2, "val_images": 1, "test_images": 0}


def failing(number: int, path: str) -> Callable[..., None]:
    """Return a function that fails as the operating system does."""

    def fail(*arguments: object, **keywords: object) -> None:
        raise OSError(number, os.strerror(number), path)

    return fail


def message(error: UserError) -> str:
    assert "\n" not in str(error)
    return str(error)


@pytest.mark.parametrize("key", ["root", "cache"])
@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_file_where_a_folder_is_needed(tmp_path: Path, key: str, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        open_splits(dataset("shapes", **SMALL, **{key: str(tmp_path / place)}), "pretraining")
    assert message(caught.value).startswith(str(tmp_path / "file"))
    assert f"a file is where a folder is needed; choose another place with dataset.{key}=PATH" in str(caught.value)


@pytest.mark.parametrize("source", ["coco", "voc", "folder", "course"])
def test_a_root_that_is_a_file(tmp_path: Path, source: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"dataset\.root") as caught:
        open_splits(dataset(source, tmp_path / "file"), "pretraining")
    assert str(tmp_path / "file") in message(caught.value)


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.ENOSPC, "free some space"), (errno.EROFS, "check its permissions")]
)
def test_a_cache_that_is_full_or_read_only(
    coco_root: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    for function in ("write_catalog", "FileLock"):
        with monkeypatch.context() as patch:
            patch.setattr(prepare, function, failing(number, "cache/x"))
            with pytest.raises(UserError, match=rf"^cache/x: .*; {remedy}.*dataset\.cache=PATH") as caught:
                open_splits(dataset("coco", coco_root), "pretraining")
            message(caught.value)


def test_a_cache_that_is_full_when_images_are_checked(coco_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "savez", failing(errno.ENOSPC, "cache/checks.npz"))
    with pytest.raises(UserError, match=r"^cache/checks\.npz: .*dataset\.cache=PATH"):
        open_splits(dataset("coco", coco_root), "pretraining")


def test_a_cache_that_is_full_when_an_archive_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / course.ARCHIVES["segmentation"]).write_text("")
    monkeypatch.setattr(course, "unpack", failing(errno.ENOSPC, "cache/x.jpg"))
    with pytest.raises(UserError, match=r"^cache/x\.jpg: .*dataset\.cache=PATH"):
        open_splits(dataset("course", tmp_path), "segmentation")


def test_a_root_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "_write_split", failing(errno.ENOSPC, "shapes/0.bmp"))
    with pytest.raises(UserError, match=r"^shapes/0\.bmp: .*free some space.*dataset\.root=PATH"):
        open_splits(dataset("shapes", **SMALL), "pretraining")


def test_data_that_may_not_be_read_while_a_catalog_is_made(coco_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is locked meanwhile, but is not the reason."""
    from cvexp.data.sources import coco

    monkeypatch.setattr(coco, "_read_content", failing(errno.EACCES, "annotations.json"))
    with pytest.raises(UserError, match=r"^annotations\.json: Permission denied; .*dataset\.root=PATH"):
        open_splits(dataset("coco", coco_root), "pretraining")


def test_an_image_that_may_not_be_read(coco_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = load(dataset("coco", coco_root, classes=["cat"]), "pretraining").train
    monkeypatch.setattr(Path, "read_bytes", failing(errno.EACCES, "train0.jpg"))
    with pytest.raises(UserError, match=r"train0\.jpg: it can't be read \(Permission denied\); check its permissions"):
        images.read_image(index.path(0))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full")
def test_an_array_on_a_full_disk_fails_with_a_reason() -> None:
    with pytest.raises(OSError, match="No space left") as caught:
        write_array(np.zeros(10**6), Path("/dev/full"))
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("array", [np.zeros((0, 4), np.float32), np.arange(6).reshape(2, 3), np.array([True, False])])
def test_arrays_are_written_as_numpy_does(tmp_path: Path, array: np.ndarray) -> None:
    write_array(array, tmp_path / "a.npy")
    np.save(tmp_path / "b.npy", array)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
