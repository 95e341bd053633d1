import pytest
import torch

from cvexp.data.augment.normalization import Normalization
from tests.data.noise import noise


def test_normalization_gives_zero_mean_and_unit_variance() -> None:
    images = noise(4, 3, 32, 32)
    scaled = images.float() / 255
    mean, std = scaled.mean((0, 2, 3)), scaled.std((0, 2, 3))
    result = Normalization(mean.tolist(), std.tolist())(images)
    torch.testing.assert_close(result.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.std((0, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 3, 1, 1)])
def test_inversion_restores_every_image(shape: tuple[int, ...]) -> None:
    images = noise(*shape)
    before = images.clone()
    normalization = Normalization([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.equal(normalization.invert(normalization(images)), images)
    assert torch.equal(images, before)


def test_the_statistics_are_no_weights() -> None:
    assert not Normalization([0.5] * 3, [0.5] * 3).state_dict()
    assert not list(Normalization([0.5] * 3, [0.5] * 3).parameters())
