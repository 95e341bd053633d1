import pytest
import torch
from torch import Tensor, nn

from cvexp.models import segmenters
from cvexp.models.attention import ClassAttention
from cvexp.models.backbone import Encoder, create_backbone
from cvexp.models.deeplab import DECODERS
from cvexp.models.segmenters import AttentionSegmenter, MulticlassSegmenter

CLASSES = 5


def make_attention(placement: str, decoder: str = "deeplabv3plus", **kwargs: object) -> AttentionSegmenter:
    torch.manual_seed(0)
    encoder = Encoder(create_backbone("test_resnet", output_stride=16), image_size=64)
    high = encoder.high_channels
    channels, dim = (high, 24) if placement == "encoder" else (16, 16)
    attention = ClassAttention(CLASSES, channels, dim, heads=2, **kwargs)  # type: ignore[arg-type]
    decoder_ = DECODERS[decoder](encoder.low_channels, dim if placement == "encoder" else high, 16, (1, 2, 3), 0.1)
    return AttentionSegmenter(encoder, decoder_, attention, 16, placement)


def count_calls(module: nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("placement", ["encoder", "decoder"])
def test_many_classes_asked_of_one_encoding_equal_each_asked_alone(placement: str, decoder: str) -> None:
    model = make_attention(placement, decoder).eval()
    images = torch.randn(2, 3, 64, 48)
    calls = count_calls(model.encoder.get_submodule("backbone.conv1"))
    asked = torch.tensor([[4, 0, 2], [1, 1, 3]])
    logits, attention = model(images, asked)
    assert len(calls) == 1
    assert logits.shape == (2, 3, 64, 48)
    assert attention.shape[:3] == (2, 3, 2)
    for q in range(3):
        alone, _ = model(images, asked[:, q : q + 1])
        torch.testing.assert_close(logits[:, q : q + 1], alone, atol=1e-5, rtol=1e-4)


def test_prediction_asks_every_class_in_parts_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_attention("decoder").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, _ = model(images, torch.arange(CLASSES).expand(2, -1))
        monkeypatch.setattr(segmenters, "ASKED_AT_ONCE", 2)
        logits, _ = model.logits(images)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("method", ["multiclass", "attention"])
def test_the_label_map_alone_equals_that_of_the_whole_prediction(method: str) -> None:
    model: nn.Module = make_attention("decoder")
    if method == "multiclass":
        model = MulticlassSegmenter(model.encoder, model.decoder, CLASSES)  # type: ignore[arg-type]
    images = torch.randn(2, 3, 64, 48)
    nn.init.zeros_(model.classifier.bias)  # type: ignore[arg-type, union-attr]
    nn.init.normal_(model.classifier.weight)  # type: ignore[arg-type, union-attr]
    labels = model.eval().label(images)  # type: ignore[operator]
    assert torch.equal(labels, model.predict(images).labels)  # type: ignore[operator]
    assert len(labels.unique()) > 1


def test_masks_are_joined_by_score_and_background_where_none_reaches_one_half() -> None:
    logits = torch.tensor([[-1.0, 2.0, 0.1, -3.0], [-2.0, 1.0, 0.2, 5.0]]).view(1, 2, 1, 4)
    prediction = AttentionSegmenter.read(logits)
    assert prediction.labels.flatten().tolist() == [0, 1, 2, 2]
    assert prediction.masks[0, :, 0].tolist() == [[False, True, True, False], [False, True, True, True]]
    torch.testing.assert_close(prediction.presence, torch.tensor([[2.0, 5.0]]).sigmoid())


def test_multiclass_reads_the_most_probable_class() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0]]).view(1, 3, 1, 2)
    prediction = MulticlassSegmenter.read(logits)
    assert prediction.labels.flatten().tolist() == [0, 1]
    assert prediction.masks[0, :, 0].tolist() == [[False, True], [False, False]]
    torch.testing.assert_close(prediction.presence[0], logits.softmax(dim=1)[0, 1:].amax(dim=(1, 2)))


class Marked(nn.Module):
    """An encoder whose last map is zero but for one position, a sixteenth of the image's side."""

    def __init__(self, row: int, column: int) -> None:
        super().__init__()
        self.at = row, column

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        row, column = self.at
        high = torch.zeros(len(images), 24, 8, 8)
        high[:, :, row, column] = 1
        return torch.zeros(len(images), 8, 32, 32), high


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("placement", ["encoder", "decoder"])
@pytest.mark.parametrize("at", [(1, 6), (6, 2), (3, 3)])
def test_what_is_marked_in_the_feature_map_changes_the_mask_there(
    placement: str, decoder: str, at: tuple[int, int]
) -> None:
    """Layout through attention, heads, decoder and upsampling: what a mark changes has its center where the mark is."""
    torch.manual_seed(0)
    channels = 24 if placement == "encoder" else 16
    attention = ClassAttention(CLASSES, channels, 24 if placement == "encoder" else 16, heads=2)
    decoder_ = DECODERS[decoder](8, 24, 16, (1, 1, 1), 0.0)
    nn.init.zeros_(decoder_.get_parameter("aspp.convs.4.1.weight"))  # image pooling spreads a mark everywhere
    model = AttentionSegmenter(Marked(*at), decoder_, attention, 16, placement).eval()  # type: ignore[arg-type]
    images = torch.zeros(1, 3, 128, 128)
    with torch.no_grad():
        marked, _ = model(images, torch.arange(CLASSES)[None])
        model.encoder.at = (slice(0, 0), slice(0, 0))  # type: ignore[assignment]
        plain, _ = model(images, torch.arange(CLASSES)[None])
    centers = torch.arange(128) + 0.5
    for change in (marked - plain)[0].abs():
        assert change.max() > 1e-4
        row = (change.sum(1) * centers).sum() / change.sum()
        column = (change.sum(0) * centers).sum() / change.sum()
        assert abs(row - (at[0] + 0.5) * 16) < 16  # a position of the map; to mix up rows and columns would be 80
        assert abs(column - (at[1] + 0.5) * 16) < 16
