import pytest
import torch
from torch import Tensor, nn

from cvexp.models import segmenters
from cvexp.models.attention import ClassAttention
from cvexp.models.deeplab import DECODERS
from cvexp.models.segmenters import AttentionSegmenter, SegmentationNetwork
from tests.models.test_models import NUM_CLASSES, make_attention_segmenter, make_multiclass_segmenter


def count_calls(module: nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("placement", ["encoder", "decoder"])
def test_queries_of_one_encoding_equal_separate_queries(placement: str, decoder: str) -> None:
    torch.manual_seed(0)
    model = make_attention_segmenter(placement, decoder).eval()
    images = torch.randn(2, 3, 64, 48)
    calls = count_calls(model.encoder.get_submodule("backbone.conv1"))
    queries = torch.tensor([[4, 0, 2], [1, 1, 3]])
    logits, _ = model(images, queries)
    assert len(calls) == 1
    for q in range(3):
        separate, _ = model(images, queries[:, q : q + 1])
        torch.testing.assert_close(logits[:, q : q + 1], separate, atol=1e-5, rtol=1e-4)


def test_evaluation_queries_all_classes_in_parts_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = make_attention_segmenter("decoder").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, _ = model(images, torch.arange(NUM_CLASSES).expand(2, -1))
        monkeypatch.setattr(segmenters, "MAX_QUERIES", 2)
        logits, _ = model.logits(images)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)


def test_the_scores_of_some_classes_are_those_of_all_classes() -> None:
    torch.manual_seed(0)
    model = make_attention_segmenter("decoder").eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        scores, attention = model.scores(images)
        some, some_attention = model.scores(images, classes=[3, 1])
    torch.testing.assert_close(some, scores[:, [0, 4, 2]], atol=1e-5, rtol=1e-4)
    assert attention is not None
    torch.testing.assert_close(some_attention, attention[:, [3, 1]])


@pytest.mark.parametrize("method", ["multiclass", "attention"])
def test_logits_are_float32_under_autocast(method: str) -> None:
    images, queries = torch.randn(2, 3, 64, 64), torch.tensor([[0], [1]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        if method == "attention":
            logits, _ = make_attention_segmenter("decoder")(images, queries)
        else:
            logits = make_multiclass_segmenter("deeplabv3")(images)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize("method", ["multiclass", "attention"])
def test_the_label_map_equals_that_of_the_prediction(method: str) -> None:
    torch.manual_seed(0)
    model: SegmentationNetwork = (
        make_attention_segmenter("decoder") if method == "attention" else make_multiclass_segmenter("deeplabv3plus")
    )
    images = torch.randn(2, 3, 64, 48)
    nn.init.zeros_(model.classifier.bias)  # type: ignore[arg-type, union-attr]
    nn.init.normal_(model.classifier.weight)  # type: ignore[arg-type, union-attr]
    labels = model.eval().label(images)
    assert torch.equal(labels, model.predict(images).labels)
    assert len(labels.unique()) > 1


def test_masks_are_merged_by_score_with_background_if_none_exceeds_one_half() -> None:
    logits = torch.tensor([[-1.0, 2.0, 0.1, -3.0], [-2.0, 1.0, 0.2, 5.0]]).view(1, 2, 1, 4)
    model = make_attention_segmenter("decoder")
    prediction = model.to_prediction(model.to_scores(logits))
    assert prediction.labels.flatten().tolist() == [0, 1, 2, 2]
    assert prediction.masks[0, :, 0].tolist() == [[False, True, True, False], [False, True, True, True]]
    torch.testing.assert_close(prediction.presence, torch.tensor([[2.0, 5.0]]).sigmoid())


def test_multiclass_predicts_the_most_probable_class() -> None:
    logits = torch.tensor([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0]]).view(1, 3, 1, 2)
    prediction = make_multiclass_segmenter("deeplabv3").to_prediction(logits)
    assert prediction.labels.flatten().tolist() == [0, 1]
    assert prediction.masks[0, :, 0].tolist() == [[False, True], [False, False]]
    torch.testing.assert_close(prediction.presence[0], logits.softmax(dim=1)[0, 1:].amax(dim=(1, 2)))


class MarkedEncoder(nn.Module):
    """An encoder of stride 16 whose last map is zero except at one position."""

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
def test_a_feature_affects_the_mask_at_its_position(placement: str, decoder: str, at: tuple[int, int]) -> None:
    """The change has its center at the marked position, through attention, heads, decoder and upsampling."""
    torch.manual_seed(0)
    channels = 24 if placement == "encoder" else 16
    attention = ClassAttention(NUM_CLASSES, channels, 24 if placement == "encoder" else 16, num_heads=2)
    decoder_ = DECODERS[decoder](8, 24, 16, (1, 1, 1), 0.0)
    nn.init.zeros_(decoder_.get_parameter("aspp.convs.4.1.weight"))  # image pooling would change all positions
    model = AttentionSegmenter(MarkedEncoder(*at), decoder_, attention, 16, placement).eval()  # type: ignore[arg-type]
    images = torch.zeros(1, 3, 128, 128)
    with torch.no_grad():
        marked, _ = model(images, torch.arange(NUM_CLASSES)[None])
        model.encoder.at = (slice(0, 0), slice(0, 0))  # type: ignore[assignment]
        plain, _ = model(images, torch.arange(NUM_CLASSES)[None])
    centers = torch.arange(128) + 0.5
    for change in (marked - plain)[0].abs():
        assert change.max() > 1e-4
        row = (change.sum(1) * centers).sum() / change.sum()
        column = (change.sum(0) * centers).sum() / change.sum()
        # The tolerance is one position of the map, 16 px. Swapped rows and columns would differ by 64 px or more.
        assert abs(row - (at[0] + 0.5) * 16) < 16
        assert abs(column - (at[1] + 0.5) * 16) < 16
