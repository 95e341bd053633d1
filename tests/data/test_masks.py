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
from torchvision import tv_tensors
from torchvision.transforms import v2

from cvexp.data import load
from cvexp.data.augment.labeled import LabeledView, PlainLabeledView
from cvexp.data.augment.views import plain_view, view
from cvexp.data.catalog import Draft, open_catalog, write_catalog
from cvexp.data.crops import read_crop
from cvexp.data.files import rle
from cvexp.data.files.components import components
from cvexp.data.index import IGNORE, select
from cvexp.data.masks import Masks, evaluated_areas
from tests.helpers import dataset, write_coco

sides = st.integers(1, 70)
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def label_maps(draw: st.DrawFn, values: tuple[int, ...] = (0, 1, 2, 5, 255)) -> np.ndarray[Any, Any]:
    shape = draw(sides), draw(sides)
    return draw(arrays.arrays(np.uint8, shape, elements=st.sampled_from(values)))


def pair(labels: np.ndarray[Any, Any]) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """An image whose red channel repeats the label map, so that a shift between the two is seen."""
    pixels = torch.from_numpy(labels).expand(3, -1, -1).clone()
    return tv_tensors.Image(pixels), tv_tensors.Mask(torch.from_numpy(labels))


@few
@given(label_maps(), st.integers(2, 64), st.integers(0, 2**31))
def test_views_have_their_size_and_no_label_that_was_not_there(
    labels: np.ndarray[Any, Any], size: int, seed: int
) -> None:
    torch.manual_seed(seed)
    for make in (LabeledView(size, (0.2, 1.0), 0.5, (0.4, 0.4, 0.2, 0.1), 0.8), PlainLabeledView(size)):
        image, seen = make(*pair(labels))
        assert image.shape == (3, size, size)
        assert seen.shape == (size, size)
        assert image.dtype == seen.dtype == torch.uint8
        assert set(seen.unique().tolist()) <= set(np.unique(labels).tolist()) | {IGNORE}
    for transform in (view(size, (0.2, 1.0), 0.5, (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.5, 0.2), plain_view(size)):
        assert transform(torch.from_numpy(labels).expand(3, -1, -1)).shape == (3, size, size)


@few
@given(label_maps(values=(3,)), st.integers(2, 64), st.integers(0, 2**31))
def test_an_image_of_one_label_keeps_it(labels: np.ndarray[Any, Any], size: int, seed: int) -> None:
    torch.manual_seed(seed)
    _, seen = LabeledView(size, (0.2, 1.0), 0.5, (0, 0, 0, 0), 0.0)(*pair(labels))
    assert (seen == 3).all()
    _, seen = PlainLabeledView(size)(*pair(labels))
    height, width = labels.shape
    kept = max(1, round(height * size / max(height, width))), max(1, round(width * size / max(height, width)))
    assert (seen[: kept[0], : kept[1]] == 3).all()
    assert (seen == 3).sum() == kept[0] * kept[1]


@few
@given(label_maps())
def test_at_its_own_size_a_view_changes_nothing(labels: np.ndarray[Any, Any]) -> None:
    image, seen = PlainLabeledView(max(labels.shape))(*pair(labels))
    height, width = labels.shape
    assert np.array_equal(seen[:height, :width].numpy(), labels)
    assert np.array_equal(image[0, :height, :width].numpy(), labels)


@few
@given(label_maps())
def test_a_flip_undoes_itself_and_moves_image_and_labels_alike(labels: np.ndarray[Any, Any]) -> None:
    flip = v2.RandomHorizontalFlip(1.0)
    image, mask = flip(*pair(labels))
    assert torch.equal(image[0].as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor))
    image, mask = flip(image, mask)
    assert np.array_equal(mask.numpy(), labels)
    assert np.array_equal(image[0].numpy(), labels)


def test_a_random_view_shows_the_same_place_of_image_and_labels() -> None:
    """The left half is bright and labeled: it must be so in every view, but for the edge that resizing blurs."""
    labels = np.zeros((90, 120), dtype=np.uint8)
    labels[:, :60] = 200
    agree = []
    for seed in range(40):
        torch.manual_seed(seed)
        image, seen = LabeledView(48, (0.1, 1.0), 0.5, (0, 0, 0, 0), 0.0)(*pair(labels))
        agree.append(((image[0] > 100) == (seen == 200)).float().mean().item())
    assert min(agree) > 0.95


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
    crop = read_crop(index, 0)
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


def test_an_item_is_a_function_of_seed_epoch_and_position() -> None:
    index = load(dataset("shapes", image_size=64, train_images=4, val_images=2), "segmentation").train
    make = LabeledView(32, (0.3, 1.0), 0.5, (0.4, 0.4, 0.2, 0.1), 0.8)
    masks, same, other = (Masks(index, make, seed) for seed in (0, 0, 1))
    assert len(masks) == 4
    for key in [(0, 0), (0, 1), (1, 0)]:
        torch.manual_seed(torch.seed())
        for first, second in zip(masks[key], same[key], strict=True):
            assert torch.equal(first, second)
    assert not torch.equal(masks[0, 0][0], masks[1, 0][0])
    assert not torch.equal(masks[0, 0][0], other[0, 0][0])


@pytest.mark.parametrize("size", [(1, 1), (3000, 2), (2, 3000)])
def test_odd_images_come_whole(tmp_path: Path, size: tuple[int, int]) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.new("RGB", size).save(tmp_path / split / "a.jpg")
        Image.new("L", size, 1).save(tmp_path / split / "a.png")
    keys = {"train_masks": "train", "val_masks": "val", "mask_values": {"x": 1}}
    index = load(dataset("folder", tmp_path, **keys), "segmentation").train
    image, labels = Masks(index, PlainLabeledView(16), 0)[0, 0]
    assert image.shape == (3, 16, 16)
    assert (labels == 1).sum() == max(1, round(size[0] * 16 / max(size))) * max(1, round(size[1] * 16 / max(size)))


def test_the_evaluated_area_is_without_the_padding(tmp_path: Path) -> None:
    settings = dataset("coco", write_coco(tmp_path / "coco"), classes=["cat", "dog"])
    index = load(settings, "segmentation").val  # 80 x 60 pixels
    assert evaluated_areas(index, 64).tolist() == [64 * 48] * 4
