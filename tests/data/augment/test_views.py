from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from cvexp.data.augment.colors import ColorChange, change_colors
from cvexp.data.augment.resize import resize_all
from cvexp.data.augment.views import (
    NUM_OF_REGION,
    BatchView,
    CenterView,
    DrawnView,
    View,
    draw_regions,
    flip,
    solarize,
)
from tests.data.noise import assert_mean, assert_same_moments, assert_share, chances, noise, smooth

BICUBIC = v2.InterpolationMode.BICUBIC
PROBABILITIES = {"flip": 0.3, "gray": 0.2, "blur": 0.6, "solarize": 0.1}


def random_view(size: int = 16) -> View:
    return View(size, (0.4, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), jitter_probability=0.8, **PROBABILITIES)


def drawn_for(view: BatchView, sizes: list[tuple[int, int]], seed: int = 0) -> Any:
    return view.draw(np.array(sizes), chances(len(sizes), view.num_chances, seed))


def geometry(box_n4: NDArray[np.float64], height: int, width: int) -> dict[str, NDArray[np.float64]]:
    """Return what is random about regions (top, left, height, width)."""
    y, x, h, w = box_n4.T
    return {
        "area": h * w / (height * width),
        "log_aspect": np.log(w / h),
        "center_y": (y + h / 2) / height,
        "center_x": (x + w / 2) / width,
        "top": (y == 0).astype(float),
        "left": (x == 0).astype(float),
        "whole": ((h == height) | (w == width)).astype(float),
        "area_and_place": (y + h / 2 - height / 2) ** 2 * h * w,
    }


@pytest.mark.parametrize("scale", [(0.4, 1.0), (0.05, 0.4)])
@pytest.mark.parametrize("shape", [(90, 90), (60, 200), (200, 140), (20, 400), (400, 20), (5, 4)])
def test_regions_are_distributed_as_torchvisions(shape: tuple[int, int], scale: tuple[float, float]) -> None:
    """In narrow images, most or all attempts fail, and the largest central region is taken."""
    count = 1500
    regions = draw_regions(np.array([shape] * count), scale, chances(count, NUM_OF_REGION), 16)
    ours = geometry(regions.box.double().numpy(), *shape)
    torch.manual_seed(0)
    image, transform = torch.empty(3, *shape), v2.RandomResizedCrop(16, scale)
    params = [transform.make_params([image]) for _ in range(count)]
    boxes = [[own[key] for key in ("top", "left", "height", "width")] for own in params]
    theirs = geometry(np.array(boxes, dtype=np.float64), *shape)
    for name in ours:
        assert_same_moments(ours[name], theirs[name])


def test_regions_lie_within_their_images() -> None:
    random = np.random.RandomState(0)
    sizes_b2 = random.randint(1, 60, (5000, 2))
    for scale in ((0.01, 0.2), (0.4, 1.0), (1.0, 1.0)):
        box = draw_regions(sizes_b2, scale, chances(5000, NUM_OF_REGION), 16).box.numpy()
        assert (box[:, :2] >= 0).all()
        assert (box[:, 2:] >= 1).all()
        assert (box[:, :2] + box[:, 2:] <= sizes_b2).all()


def test_regions_reach_all_places_equally_often() -> None:
    """Of 7 x 7 places of a region with half the side."""
    chances_bn = chances(5000, NUM_OF_REGION)
    chances_bn[:, :-2] = 0.5  # of the areas and aspects
    regions = draw_regions(np.array([(12, 12)] * 5000), (0.2, 0.3), chances_bn, 16)
    assert (regions.box[:, 2:] == 6).all()
    for place in range(7):
        assert_share(regions.box[:, 0] == place, 1 / 7)
        assert_share(regions.box[:, 1] == place, 1 / 7)
        assert_share((regions.box[:, 0] == place) & (regions.box[:, 1] == 6 - place), 1 / 49)


@pytest.fixture(scope="module")
def drawn() -> DrawnView:
    drawn: DrawnView = drawn_for(random_view(), [(40, 50)] * 4000)
    return drawn


