from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from cvexp.data.augment.blur import blur, kernels
from tests.data.noise import noise, smooth

SIGMAS = [0.1, 0.3, 0.5, 1.0, 1.7, 2.0]


@pytest.mark.parametrize(("size", "num_taps"), [(2, 3), (16, 3), (48, 5), (96, 9), (224, 23)])
def test_blur_is_torchvisions_with_the_sigma_of_each_image(size: int, num_taps: int) -> None:
    images = torch.cat([noise(3, 3, size, size), smooth(3, size, size, 3).permute(0, 3, 1, 2)])
    blurred = blur(images, kernels(torch.tensor(SIGMAS), num_taps))
    theirs = [F.gaussian_blur(image, [num_taps] * 2, [s, s]) for image, s in zip(images, SIGMAS, strict=True)]
    difference = (blurred.int() - torch.stack(theirs).int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-3
    assert torch.equal(blurred[0], images[0])  # sigma 0.1 pixels
    assert not torch.equal(blurred[2], images[2])


def test_kernels_are_symmetric_sum_to_one_and_have_their_width() -> None:
    sigma_b = torch.tensor([1.0, 1.4, 2.0])
    kernels_bk = kernels(sigma_b, 23)
    assert torch.equal(kernels_bk, kernels_bk.flip(1))
    torch.testing.assert_close(kernels_bk.sum(1), torch.ones(3))
    variance_b = (kernels_bk * (torch.arange(23) - 11.0) ** 2).sum(1)
    torch.testing.assert_close(variance_b.sqrt(), sigma_b, atol=1e-3, rtol=0)


def test_the_blur_of_an_image_does_not_depend_on_the_others() -> None:
    images, kernels_bk = noise(6, 3, 32, 32), kernels(torch.tensor(SIGMAS), 5)
    together = blur(images, kernels_bk)
    for i in range(6):
        assert torch.equal(blur(images[i : i + 1], kernels_bk[i : i + 1])[0], together[i])


def test_a_flat_image_stays_as_it_is() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1).expand(-1, 3, 6, 6)
    assert torch.equal(blur(images, kernels(torch.full((256,), 1.3), 5)), images)
