"""A generated data set in COCO's format: textured shapes in random colors on a cluttered background.

The five classes differ only in shape and texture family. Position, size, rotation, color, light and the scale of the
texture are random. Thus, the classes differ in properties that DINO's augmentations preserve, while untrained features
mostly distinguish colors.

The same settings give the same bytes on every machine. The random numbers come from `numpy.random.RandomState`,
which is frozen. The arithmetic uses only operations that IEEE 754 defines exactly (+, -, *, /, square root,
comparison), and thus no sine. The images are BMP files, because compressed bytes would depend on a library's version.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image

from cvexp import progress
from cvexp.config import DatasetConfig
from cvexp.data.prepare import Recipes, Use
from cvexp.data.sources import coco
from cvexp.keys import choice, number, require

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]

VERSION = 2  # increased whenever the same settings give different bytes
SUPERSAMPLING = 2  # for antialiasing
NUM_SEEDS = 2**16
CLASSES = ("disk", "square", "triangle", "star", "cross")  # in the order of `SHAPES`


@dataclass(kw_only=True)
class Config(DatasetConfig):
    classes: list[str] | None = choice(*CLASSES)
    image_size: int = number(32, unit="pixels")
    train_images: int = number(1)
    val_images: int = number(1)
    test_images: int = number(0)
    generator_seed: int = number(0, at_most=NUM_SEEDS - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        is_one = self.test_fraction is None or not self.test_images
        require(is_one, "dataset.test_fraction", self.test_fraction, "null unless dataset.test_images=0")


def recipes(config: Config, use: Use) -> Recipes:
    """Return the recipes of the splits. Generate the images first if necessary."""
    seed, (train, val, test) = config.generator_seed, (config.train_images, config.val_images, config.test_images)
    folder = _generate(config, f"{train}-{val}", {"train": (train, 2 * seed), "val": (val, 2 * seed + 1)})
    folders = {"train": folder, "val": folder}
    if test:  # in a folder of its own, so that other test images leave the rest as it is
        folders["test"] = _generate(config, f"test-{test}", {"test": (test, 2 * NUM_SEEDS + seed)})
    generated = {split: replace(config, root=str(path)) for split, path in folders.items()}
    return Recipes(
        **{split: coco.recipe(generated[split], split, f"annotations/{split}.json", split) for split in folders}
    )


def _generate(config: Config, name: str, splits: Mapping[str, tuple[int, int]]) -> Path:
    """Return a folder with the given numbers of images and seeds, by split. Generate them first if necessary."""
    folder = Path(config.root) / f"v{VERSION}-{config.image_size}px-{name}-seed{config.generator_seed}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # if two processes start at the same time, one makes the images
        if not folder.exists():
            unfinished = folder.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            for split, (num_images, seed) in splits.items():
                _write_split(unfinished, split, num_images, config, seed)
            unfinished.rename(folder)
    return folder


def _write_split(folder: Path, split: str, num_images: int, config: Config, seed: int) -> None:
    """Generate the images and the annotation file of a split."""
    from pycocotools import mask as rle

    images, annotations = list[dict[str, object]](), list[dict[str, object]]()
    (folder / split).mkdir(parents=True)
    for i in progress.track(range(num_images), f"generating the {split} images"):
        pixels, objects = draw_image(np.random.RandomState([seed, i]), config.image_size)
        file_name = f"{i:06d}.bmp"
        Image.fromarray(pixels).save(folder / split / file_name)
        images.append({"id": i, "file_name": file_name, "width": config.image_size, "height": config.image_size})
        for label, mask in objects:
            encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": label + 1,
                    "iscrowd": 0,
                    "area": int(mask.sum()),
                    "bbox": [int(value) for value in rle.toBbox(encoded)],
                    "segmentation": {"size": encoded["size"], "counts": encoded["counts"].decode()},
                }
            )
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(CLASSES)]
    (folder / "annotations").mkdir(exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))


def draw_image(random: np.random.RandomState, size: int) -> tuple[NDArray[np.uint8], list[tuple[int, Mask]]]:
    """Draw one image with its objects.

    Args:
        random: The source of randomness.
        size: Side length of the image in pixels.

    Returns:
        The image (size, size, 3) uint8, and for each object its label and the mask (size, size) of its visible part.
    """
    canvas_size = size * SUPERSAMPLING
    canvas = _background(random, canvas_size)
    owner = np.zeros((canvas_size, canvas_size), dtype=np.int64)  # 0 for the background, i + 1 for object i
    for _ in range(random.randint(3, 7)):  # clutter: small shapes without texture, which are not objects
        u, v, window = _place(random, canvas_size, radius=canvas_size * (0.02 + 0.03 * random.random_sample()))
        inside = SHAPES[random.randint(len(SHAPES))](u, v)
        canvas[window][inside] = _color(random, 0, 255)
    labels: list[int] = []
    for _ in range(random.randint(2, 4)):
        label = random.randint(len(CLASSES))
        radius = canvas_size * (0.16 + 0.18 * random.random_sample())
        for _ in range(10):  # objects may overlap, but not so much that a class can't be recognized
            u, v, window = _place(random, canvas_size, radius)
            inside = SHAPES[label](u, v)
            if np.count_nonzero(owner[window][inside]) <= 0.2 * np.count_nonzero(inside):
                break
        else:
            continue
        pattern = TEXTURES[label](u, v, random)
        first, second = _two_colors(random)
        canvas[window][inside & pattern] = first
        canvas[window][inside & ~pattern] = second
        labels.append(label)
        owner[window][inside] = len(labels)
    pixels = _downsample(canvas)
    pixels = pixels * _light(random, size) + random.randint(-8, 9, size=pixels.shape)
    center = owner[SUPERSAMPLING // 2 :: SUPERSAMPLING, SUPERSAMPLING // 2 :: SUPERSAMPLING]
    objects = [(label, center == i + 1) for i, label in enumerate(labels) if (center == i + 1).any()]
    return np.clip(np.floor(pixels), 0, 255).astype(np.uint8), objects


def _place(random: np.random.RandomState, canvas_size: int, radius: float) -> tuple[Array, Array, tuple[slice, slice]]:
    """Place a shape at random, with a random rotation.

    Returns:
        The coordinates u and v of pixels relative to the shape, which fills [-1, 1], and the window of these pixels.
        The window is large enough for any shape.
    """
    x, y = (0.1 + 0.8 * random.random_sample(2)) * canvas_size
    # The rational points of the circle give a rotation without sine and cosine, whose last bits vary by machine.
    t = random.random_sample()
    cosine, sine = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
    for _ in range(random.randint(4)):  # t covers a quarter of the circle
        cosine, sine = -sine, cosine
    reach = radius * 1.5
    left, top = max(int(x - reach), 0), max(int(y - reach), 0)
    right, bottom = min(int(x + reach) + 1, canvas_size), min(int(y + reach) + 1, canvas_size)
    dx = (np.arange(left, right, dtype=np.float64) + 0.5 - x)[None, :] / radius
    dy = (np.arange(top, bottom, dtype=np.float64) + 0.5 - y)[:, None] / radius
    return cosine * dx + sine * dy, cosine * dy - sine * dx, (slice(top, bottom), slice(left, right))


def _color(random: np.random.RandomState, darkest: int, lightest: int) -> Array:
    """Draw a color with each channel in a range. A narrow range gives pale colors, like most in photographs.

    With vivid random colors and lights, a network could identify a crop by color alone.
    """
    return random.randint(darkest, lightest + 1, size=3).astype(np.float64)


def _two_colors(random: np.random.RandomState) -> tuple[Array, Array]:
    """Draw a dark and a light color, in random order, which keep a texture visible even in grayscale."""
    dark, light = _color(random, 0, 105), _color(random, 150, 255)
    return (dark, light) if random.randint(2) else (light, dark)


def _background(random: np.random.RandomState, canvas_size: int) -> Array:
    """Draw a background of smoothly varying color by interpolating a coarse random grid."""
    cells = random.randint(1, 4)
    grid = random.randint(100, 156, size=(cells + 1, cells + 1, 3)).astype(np.float64)
    position = (np.arange(canvas_size) + 0.5) / canvas_size * cells
    low = position.astype(np.int64)
    weight = position - low
    rows = grid[low] + (grid[low + 1] - grid[low]) * weight[:, None, None]
    background: Array = rows[:, low] + (rows[:, low + 1] - rows[:, low]) * weight[None, :, None]
    return background


def _light(random: np.random.RandomState, size: int) -> Array:
    """Draw a gradient of brightness over the image, (size, size, 1)."""
    slope_x, slope_y = 0.3 * (random.random_sample(2) - 0.5)
    position = (np.arange(size) + 0.5) / size - 0.5
    brightness = 0.85 + 0.2 * random.random_sample()
    light: Array = (brightness + slope_x * position[None, :] + slope_y * position[:, None])[..., None]
    return light


def _downsample(canvas: Array) -> Array:
    """Average the canvas over squares of SUPERSAMPLING x SUPERSAMPLING pixels."""
    total = np.zeros((canvas.shape[0] // SUPERSAMPLING, canvas.shape[1] // SUPERSAMPLING, 3))
    for row in range(SUPERSAMPLING):
        for column in range(SUPERSAMPLING):
            total = total + canvas[row::SUPERSAMPLING, column::SUPERSAMPLING]
    return total / SUPERSAMPLING**2


# Shapes: functions that return which points (u, v) are inside.


def _disk(u: Array, v: Array) -> Mask:
    return u * u + v * v <= 1


def _square(u: Array, v: Array) -> Mask:
    return (np.abs(u) <= 0.85) & (np.abs(v) <= 0.85)


def _triangle(u: Array, v: Array) -> Mask:
    return (v <= 0.6) & (v >= 1.8 * np.abs(u) - 1.1)


# Tips of a regular five-pointed star: cosine and sine of the multiples of 72 degrees.
_TIPS = ((1.0, 0.0), (0.30902, 0.95106), (-0.80902, 0.58779), (-0.80902, -0.58779), (0.30902, -0.95106))


def _star(u: Array, v: Array) -> Mask:
    """Return the points on the inner side of at least four of the five lines of a pentagram, one opposite each tip."""
    lines = sum(((-x * u - y * v) <= 0.37).astype(np.int64) for x, y in _TIPS)
    return (np.asarray(lines) >= 4) & (u * u + v * v <= 1.45)


def _cross(u: Array, v: Array) -> Mask:
    return ((np.abs(u) <= 0.32) & (np.abs(v) <= 1)) | ((np.abs(v) <= 0.32) & (np.abs(u) <= 1))


# Textures: functions that return which points (u, v) have the first of two colors. Each has a random scale and offset.


def _frequency(random: np.random.RandomState) -> float:
    """Draw the number of repetitions of a pattern per unit of length."""
    return 1.8 + 1.7 * random.random_sample()


def _alternate(x: Array) -> Mask:
    """Return where the values, rounded down, are even."""
    is_even: Mask = np.floor(x) % 2 == 0
    return is_even


def _fraction(x: Array) -> Array:
    fraction: Array = x - np.floor(x)
    return fraction


def _stripes(u: Array, v: Array, random: np.random.RandomState) -> Mask:
    return _alternate(u * _frequency(random) + random.random_sample())


def _checks(u: Array, v: Array, random: np.random.RandomState) -> Mask:
    frequency = _frequency(random)
    shift_u, shift_v = random.random_sample(2)
    checks: Mask = _alternate(u * frequency + shift_u) == _alternate(v * frequency + shift_v)
    return checks


def _dots(u: Array, v: Array, random: np.random.RandomState) -> Mask:
    frequency = _frequency(random)
    shift_u, shift_v = random.random_sample(2)
    du, dv = _fraction(u * frequency + shift_u) - 0.5, _fraction(v * frequency + shift_v) - 0.5
    return du * du + dv * dv <= 0.1


def _rings(u: Array, v: Array, random: np.random.RandomState) -> Mask:
    return _alternate(np.sqrt(u * u + v * v) * 1.3 * _frequency(random) + random.random_sample())


def _zigzag(u: Array, v: Array, random: np.random.RandomState) -> Mask:
    frequency = _frequency(random)
    wave = np.abs(_fraction(u * frequency + random.random_sample()) - 0.5)
    return _alternate((v * frequency + 2 * wave) * 1.2 + random.random_sample())


SHAPES: tuple[Callable[[Array, Array], Mask], ...] = (_disk, _square, _triangle, _star, _cross)
Texture = Callable[[Array, Array, np.random.RandomState], Mask]
TEXTURES: tuple[Texture, ...] = (_stripes, _checks, _dots, _rings, _zigzag)