def occurrences(drawn: DrawnView) -> dict[str, NDArray[np.bool_]]:
    """Return which operations each image gets."""
    vivid = torch.tensor([255.0, 0.0, 0.0])
    numbers = np.arange(len(drawn.is_flipped))
    return {
        "flip": drawn.is_flipped.numpy(),
        "gray": ((drawn.colors.matrix @ vivid).std(1) < 1e-3).numpy(),
        "blur": np.isin(numbers, drawn.blurred.numpy()),
        "solarize": np.isin(numbers, drawn.solarized.numpy()),
    }


def test_operations_occur_with_their_probabilities_and_independently(drawn: DrawnView) -> None:
    occurs = occurrences(drawn)
    for name, probability in PROBABILITIES.items():
        assert_share(occurs[name], probability)
        for other, other_probability in PROBABILITIES.items():
            if other != name:
                assert_share(occurs[name] & occurs[other], probability * other_probability)
    top = drawn.regions.box[:, 0].double().numpy()
    for name, probability in PROBABILITIES.items():
        covariances = (top - top.mean()) * (occurs[name] - probability)
        assert_mean(covariances, 0, float(top.var()) * probability * (1 - probability))


def test_sigma_is_distributed_as_torchvisions(drawn: DrawnView) -> None:
    middle = drawn.kernels.shape[1] // 2
    ratio = drawn.kernels[:, middle + 1].double() / drawn.kernels[:, middle].double()  # exp(-0.5 / sigma^2)
    torch.manual_seed(0)
    transform = v2.GaussianBlur(3, sigma=(0.1, 2.0))
    theirs = np.array([transform.make_params([])["sigma"][0] for _ in range(len(ratio))])
    sigma = (-0.5 / ratio.log()).sqrt()
    assert_same_moments(sigma, theirs)
    assert 0.1 <= sigma.min() < 0.11
    assert 1.99 < sigma.max() <= 2


@pytest.mark.parametrize(("size", "num_taps"), [(2, 3), (16, 3), (36, 3), (48, 5), (96, 9), (224, 23)])
def test_the_blur_spans_about_a_tenth_of_the_view(size: int, num_taps: int) -> None:
    assert drawn_for(random_view(size), [(9, 9)] * 9).kernels.shape[1] == num_taps


@pytest.mark.parametrize("content", [noise, smooth])
@pytest.mark.parametrize("size", [16, 48])
def test_a_view_is_what_torchvision_makes_with_the_same_parameters(content: Any, size: int) -> None:
    sizes = [(60, 80), (50, 80), (60, 30), (7, 80)] * 10
    pixels_bhwc, view = content(40, 60, 80, 3), random_view(size)
    drawn = drawn_for(view, sizes)
    occurs = occurrences(drawn)
    assert all(0 < own.sum() < 40 for own in occurs.values())
    kernel_of = dict(zip(drawn.blurred.tolist(), drawn.kernels, strict=True))
    for i, out in enumerate(view.apply(pixels_bhwc, drawn)):
        image, box = pixels_bhwc[i].permute(2, 0, 1).contiguous(), drawn.regions.box[i].tolist()
        image = F.resized_crop(image, *box, [size, size], interpolation=BICUBIC, antialias=True)
        if occurs["flip"][i]:
            image = F.horizontal_flip(image)
        image = change_colors(image[None], ColorChange(*(values[i : i + 1] for values in drawn.colors)))[0]
        if i in kernel_of:
            middle = len(kernel_of[i]) // 2
            log_ratio = float((kernel_of[i][middle + 1].double() / kernel_of[i][middle].double()).log())
            image = F.gaussian_blur(image, [2 * middle + 1] * 2, [(-0.5 / log_ratio) ** 0.5] * 2)
        if occurs["solarize"][i]:
            image = F.solarize(image, 128)
        assert (out.int() - image.int()).abs().max() <= 1  # the blur rounds differently
        assert torch.equal(out, image) or i in kernel_of


