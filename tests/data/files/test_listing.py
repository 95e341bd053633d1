"""Which image files a list of names stands for."""

import os
from pathlib import Path

import pytest

from cvexp.data.files.listing import as_text, list_images
from cvexp.errors import UserError


@pytest.fixture(autouse=True)
def _files() -> None:
    """What the working folder contains."""
    for name in (
        "photos/b.jpg",
        "photos/a.JPG",
        "photos/notes.txt",
        "photos/._a.jpg",
        "photos/deep/er/c.png",
        "photos/.thumbnails/b.jpg",
        "scans [2020]/1.tif",
        "scans [2020]/[1].tif",
        "scans 2/1.tif",
        "texts/notes.txt",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def listed(*names: str) -> list[str]:
    return [str(path) for path in list_images(names, "task.images")]


def test_folders_stand_for_all_visible_images_below_them() -> None:
    assert listed("photos") == listed("./photos/") == ["photos/a.JPG", "photos/b.jpg", "photos/deep/er/c.png"]


def test_files_are_taken_as_they_are() -> None:
    assert listed("photos/notes.txt", "photos/._a.jpg") == ["photos/notes.txt", "photos/._a.jpg"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/*.jpg", ["photos/b.jpg"]),
        ("photos/*", ["photos/a.JPG", "photos/b.jpg", "photos/deep/er/c.png"]),
        ("photos/**/*.[jp][pn]g", ["photos/b.jpg", "photos/deep/er/c.png"]),
        ("photos/**", ["photos/a.JPG", "photos/b.jpg", "photos/deep/er/c.png"]),
        ("scans*/1.tif", ["scans 2/1.tif", "scans [2020]/1.tif"]),
    ],
)
def test_patterns(pattern: str, expected: list[str]) -> None:
    assert listed(pattern) == expected
    absolute = [str(Path(name).absolute()) for name in expected]
    assert listed(str(Path(pattern).absolute())) == absolute


def test_names_that_exist_are_no_patterns() -> None:
    assert listed("scans [2020]/[1].tif") == ["scans [2020]/[1].tif"]
    assert listed("scans [2020]") == listed("scans [2020]/*.tif") == ["scans [2020]/1.tif", "scans [2020]/[1].tif"]


def test_a_file_that_is_named_twice_is_listed_once_where_it_is_named_first() -> None:
    Path("link").symlink_to("photos")
    Path("photos/deep/up").symlink_to("..")
    names = listed("link/b.jpg", "photos", "photos/../photos/*.jpg", str(Path("photos/a.JPG").absolute()))
    assert names == ["link/b.jpg", "photos/a.JPG", "photos/deep/er/c.png"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "task.images: got [], but it must be a list of image files, folders, or patterns"),
        (["photos", "nowhere.jpg"], "task.images: there is no file or folder 'nowhere.jpg'"),
        (["photos/*.gif"], "task.images: there is no file or folder 'photos/*.gif', and as a pattern, it matches"),
        (["texts"], "task.images: there are no images in texts; the names of images end in .jpg"),
        (["texts/*"], "task.images: there are no images in texts/*; the names of images end in .jpg"),
        (["x" * 300], "File name too long"),
    ],
)
def test_mistakes(names: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        list_images(names, "task.images")
    assert message in str(caught.value)


def test_names_that_are_not_utf8_become_text() -> None:
    Path(os.fsdecode(b"photos/caf\xe9.jpg")).touch()
    (path,) = list_images(["photos/c*.jpg"], "task.images")
    assert as_text(path) == "photos/caf\\xe9.jpg"
    assert as_text(f"{path}: 写真 <b>") == "photos/caf\\xe9.jpg: 写真 <b>"
