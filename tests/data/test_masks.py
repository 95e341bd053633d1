"""Properties that hold for all images, masks and crops."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from scipy import ndimage

from cvexp.data import load
from cvexp.data.augment.labeled import LabeledView, fit_in_square
from cvexp.data.batches import PendingViews
from cvexp.data.catalog import Draft, open_catalog, write_catalog
from cvexp.data.crops import Crops
from cvexp.data.files import rle
from cvexp.data.files.components import components
from cvexp.data.index import Index, select
from cvexp.data.kept import Images, ImagesInMemory
from cvexp.data.masks import LabeledImages, LabeledSquares, MaskBatches, evaluated_areas
from tests.helpers import dataset, write_coco

sides = st.integers(1, 70)
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def label_maps(draw: st.DrawFn, values: tuple[int, ...] = (0, 1, 2, 5, 255)) -> np.ndarray[Any, Any]:
    shape = draw(sides), draw(sides)
    return draw(arrays.arrays(np.uint8, shape, elements=st.sampled_from(values)))


@few
@given(label_maps(values=(0, 1)))
def test_run_lengths_hold_a_mask_as_it_is(labels: np.ndarray[Any, Any]) -> None:
    mask = labels.astype(bool)
    height, width = mask.shape
    assert np.array_equal(rle.decode(rle.encode_array(mask), width, height), mask)


@few
@given(sides, sides, st.data())
def test_a_rectangle_as_polygon_is_its_pixels(width: int, height: int, data: st.DataObject) -> None:
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    mask = rle.encode([[x0, y0, x1, y0, x1, y1, x0, y1]], width, height)
    expected = np.zeros((height, width), dtype=bool)
    expected[y0:y1, x0:x1] = True
    assert np.array_equal(rle.decode(mask.counts, width, height), expected)
    assert mask.area == (x1 - x0) * (y1 - y0)
    assert mask.box == (x0, y0, x1 - x0, y1 - y0)


@few
@given(label_maps())
def test_components_are_scipys_and_cover_their_class(labels: np.ndarray[Any, Any]) -> None:
    found = components(labels.astype(np.uint16), [2, 1])
    for position, value in enumerate([2, 1]):
        own = [part for part in found if part[0] == position]
        assert len(own) == ndimage.label(labels == value)[1]
        assert sum(area for _, _, area in own) == (labels == value).sum()
        for _, (left, top, width, height), area in own:
            assert 1 <= area <= width * height
            assert (labels[top : top + height, left : left + width] == value).sum() >= area


@few
@given(sides, sides, st.floats(-30, 90), st.floats(-30, 90), st.floats(0, 100), st.floats(0, 100))
def test_a_crop_holds_its_box_as_far_as_the_image_goes(
    tmp_path: Path, image_width: int, image_height: int, left: float, top: float, width: float, height: float
) -> None:
    pixels = np.random.RandomState(0).randint(0, 256, (image_height, image_width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    draft = Draft(tmp_path, ["x"])
    draft.add_object(draft.add_image("a.png", image_width, image_height), 0, [left, top, width, height], area=1)
    folder = tmp_path / f"catalog-{len(list(tmp_path.iterdir()))}"
    write_catalog(draft, folder)
    index = select(open_catalog(folder), "train", dataset_of_x())
    if not len(index):  # narrower than a pixel
        return
    crop = Crops(index).picture(0)
    side = max(width, height)
    assert 1 <= crop.width <= min(image_width, side + 2)
    assert 1 <= crop.height <= min(image_height, side + 2)
    if left >= 0 and top >= 0 and left + width <= image_width and top + height <= image_height:
        assert crop.width >= width - 1
        assert crop.height >= height - 1


_cached: list[Any] = []


def dataset_of_x() -> Any:
    """Made once: hypothesis asks many times."""
    if not _cached:
        _cached.append(dataset("shapes", classes=None, min_crop_size=1))
    return _cached[0]


def shapes() -> Index:
    return load(dataset("shapes", image_size=64, train_images=4, val_images=2, test_images=0), "segmentation").train


def random_view() -> LabeledView:
    return LabeledView(32, (0.3, 1.0), 0.5, (0.4, 0.4, 0.2, 0.1), 0.8)


def made(masks: MaskBatches, keys: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    pair = masks[keys]
    assert not isinstance(pair, PendingViews)
    return pair


def test_an_item_is_a_function_of_seed_epoch_and_position() -> None:
    images = Images(LabeledImages(shapes()))
    masks, same, other = (MaskBatches(images, random_view(), seed) for seed in (0, 0, 1))
    assert len(masks) == 4
    state = torch.get_rng_state()
    together = made(masks, [(0, 0), (0, 1), (1, 0)])
    for i, key in enumerate([(0, 0), (0, 1), (1, 0)]):
        for first, second, third in zip(made(masks, [key]), made(same, [key]), together, strict=True):
            assert torch.equal(first, second)
            assert torch.equal(first[0], third[i])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(made(masks, [(0, 0)])[0], made(masks, [(1, 0)])[0])
    assert not torch.equal(made(masks, [(0, 0)])[0], made(other, [(0, 0)])[0])


def test_a_pending_batch_has_the_same_images_and_labels() -> None:
    images, keys = ImagesInMemory(LabeledImages(shapes())), [(0, 2), (3, 1)]
    pending = MaskBatches(images, random_view(), 0, is_pending=True)[keys]
    expected = made(MaskBatches(images, random_view(), 0), keys)
    assert isinstance(pending, PendingViews)
    assert [values.shape for values in expected] == [(2, 3, 32, 32), (2, 32, 32)]
    for first, second in zip(pending.make()[0], expected, strict=True):
        assert torch.equal(first, second)


def test_evaluation_shows_the_square_of_each_image() -> None:
    index = shapes()
    squares = LabeledSquares(index, 48)
    assert squares.sizes.tolist() == [[48, 48]] * 4
    images, labels = made(MaskBatches(Images(squares)), [(0, 0), (0, 3)])
    for i, position in enumerate((0, 3)):
        expected = fit_in_square(torch.from_numpy(LabeledImages(index).read(position)), 48)
        assert torch.equal(images[i], expected[..., :3].permute(2, 0, 1))
        assert torch.equal(labels[i], expected[..., 3])
        for first, second in zip(squares.pair(position), (images[i], labels[i]), strict=True):
            assert torch.equal(first, second)


def test_an_image_is_read_with_its_label_map_as_fourth_channel() -> None:
    index = shapes()
    for position, image in enumerate(index.images.tolist()):
        pixels = LabeledImages(index).read(position)
        assert np.array_equal(pixels[..., :3], np.asarray(Image.open(index.path(image))))
        assert np.array_equal(pixels[..., 3], index.label_map(image))


@pytest.mark.parametrize("resolution", [9.5, 32.0, 40.0, 10_000.0])
def test_larger_images_are_reduced_with_their_labels_to_the_resolution(tmp_path: Path, resolution: float) -> None:
    """The labels are bands of bright and dark pixels."""
    settings = {"train_masks": "train", "val_masks": "val", "mask_values": {"x": 1, "y": 100, "z": 200}}
    bands = np.repeat(np.array([[1], [200], [1]], dtype=np.uint8), (32, 27, 31), 0).repeat(60, 1)
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        picture = Image.fromarray(np.where(bands == 1, 0, 255).astype(np.uint8))
        picture.save(tmp_path / split / "a.jpg", quality=95 if split == "train" else 94)
        Image.fromarray(bands).save(tmp_path / split / "a.png")
    images = LabeledImages(load(dataset("folder", tmp_path, **settings), "segmentation").train, resolution)
    scale = min(1.0, resolution / (90 * 60) ** 0.5)
    assert images.sizes.tolist() == [[round(90 * scale), round(60 * scale)]]
    pixels = images.read(0)
    assert pixels.shape == (*images.sizes[0], 4)
    assert set(np.unique(pixels[..., 3])) == {1, 3}  # x and z, and nothing in between
    agree = (pixels[..., 0] > 128) == (pixels[..., 3] == 3)
    assert agree.mean() > (0.99 if scale == 1 else 0.9)


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000)])
def test_odd_images_come_whole(tmp_path: Path, size: tuple[int, int]) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", size, "red" if split == "val" else "blue").save(tmp_path / split / "a.jpg")
        Image.new("L", size, 1).save(tmp_path / split / "a.png")
    keys = {"train_masks": "train", "val_masks": "val", "mask_values": {"x": 1}}
    index = load(dataset("folder", tmp_path, **keys), "segmentation").train
    image, labels = LabeledSquares(index, 16).pair(0)
    assert image.shape == (3, 16, 16)
    assert (labels == 1).sum() == max(1, round(size[0] * 16 / max(size))) * max(1, round(size[1] * 16 / max(size)))
    images, labels = made(MaskBatches(Images(LabeledImages(index)), random_view()), [(0, 0)] * 2)
    assert images.shape == (2, 3, 32, 32)
    assert (labels == 1).all()


def test_the_evaluated_area_is_without_the_padding(tmp_path: Path) -> None:
    settings = dataset("coco", write_coco(tmp_path / "coco"), classes=["cat", "dog"])
    index = load(settings, "segmentation").val  # 80 x 60 pixels
    assert evaluated_areas(index, 64).tolist() == [64 * 48] * 4
