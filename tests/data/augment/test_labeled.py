from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from cvexp.data.augment.labeled import LabeledView, SquareView, fit, fit_in_square
from cvexp.data.augment.views import View
from cvexp.data.index import IGNORE
from tests.data.noise import assert_share, chances, noise, smooth

Labels = np.ndarray[Any, np.dtype[np.uint8]]

sides = st.integers(1, 70)
sizes = st.integers(2, 64)
seeds = st.integers(0, 2**31)
few = settings(max_examples=60, deadline=None)


@st.composite
def label_maps(draw: st.DrawFn, values: tuple[int, ...] = (0, 1, 2, 5, 255)) -> Labels:
    return draw(arrays.arrays(np.uint8, (draw(sides), draw(sides)), elements=st.sampled_from(values)))


def labeled(labels: Labels) -> Tensor:
    """Return an image (h, w, 4) whose colors repeat its label map, so that a shift between the two is seen."""
    return torch.from_numpy(labels)[..., None].repeat(1, 1, 4)


def plain(size: int, scale: tuple[float, float] = (0.2, 1.0), flip: float = 0.5) -> LabeledView:
    """Return a view that leaves the colors alone."""
    return LabeledView(size, scale, flip, (0.0, 0.0, 0.0, 0.0), 0.0)


def colorful(size: int) -> LabeledView:
    return LabeledView(size, (0.2, 1.0), 0.5, (0.4, 0.4, 0.2, 0.1), 0.8)


