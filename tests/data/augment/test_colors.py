from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from cvexp.data.augment.colors import ColorJitter, change_colors, color_change
from tests.data.noise import assert_mean, assert_same_moments, assert_share, chances, noise

LUMA = torch.tensor([0.299, 0.587, 0.114])
FLAT = torch.tensor([100, 120, 140], dtype=torch.uint8).view(1, 3, 1, 1)


def changed(
    images: Tensor, brightness: float = 1.0, contrast: float = 1.0, saturation: float = 1.0, hue: float = 0.0
) -> Tensor:
    """Change the colors of all images in the same way."""
    values = (np.full(len(images), value) for value in (brightness, contrast, saturation, hue))
    return change_colors(images, color_change(*values))


def between(low: int, high: int, *shape: int) -> Tensor:
    """Return noise from one value to another."""
    return (low + noise(*shape).int() * (high - low) // 256).byte()


def largest_difference(first: Tensor, second: Tensor) -> int:
    return int((first.int() - second.int()).abs().max())


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
def test_brightness_contrast_and_saturation_are_torchvisions(factor: float) -> None:
    images = between(60, 180, 4, 3, 20, 30)  # far enough from black and white not to be clipped
    pairs = [
        (changed(images, brightness=factor), F.adjust_brightness(images, factor)),
        (changed(images, contrast=factor), F.adjust_contrast(images, factor)),
        (changed(images, saturation=factor), F.adjust_saturation(images, factor)),
        (changed(images, saturation=0.0), F.rgb_to_grayscale(images, 3)),
    ]
    for ours, theirs in pairs:
        assert largest_difference(ours, theirs) <= 2  # torchvision rounds in between, and down


def test_changes_are_made_in_torchvisions_order() -> None:
    images = between(90, 150, 4, 3, 20, 30)
    theirs = F.adjust_saturation(F.adjust_contrast(F.adjust_brightness(images, 0.8), 1.3), 0.7)
    assert largest_difference(changed(images, 0.8, 1.3, 0.7), theirs) <= 3
    assert largest_difference(changed(images, 0.8, 1.3, 0.7), images) > 20


def test_hue_turns_the_chroma_and_leaves_the_luma() -> None:
    images = between(90, 150, 2, 3, 20, 30)
    for hue in (-0.3, 0.1, 0.5):
        turned = changed(images, hue=hue)
        assert largest_difference(changed(turned, hue=-hue), images) <= 2
        assert largest_difference(turned, images) > 20
        difference = torch.tensordot(turned.float() - images.float(), LUMA, ([1], [0]))
        assert difference.abs().max() <= 0.6
    gray = images[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(changed(gray, hue=0.37), gray)


def test_too_bright_and_too_dark_values_are_clipped() -> None:
    assert changed(FLAT, brightness=2.0).flatten().tolist() == [200, 240, 255]
    assert changed(FLAT, saturation=8.0).flatten().tolist() == [0, 146, 255]


def test_each_image_has_its_own_change_and_mean() -> None:
    images = torch.cat([noise(1, 3, 9, 9), noise(1, 3, 9, 9, seed=1) // 4, noise(1, 3, 9, 9, seed=2) // 2 + 100])
    values = np.array([[0.7, 1.0, 1.3], [0.5, 1.0, 1.6], [0.0, 1.0, 1.8], [0.0, 0.0, -0.1]])
    together = change_colors(images, color_change(*values))
    for image, out, own in zip(images, together, values.T, strict=True):
        assert torch.equal(changed(image[None], *own.tolist())[0], out)
    assert torch.equal(together[1], images[1])


def test_a_change_of_nothing_changes_nothing() -> None:
    images = noise(3, 3, 40, 50)
    assert torch.equal(changed(images), images)
    jitter = ColorJitter([0.4, 0.4, 0.4, 0.5], probability=0.0, gray=0.0)
    assert torch.equal(change_colors(images, jitter.draw(chances(3, ColorJitter.num_chances))), images)


def test_jitter_has_torchvisions_factors() -> None:
    """The factors are derived from what the changes do to colors."""
    strength = [0.4, 0.3, 0.2, 0.1]
    change = ColorJitter(strength, probability=1.0, gray=0.0).draw(chances(4000, ColorJitter.num_chances))
    gray_b3 = change.matrix @ torch.ones(3)
    product_b = gray_b3[:, 0]  # brightness * contrast
    assert torch.allclose(gray_b3, product_b[:, None].expand(-1, 3), atol=1e-5)
    brightness_b = product_b + change.offset.sum(1)
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    chroma_b33 = to_yiq @ change.matrix @ torch.linalg.inv(to_yiq) / product_b[:, None, None]
    ours = {
        "brightness_factor": brightness_b,
        "contrast_factor": product_b / brightness_b,
        "saturation_factor": torch.linalg.det(chroma_b33[:, 1:, 1:]).sqrt(),
        "hue_factor": torch.atan2(chroma_b33[:, 2, 1], chroma_b33[:, 1, 1]) / (2 * torch.pi),
    }
    torch.manual_seed(0)
    theirs = [v2.ColorJitter(*strength).make_params([]) for _ in range(4000)]
    for (name, values), bound in zip(ours.items(), strength, strict=True):
        assert_same_moments(values, [params[name] for params in theirs])
        middle = 0 if name == "hue_factor" else 1
        assert bound - 0.01 < (values - middle).abs().max() <= bound + 1e-5
    for first, second in (("brightness", "contrast"), ("contrast", "saturation"), ("saturation", "hue")):
        x, y = ours[f"{first}_factor"], ours[f"{second}_factor"]
        assert_mean((x - x.mean()) * (y - y.mean()), 0, float(x.var() * y.var()))


def test_jitter_and_gray_occur_with_their_probabilities_and_independently() -> None:
    jitter = ColorJitter([0.4, 0.0, 0.0, 0.0], probability=0.8, gray=0.2)
    out = change_colors(FLAT.expand(6000, -1, -1, -1), jitter.draw(chances(6000, ColorJitter.num_chances)))
    is_gray = (out == out[:, :1]).flatten(1).all(1)
    luma = torch.tensordot(out.float(), LUMA, ([1], [0])).flatten()
    is_changed = (luma - 116.3).abs() > 1
    share = 0.8 * (1 - 1 / (0.4 * 116.3))  # a change of less than a level is not noticed
    assert_share(is_gray, 0.2)
    assert_share(is_changed, share)
    assert_share(is_gray & is_changed, 0.2 * share)
    only_gray = ColorJitter([0.4] * 4, probability=0.0, gray=1.0).draw(chances(5, ColorJitter.num_chances))
    assert (change_colors(FLAT.expand(5, -1, -1, -1), only_gray) == 116).all()  # the luma


def test_a_change_by_more_than_all_does_not_turn_colors_around() -> None:
    change = ColorJitter([2.0, 0.0, 2.0, 0.0], probability=1.0, gray=0.0).draw(chances(300, ColorJitter.num_chances))
    out = change_colors(FLAT.expand(300, -1, -1, -1), change).flatten(1)
    assert (out[:, 0] <= out[:, 2]).all()
    assert (out == 0).all(1).any()
