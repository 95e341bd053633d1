from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.segmentation.deeplabv3 import DeepLabHead

from cvexp.models.deeplab import DECODERS, DeepLabV3, DeepLabV3Plus


def test_deeplabv3_equals_torchvisions_head_with_the_same_weights() -> None:
    torch.manual_seed(0)
    ours = DeepLabV3(low_channels=16, high_channels=32, channels=256, rates=(12, 24, 36), dropout=0.5).eval()
    reference = DeepLabHead(32, num_classes=6).eval()  # pyramid, 3 x 3 convolution, batch norm, ReLU, classifier
    reference[0].load_state_dict(ours.aspp.state_dict())
    for layer, reference_layer in zip(ours.refine, list(reference)[1:4], strict=True):
        reference_layer.load_state_dict(layer.state_dict())
    high = torch.randn(2, 32, 9, 9)
    torch.testing.assert_close(reference[4](ours(torch.empty(2, 16, 36, 36), high)), reference(high))


def test_deeplabv3plus_equals_its_description_in_plain_functions() -> None:
    """ASPP, upsampled, concatenated with 48 channels of low-level features, two 3 x 3 convolutions."""
    torch.manual_seed(1)
    decoder = DeepLabV3Plus(low_channels=8, high_channels=16, channels=12, rates=(1, 2, 3), dropout=0.1).eval()
    low, high = torch.randn(2, 8, 16, 16), torch.randn(2, 16, 4, 4)
    state = decoder.state_dict()

    def layer(x: torch.Tensor, name: str, at: int, **kwargs: Any) -> torch.Tensor:
        x = F.conv2d(x, state[f"{name}.{at}.weight"], **kwargs)
        norm = [state[f"{name}.{at + 1}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
        return F.relu(F.batch_norm(x, *norm))

    branches = [layer(high, "aspp.convs.0", 0)]
    branches += [layer(high, f"aspp.convs.{i}", 0, padding=i, dilation=i) for i in (1, 2, 3)]
    branches.append(layer(high.mean(dim=(2, 3), keepdim=True), "aspp.convs.4", 1).expand(-1, -1, 4, 4))
    x = layer(torch.cat(branches, dim=1), "aspp.project", 0)
    x = F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
    x = torch.cat([x, layer(low, "reduce_low", 0)], dim=1)
    expected = layer(layer(x, "refine", 0, padding=1), "refine", 3, padding=1)
    torch.testing.assert_close(decoder(low, high), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_several_maps_of_an_image_are_decoded_like_each_map_alone(name: str) -> None:
    torch.manual_seed(2)
    decoder = DECODERS[name](low_channels=8, high_channels=16, channels=12, rates=(1, 2, 3), dropout=0.1).eval()
    low, high = torch.randn(2, 8, 16, 16), torch.randn(6, 16, 4, 4)
    together = decoder(low, high)
    for n in range(6):
        torch.testing.assert_close(together[n], decoder(low[n // 3][None], high[n][None])[0], atol=1e-5, rtol=1e-4)
