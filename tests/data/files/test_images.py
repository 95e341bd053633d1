from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps
from pycocotools import mask as coco_mask

from cvexp.data.files import rle
from cvexp.data.files.images import leaves_folder, read_image, read_mask
from cvexp.errors import UserError

RANDOM = np.random.RandomState(0)
COLOURS = RANDOM.randint(0, 256, (20, 30, 3), dtype=np.uint8)
GREYS = RANDOM.randint(0, 256, (20, 30), dtype=np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> np.ndarray:
    image.save(path, **options)  # type: ignore[arg-type]
    return np.asarray(read_image(path))


def test_grey_palette_and_two_color_images_are_as_they_are_shown(tmp_path: Path) -> None:
    gray = Image.fromarray(GREYS)
    assert np.array_equal(saved(tmp_path / "a.png", gray), GREYS[..., None].repeat(3, 2))
    palette = Image.fromarray(COLOURS).quantize(16)
    assert np.array_equal(saved(tmp_path / "b.png", palette), np.asarray(palette.convert("RGB")))
    two = Image.fromarray(GREYS > 128)
    assert np.array_equal(saved(tmp_path / "c.png", two), np.where(GREYS > 128, 255, 0)[..., None].repeat(3, 2))


def test_16_bits_become_the_8_higher_ones(tmp_path: Path) -> None:
    values = RANDOM.randint(0, 2**16, (20, 30)).astype(np.uint16)
    for suffix in ("png", "tif"):
        assert np.array_equal(saved(tmp_path / f"a.{suffix}", Image.fromarray(values))[..., 0], values >> 8)
    (tmp_path / "b.pgm").write_bytes(b"P5 30 20 65535\n" + values.astype(">u2").tobytes())
    assert np.array_equal(np.asarray(read_image(tmp_path / "b.pgm"))[..., 1], values >> 8)


def test_transparent_pixels_are_white_whatever_lies_below(tmp_path: Path) -> None:
    alpha = np.zeros((20, 30), dtype=np.uint8)
    alpha[:, 15:] = 255
    with_alpha = np.dstack([COLOURS, alpha])
    expected = np.where(alpha[..., None] > 0, COLOURS, 255)
    assert np.array_equal(saved(tmp_path / "a.png", Image.fromarray(with_alpha)), expected)
    gray = Image.fromarray(np.dstack([GREYS, alpha]), mode="LA")
    assert np.array_equal(saved(tmp_path / "b.png", gray)[..., 0], np.where(alpha > 0, GREYS, 255))
    palette = Image.fromarray(GREYS // 128).convert("P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    pixels = saved(tmp_path / "c.png", palette, transparency=0)
    assert np.array_equal(pixels, np.where(GREYS[..., None] // 128 > 0, np.array([40, 50, 60], np.uint8), 255))


def test_cmyk_is_converted(tmp_path: Path) -> None:
    cmyk = Image.new("CMYK", (30, 20), (0, 255, 255, 0))
    red, green, blue = saved(tmp_path / "a.jpg", cmyk, quality=95).mean((0, 1))
    assert red > 230
    assert max(green, blue) < 60


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_images_are_turned_as_their_exif_says(tmp_path: Path, orientation: int, suffix: str) -> None:
    image = Image.fromarray(COLOURS)
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"a.{suffix}"
    image.save(path, exif=exif, quality=95)
    stored = Image.open(path)
    expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    assert expected.shape == ((30, 20, 3) if orientation > 4 else (20, 30, 3))
    assert np.array_equal(np.asarray(read_image(path)), expected)
    assert np.array_equal(np.asarray(read_image(path, expected.shape[1::-1])), expected)
    # Annotations that fit only the image as it is stored were made without looking at the EXIF.
    if orientation > 4:
        assert np.array_equal(np.asarray(read_image(path, (30, 20))), np.asarray(stored.convert("RGB")))


def test_one_pixel_very_wide_and_very_large_images(tmp_path: Path) -> None:
    for size in ((1, 1), (30_000, 1), (1, 30_000), (9000, 9000)):
        Image.new("RGB", size, (1, 2, 3)).save(tmp_path / "a.png")
        image = read_image(tmp_path / "a.png")
        assert image.size == size
        assert image.getpixel((0, 0)) == (1, 2, 3)


def test_a_smaller_scale_is_decoded_where_it_is_enough(tmp_path: Path) -> None:
    smooth = Image.linear_gradient("L").resize((1600, 1200)).convert("RGB")
    smooth.save(tmp_path / "a.jpg", quality=95)
    smooth.save(tmp_path / "a.png")
    whole = np.asarray(read_image(tmp_path / "a.jpg")).astype(int)
    for at_least, scale in ((1.0, 1), (0.6, 1), (0.5, 2), (0.3, 2), (0.25, 4), (0.13, 4), (0.125, 8), (0.01, 8)):
        small = np.asarray(read_image(tmp_path / "a.jpg", at_least=at_least)).astype(int)
        assert small.shape == (1200 // scale, 1600 // scale, 3)
        assert abs(small - whole[scale // 2 :: scale, scale // 2 :: scale]).max() <= 4
        assert read_image(tmp_path / "a.png", at_least=at_least).size == (1600, 1200)


@pytest.mark.parametrize("kind", ["GIF", "MPO"])
def test_only_the_first_picture_of_several_counts(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.jpg", kind, save_all=True, append_images=frames[1:])
    pixels = np.asarray(read_image(tmp_path / "a.jpg"))
    assert np.abs(pixels - np.array((255, 0, 0))).max() <= 1  # which JPEG may change


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a\.jpg: the image is broken \(its format is not recognized\); fetch"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_masks_give_their_numbers(tmp_path: Path, mode: str) -> None:
    numbers = GREYS % 2 if mode == "1" else GREYS.astype(np.uint16) * 257 if mode == "I;16" else GREYS
    image = Image.fromarray(numbers.astype(bool) if mode == "1" else numbers)
    if mode == "P":
        image.putpalette(RANDOM.randint(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == mode
    assert np.array_equal(read_mask(tmp_path / "a.png"), numbers)


def test_masks_of_larger_numbers_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 2**20, dtype=np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="0 to 65535"):
        read_mask(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.jpg", "b/c.jpg", "..a.jpg", "a..jpg", "ä ö.jpg", "a:b/c.jpg"[2:]])
def test_names_that_stay(name: str) -> None:
    assert not leaves_folder(name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/a", "a/../../b", "\\\\host\\share", "C:a.jpg", "a\\..\\..\\b", "a\0b"]
)
def test_names_that_leave(name: str) -> None:
    assert leaves_folder(name)


def test_run_lengths_are_those_of_pycocotools() -> None:
    for _ in range(200):
        height, width = RANDOM.randint(1, 40, 2)
        mask = RANDOM.rand(height, width) < RANDOM.rand()
        if RANDOM.rand() < 0.1:
            mask[:] = RANDOM.rand() < 0.5
        compressed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        runs, value = [0], False
        for pixel in mask.ravel(order="F"):
            if pixel != value:
                runs.append(0)
                value = bool(pixel)
            runs[-1] += 1
        for counts in (compressed, runs):
            encoded = rle.encode({"size": [int(height), int(width)], "counts": counts}, int(width), int(height))
            assert np.array_equal(rle.decode(encoded.counts, int(width), int(height)), mask)
            assert encoded.area == mask.sum()