def test_no_operation_is_certain_or_impossible_by_accident() -> None:
    """Probabilities of 0 and 1 mean never and always, as in the blur of DINO's first view."""
    sizes = [(20, 30)] * 2000
    nothing = [0.0] * 4
    never = occurrences(drawn_for(View(16, (0.4, 1.0), 0.0, nothing, 0.0, 0.0, 0.0, 0.0), sizes))
    always = occurrences(drawn_for(View(16, (0.4, 1.0), 1.0, nothing, 1.0, 1.0, 1.0, 1.0), sizes))
    assert not any(own.any() for own in never.values())
    assert all(own.all() for own in always.values())


def test_a_view_does_not_change_the_images() -> None:
    pixels_bhwc = noise(8, 20, 30, 3)
    before = pixels_bhwc.clone()
    for view in (View(16, (0.4, 1.0), 1.0, [0.4] * 4, 1.0, 0.0, 1.0, 1.0), CenterView(16)):
        view.apply(pixels_bhwc, drawn_for(view, [(20, 30)] * 8))
        assert torch.equal(pixels_bhwc, before)


def test_solarization_is_torchvisions() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, -1, -1)
    assert torch.equal(solarize(values), F.solarize(values, 128))


@pytest.mark.parametrize("shape", [(5, 3, 8, 9), (5, 8, 9), (5, 1, 1)])
def test_flips_are_torchvisions_and_undo_themselves(shape: tuple[int, ...]) -> None:
    images, is_flipped = noise(*shape), torch.tensor([True, False, True, True, False])
    flipped = flip(images, is_flipped)
    for image, out, is_own in zip(images, flipped, is_flipped.tolist(), strict=True):
        assert torch.equal(out, F.horizontal_flip(image) if is_own else image)
    assert torch.equal(flip(flipped, is_flipped), images)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 200), (300, 7)])
@pytest.mark.parametrize("view", [random_view(), random_view(2), CenterView(16), CenterView(2)])
def test_views_have_their_size_however_odd_the_image(view: View | CenterView, height: int, width: int) -> None:
    pixels_bhwc, size = noise(6, height, width, 3), view.size
    drawn = drawn_for(view, [(height, width)] * 6)
    images = view.apply(pixels_bhwc, drawn)
    assert images.shape == (6, 3, size, size)
    assert images.dtype == torch.uint8
    regions = drawn.regions if isinstance(view, View) else drawn
    assert resize_all(pixels_bhwc, regions, size).shape == (6, 3, size, size)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(2, 64), st.integers(0, 2**31))
def test_views_have_their_size_whatever_the_image(height: int, width: int, size: int, seed: int) -> None:
    pixels_bhwc = torch.full((2, height, width, 3), 77, dtype=torch.uint8)
    plain = View(size, (0.05, 1.0), 0.5, [0.0] * 4, 0.0, 0.5, 0.5, 0.0)
    for view in (plain, CenterView(size)):
        images = view.apply(pixels_bhwc, drawn_for(view, [(height, width)] * 2, seed))
        assert torch.equal(images, torch.full((2, 3, size, size), 77, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (16, 16), (90, 16), (16, 90), (7, 50), (40, 41), (1, 9)])
@pytest.mark.parametrize("size", [2, 16, 33])
def test_the_center_view_is_torchvisions_resize_and_center_crop(shape: tuple[int, int], size: int) -> None:
    image = noise(3, *shape)
    resized = F.resize(image, [size], interpolation=BICUBIC, antialias=True)
    assert torch.equal(CenterView(size).show(image.permute(1, 2, 0)), F.center_crop(resized, [size, size]))


def test_the_center_view_of_an_image_does_not_depend_on_the_others() -> None:
    sizes, view = [(30, 20), (9, 40), (16, 16)], CenterView(16)
    pixels_bhwc = noise(3, 30, 40, 3)
    together = view.apply(pixels_bhwc, drawn_for(view, sizes))
    for pixels_hwc, (height, width), out in zip(pixels_bhwc, sizes, together, strict=True):
        assert torch.equal(view.show(pixels_hwc[:height, :width]), out)
