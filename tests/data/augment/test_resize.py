from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as v2_functional

from cvexp.data.augment.resize import Regions, resize, resize_all, resize_each, take_nearest
from cvexp.data.augment.views import NUM_OF_REGION, CenterView, draw_regions
from tests.data.noise import chances, noise, smooth

PADDED = (90, 120)  # height and width of padded images
SIZES = [(90, 120), (90, 30), (17, 120), (1, 1), (1, 100), (80, 2), (64, 64), (33, 47)]
BICUBIC = v2.InterpolationMode.BICUBIC
VIEW_SIZES = [2, 16, 31, 64, 100]


def regions_of(kind: str, size: int, seed: int = 0) -> Regions:
    """Return regions of images of the sizes above."""
    sizes_b2 = np.array(SIZES)
    if kind == "center":
        return CenterView(size).draw(sizes_b2, chances(len(SIZES), 0))
    return draw_regions(sizes_b2, (0.05, 1.0), chances(len(SIZES), NUM_OF_REGION, seed), size)


def pixels_of(kind: str, num_channels: int = 3) -> Tensor:
    make = noise if kind == "noise" else smooth
    return make(len(SIZES), *PADDED, num_channels)


def differences(first: Tensor, second: Tensor) -> Tensor:
    return (first.int() - second.int()).abs()


@pytest.mark.parametrize("size", VIEW_SIZES)
@pytest.mark.parametrize("num_channels", [3, 4])
def test_each_random_region_is_torchvisions_resized_crop(size: int, num_channels: int) -> None:
    """What pads the images, noise here, is never seen."""
    pixels_bhwc = pixels_of("noise", num_channels)[..., :3]
    for seed in range(4):
        regions = regions_of("random", size, seed)
        resized = resize_each(pixels_bhwc, regions, size)
        assert torch.equal(resize(pixels_bhwc, regions, size), resized)
        for i, (height, width) in enumerate(SIZES):
            image = pixels_bhwc[i, :height, :width].permute(2, 0, 1).contiguous()
            box = regions.box[i].tolist()
            crop = v2_functional.resized_crop(image, *box, [size, size], interpolation=BICUBIC, antialias=True)
            assert torch.equal(resized[i], crop)


@pytest.mark.parametrize("size", VIEW_SIZES)
def test_the_part_that_is_kept_is_cut_out_of_the_resized_region(size: int) -> None:
    pixels_bhwc, regions = pixels_of("noise"), regions_of("center", size)
    resized = resize_each(pixels_bhwc, regions, size)
    for i, (height, width) in enumerate(SIZES):
        image = pixels_bhwc[i, :height, :width].permute(2, 0, 1).contiguous()
        whole = v2_functional.resize(image, regions.resized[i].tolist(), interpolation=BICUBIC, antialias=True)
        top, left = regions.first[i].tolist()
        assert torch.equal(resized[i], whole[:, top : top + size, left : left + size])


@pytest.mark.parametrize("size", VIEW_SIZES)
@pytest.mark.parametrize("kind", ["random", "center"])
@pytest.mark.parametrize("content", ["noise", "smooth"])
def test_all_at_once_are_like_each_but_for_rounding(size: int, kind: str, content: str) -> None:
    pixels_bhwc = pixels_of(content)
    for seed in range(4):
        regions = regions_of(kind, size, seed)
        found = differences(resize_all(pixels_bhwc, regions, size), resize_each(pixels_bhwc, regions, size))
        assert found.max() <= 2
        assert found.float().mean() < 0.1
        assert found.float().flatten(1).mean(1).max() < 0.3


def test_at_its_own_size_a_region_is_copied() -> None:
    pixels_bhwc = noise(3, 40, 50, 3)
    box = torch.tensor([[0, 0, 20, 20], [20, 30, 20, 20], [7, 11, 20, 20]])
    regions = Regions(box, torch.full((3, 2), 20), torch.zeros(3, 2, dtype=torch.long))
    expected = [pixels_bhwc[i, y : y + 20, x : x + 20].permute(2, 0, 1) for i, (y, x, _, _) in enumerate(box.tolist())]
    for function in (resize_each, resize_all):
        assert torch.equal(function(pixels_bhwc, regions, 20), torch.stack(expected))
    labels = take_nearest(pixels_bhwc[..., 0], regions, 20)
    assert torch.equal(labels, torch.stack(expected)[:, 0])


@pytest.mark.parametrize("kind", ["random", "center"])
def test_pixels_outside_a_region_have_no_influence(kind: str) -> None:
    pixels_bhwc, regions = pixels_of("noise"), regions_of(kind, 16)
    others = pixels_bhwc.clone()
    for i, (top, left, height, width) in enumerate(regions.box.tolist()):
        others[i] = 255 - others[i]
        others[i, top : top + height, left : left + width] = pixels_bhwc[i, top : top + height, left : left + width]
    for function in (resize_each, resize_all):
        assert torch.equal(function(pixels_bhwc, regions, 16), function(others, regions, 16))
    assert torch.equal(take_nearest(pixels_bhwc[..., 0], regions, 16), take_nearest(others[..., 0], regions, 16))


@pytest.mark.parametrize("kind", ["random", "center"])
def test_images_do_not_depend_on_the_others(kind: str) -> None:
    pixels_bhwc, regions = pixels_of("noise"), regions_of(kind, 31)
    each, together = resize_each(pixels_bhwc, regions, 31), resize_all(pixels_bhwc, regions, 31)
    for i, (height, width) in enumerate(SIZES):
        image = pixels_bhwc[i : i + 1, :height, :width]
        own = Regions(*(values[i : i + 1] for values in regions))
        assert torch.equal(resize_each(image, own, 31)[0], each[i])
        assert differences(resize_all(image, own, 31)[0], together[i]).max() <= 1


@pytest.mark.parametrize("size", [2, 16, 64, 128])
def test_labels_are_those_of_the_nearest_pixels(size: int) -> None:
    """They are PyTorch's. For other sizes, PyTorch's rounding errors matter at the edge between two pixels."""
    labels_bhw = noise(len(SIZES), *PADDED)
    for seed in range(8):
        regions = regions_of("random", size, seed)
        nearest = take_nearest(labels_bhw, regions, size)
        for i, (top, left, height, width) in enumerate(regions.box.tolist()):
            region = labels_bhw[None, None, i, top : top + height, left : left + width]
            assert torch.equal(nearest[i], F.interpolate(region, (size, size), mode="nearest-exact")[0, 0])


@pytest.mark.parametrize(("resized", "first"), [(3, 0), (7, 0), (50, 0), (96, 0), (224, 0), (60, 11), (64, 20)])
def test_the_nearest_pixel_is_exact_for_all_sizes(resized: int, first: int) -> None:
    """Compared with whole numbers, for regions of a single row of the sizes from 1 to 499, at column 5."""
    width_b = torch.arange(1, 500)
    zeros_b, ones_b = torch.zeros_like(width_b), torch.ones_like(width_b)
    size = resized - 2 * first
    regions = Regions(
        box=torch.stack([zeros_b, 5 * ones_b, ones_b, width_b], 1),
        resized=torch.full((499, 2), resized),
        first=torch.full((499, 2), first),
    )
    expected = 5 + (2 * torch.arange(first, first + size) + 1) * width_b[:, None] // (2 * resized)
    assert torch.equal(take_nearest(torch.arange(505).expand(499, 1, 505), regions, size)[:, 0], expected)
