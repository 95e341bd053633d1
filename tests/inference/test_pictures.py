from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from cvexp.errors import UserError
from cvexp.inference.pictures import is_one, to_pixels

PIXELS = np.random.RandomState(0).randint(0, 256, (6, 4, 3), dtype=np.uint8)


def test_the_same_pixels_in_any_form_are_the_same_picture(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    tensor = torch.from_numpy(PIXELS).permute(2, 0, 1)
    forms: list[Any] = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        Image.fromarray(PIXELS),
        PIXELS,
        tensor,
        PIXELS.astype(np.float32) / 255,
        PIXELS.astype(np.float64) / 255,
        tensor / 255,
        np.dstack([PIXELS, np.full((6, 4), 255, np.uint8)]),
        np.asfortranarray(PIXELS),
        PIXELS[::-1][::-1],
    ]
    for form in forms:
        assert is_one(form)
        assert torch.equal(to_pixels(form), torch.from_numpy(PIXELS))


def test_gray_pictures_get_three_equal_channels() -> None:
    gray = PIXELS[..., 0]
    forms: list[Any] = [
        gray,
        gray[..., None],
        torch.from_numpy(gray),
        torch.from_numpy(gray)[None],
        Image.fromarray(gray),
    ]
    for form in forms:
        assert torch.equal(to_pixels(form), torch.from_numpy(gray)[..., None].expand(-1, -1, 3))


def test_a_file_is_rotated_but_a_pillow_image_is_not(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(PIXELS).save(tmp_path / "a.png", exif=exif)
    assert to_pixels(tmp_path / "a.png").shape == (4, 6, 3)
    with Image.open(tmp_path / "a.png") as image:
        assert to_pixels(image).shape == (6, 4, 3)


def test_several_pictures_are_told_from_one() -> None:
    assert not is_one([PIXELS])
    assert not is_one(PIXELS[None])
    assert not is_one(torch.zeros(1, 3, 4, 4))
    assert not is_one(path for path in ("a.jpg", "b.jpg"))


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        ("missing.jpg", "missing.jpg: there is no such file"),
        (7, "got int"),
        (np.zeros((3, 4, 5), np.uint8), r"got the shape \(3, 4, 5\)"),
        (torch.zeros(5, 4, 3, dtype=torch.uint8), "got the shape"),
        (np.zeros((0, 4, 3), np.uint8), "got the shape"),
        (PIXELS.astype(np.float32), "from 0 to 1"),
        (PIXELS / 255 - 1, "from 0 to 1"),
        (np.full((4, 4, 3), np.nan), "from 0 to 1"),
        (PIXELS.astype(np.int64), "int64"),
    ],
)
def test_what_is_no_picture_is_refused(picture: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        to_pixels(picture)