def seen(view: LabeledView, pixels_bhwc: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    sizes_b2 = np.array([pixels_bhwc.shape[1:3]] * len(pixels_bhwc))
    return view.apply(pixels_bhwc, view.draw(sizes_b2, chances(len(pixels_bhwc), view.num_chances, seed)))


@few
@given(label_maps(), sizes, seeds)
def test_views_have_their_size_and_no_label_that_was_not_there(labels: Labels, size: int, seed: int) -> None:
    images, label_maps = seen(colorful(size), labeled(labels).expand(3, -1, -1, -1), seed)
    assert images.shape == (3, 3, size, size)
    assert label_maps.shape == (3, size, size)
    assert images.dtype == label_maps.dtype == torch.uint8
    assert set(label_maps.unique().tolist()) <= set(np.unique(labels).tolist())
    square = fit_in_square(labeled(labels), size)
    assert square.shape == (size, size, 4)
    assert square.dtype == torch.uint8
    assert set(square[..., 3].unique().tolist()) <= set(np.unique(labels).tolist()) | {IGNORE}


@few
@given(label_maps(values=(3,)), sizes, seeds)
def test_an_image_of_one_label_keeps_it(labels: Labels, size: int, seed: int) -> None:
    _, label_maps = seen(plain(size), labeled(labels)[None], seed)
    assert (label_maps == 3).all()
    square = fit_in_square(labeled(labels), size)[..., 3]
    height, width = labels.shape
    kept = max(1, round(height * size / max(height, width))), max(1, round(width * size / max(height, width)))
    assert fit(labels.shape, size) == kept
    assert (square[: kept[0], : kept[1]] == 3).all()
    assert (square == 3).sum() == kept[0] * kept[1]
    assert (square == IGNORE).sum() == size**2 - kept[0] * kept[1]


@few
@given(label_maps())
def test_at_its_own_size_a_square_changes_nothing(labels: Labels) -> None:
    size, (height, width) = max(2, *labels.shape), labels.shape
    if max(height, width) == size:
        square = fit_in_square(labeled(labels), size)
        assert torch.equal(square[:height, :width], labeled(labels))
        assert (square[height:, :, :3] == 0).all()
        assert (square[:, width:, :3] == 0).all()
        assert (square[height:, :, 3] == IGNORE).all()
        assert (square[:, width:, 3] == IGNORE).all()


@pytest.mark.parametrize("shape", [(60, 80), (80, 60), (31, 31), (200, 3), (1, 1), (1, 90)])
@pytest.mark.parametrize("size", [2, 16, 64, 128])
def test_squares_are_resized_as_by_torchvision(shape: tuple[int, int], size: int) -> None:
    pixels_hwc = noise(*shape, 4)
    height, width = fit(shape, size)
    square = fit_in_square(pixels_hwc, size)[:height, :width]
    image = pixels_hwc[..., :3].permute(2, 0, 1).contiguous()
    expected = F.resize(image, [height, width], interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(square[..., :3].permute(2, 0, 1), expected)
    nearest = F.resize(pixels_hwc[None, ..., 3], [height, width], interpolation=v2.InterpolationMode.NEAREST_EXACT)
    assert torch.equal(square[..., 3], nearest[0])


def test_a_square_view_returns_all_of_it() -> None:
    pixels_bhwc = noise(3, 16, 16, 4)
    view = SquareView()
    images, labels = view.apply(pixels_bhwc, view.draw(np.full((3, 2), 16), chances(3, view.num_chances)))
    assert torch.equal(images, pixels_bhwc[..., :3].permute(0, 3, 1, 2))
    assert torch.equal(labels, pixels_bhwc[..., 3])


@pytest.mark.parametrize(("scale", "flip"), [((0.1, 1.0), 0.0), ((0.1, 1.0), 1.0), ((0.1, 0.4), 0.5)])
def test_a_random_view_shows_the_same_place_of_image_and_labels(scale: tuple[float, float], flip: float) -> None:
    """A quarter is bright and labeled: it must be so in every view, but for the edge that resizing blurs."""
    labels = np.zeros((90, 120), dtype=np.uint8)
    labels[:45, :60] = 200
    images, label_maps = seen(plain(48, scale, flip), labeled(labels).expand(60, -1, -1, -1))
    agree = ((images[:, 0] > 100) == (label_maps == 200)).float().mean((1, 2))
    assert agree.min() > 0.95
    assert (label_maps == 200).any((1, 2)).sum() > 20


def test_a_view_that_enlarges_nothing_moves_labels_like_pixels() -> None:
    """Regions of the view's own size are copied, so that colors and labels must be equal, pixel by pixel."""
    labels = noise(40, 40, 50).numpy()
    view = plain(20)
    chances_bn = chances(40, view.num_chances)
    chances_bn[:, :20] = 0.5  # of the areas and aspects: the geometric means
    share = 20 * 20 / (40 * 50)
    view.scale = (share, share)
    pixels_bhwc = torch.from_numpy(labels)[..., None].repeat(1, 1, 1, 4)
    drawn = view.draw(np.array([(40, 50)] * 40), chances_bn)
    assert (drawn.regions.box[:, 2:] == 20).all()
    assert len(drawn.regions.box.unique(dim=0)) > 30
    images, label_maps = view.apply(pixels_bhwc, drawn)
    for channel in range(3):
        assert torch.equal(images[:, channel], label_maps)


def test_colors_change_in_images_but_not_in_labels() -> None:
    pixels_bhwc = torch.cat([smooth(30, 40, 50, 3), noise(30, 40, 50, 1)], 3)
    view, jittered = plain(24), LabeledView(24, (0.2, 1.0), 0.5, (0.4, 0.4, 0.2, 0.1), 1.0)
    (images, labels), (other_images, other_labels) = (seen(own, pixels_bhwc) for own in (view, jittered))
    assert torch.equal(labels, other_labels)
    assert not any(torch.equal(*pair) for pair in zip(images, other_images, strict=True))


def test_the_image_is_that_of_a_view_for_pretraining() -> None:
    pixels_bhwc, strength = noise(30, 40, 50, 4), (0.4, 0.4, 0.2, 0.1)
    view = LabeledView(24, (0.2, 1.0), 0.5, strength, 0.8)
    other = View(24, (0.2, 1.0), 0.5, strength, 0.8, gray=0.0, blur=0.0, solarize=0.0)
    sizes_b2, chances_bn = np.array([(40, 50)] * 30), chances(30, other.num_chances)
    images, _ = view.apply(pixels_bhwc, view.draw(sizes_b2, chances_bn[:, : view.num_chances]))
    assert torch.equal(images, other.apply(pixels_bhwc[..., :3], other.draw(sizes_b2, chances_bn)))


def test_flips_and_jitter_occur_with_their_probabilities_and_never_gray() -> None:
    view = LabeledView(16, (0.2, 1.0), 0.3, (0.4, 0.4, 0.2, 0.1), 0.6)
    drawn = view.draw(np.array([(40, 50)] * 3000), chances(3000, view.num_chances))
    assert_share(drawn.is_flipped, 0.3)
    is_same = (drawn.colors.matrix - torch.eye(3)).abs().amax((1, 2)) < 1e-5
    assert_share(~is_same, 0.6)
    vivid = drawn.colors.matrix @ torch.tensor([255.0, 0.0, 0.0])
    assert vivid.std(1).min() > 20
