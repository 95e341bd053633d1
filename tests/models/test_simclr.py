import math

import pytest
import torch
from lightly.loss import NTXentLoss as LightlyNTXentLoss

from cvexp.models.simclr import NTXentLoss, ProjectionHead, alignment, pair_potential
from tests.models.base import Case, ModelTest


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("num_images", [2, 7, 64])
def test_loss_equals_lightlys(temperature: float, num_images: int) -> None:
    torch.manual_seed(num_images)
    first, second = torch.randn(2, num_images, 16) * 5
    expected = LightlyNTXentLoss(temperature=temperature)(first, second)
    assert float(NTXentLoss(temperature)(first, second)) == pytest.approx(float(expected), abs=1e-6, rel=1e-6)


def test_gradients_equal_lightlys() -> None:
    torch.manual_seed(0)
    views = torch.randn(2, 5, 8, requires_grad=True)
    (ours,) = torch.autograd.grad(NTXentLoss(0.3)(*views), views)
    (theirs,) = torch.autograd.grad(LightlyNTXentLoss(temperature=0.3)(*views), views)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_loss_of_equal_projections_is_the_logarithm_of_the_other_views() -> None:
    equal = torch.ones(6, 4)
    assert float(NTXentLoss(0.5)(equal, equal)) == pytest.approx(math.log(11))


def test_loss_is_symmetric_and_does_not_depend_on_the_order_of_the_images() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(2, 9, 4)
    order = torch.randperm(9)
    loss = NTXentLoss(0.2)
    assert float(loss(first, second)) == pytest.approx(float(loss(second, first)), abs=1e-6)
    assert float(loss(first, second)) == pytest.approx(float(loss(first[order], second[order])), abs=1e-6)


def test_alignment_and_uniformity() -> None:
    first = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    assert alignment(first, first * 2) == 0
    assert alignment(first, -first) == pytest.approx(4)
    assert pair_potential(torch.ones(5, 3)) == pytest.approx(1)
    assert pair_potential(first) == pytest.approx(math.exp(-4))  # squared distance 2
    assert pair_potential(first[:1]) == 1


class TestProjectionHead(ModelTest):
    @pytest.fixture(params=[False, True], ids=["plain", "batch_norm"])
    def case(self, request: pytest.FixtureRequest) -> Case:
        inputs = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
        return Case(make=lambda: ProjectionHead(12, 16, 8, request.param), inputs=(inputs,), shapes=[(6, 8)])
