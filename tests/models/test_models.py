"""The networks of the project, each with the tests of :mod:`tests.models.base`."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cvexp.models.arguments import Needs, choose_arguments
from cvexp.models.attention import NORMALIZATIONS, SCORES, ClassAttention
from cvexp.models.backbone import Encoder, create_backbone
from cvexp.models.deeplab import DECODERS
from cvexp.models.dino import DINOHead, DINONetwork
from cvexp.models.segmenters import AttentionSegmenter, MulticlassSegmenter
from tests.models.base import Case, ModelTest

NUM_CLASSES, NUM_HEADS, CHANNELS = 5, 2, 16

# Small models of four families, with their arguments.
ARGUMENTS = {"test_resnet": {}, "test_vit": {"depth": 2}, "test_convnext": {}, "test_efficientnet": {}}


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


QUERIES = torch.tensor([[4, 0, 2], [1, 1, 3]])


class TestClassAttention(ModelTest):
    @pytest.fixture(params=[*[(s, "sigmoid") for s in SCORES], *[("cosine", n) for n in NORMALIZATIONS[:2]]], ids=str)
    def case(self, request: pytest.FixtureRequest) -> Case:
        return Case(
            make=lambda: ClassAttention(NUM_CLASSES, 12, 8, NUM_HEADS, *request.param),
            inputs=(random(2, 12, 4, 6), QUERIES),
            shapes=[(2, 3, 8, 4, 6), (2, 3, NUM_HEADS, 4, 6)],
        )


class TestDINOHead(ModelTest):
    @pytest.fixture(params=[False, True], ids=["plain", "batch_norm"])
    def case(self, request: pytest.FixtureRequest) -> Case:
        return Case(make=lambda: DINOHead(12, 16, 8, 20, request.param), inputs=(random(6, 12),), shapes=[(6, 20)])


class TestDINONetwork(ModelTest):
    @pytest.fixture(params=["test_resnet", "test_vit"])
    def case(self, request: pytest.FixtureRequest) -> Case:
        def make() -> DINONetwork:
            arguments = choose_arguments(request.param, ARGUMENTS[request.param], Needs({"global": 64, "local": 32}))
            backbone = create_backbone(request.param, **arguments)
            return DINONetwork(backbone, DINOHead(backbone.num_features, 16, 8, 20))  # type: ignore[arg-type]

        views = [random(2, 3, 64, 64), random(2, 3, 64, 64).flip(0), random(2, 3, 32, 32)]
        return Case(make, inputs=(views,), shapes=[(3, 2, 20)])


class BackboneWithoutIntermediates(nn.Module):
    """A backbone without `forward_intermediates`, whose second map has its channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, stride=4)
        self.body = nn.Linear(4, 6)
        self.feature_info = [
            {"num_chs": 4, "reduction": 4, "module": "stem"},
            {"num_chs": 6, "reduction": 8, "module": "body"},
        ]

    def forward_features(self, images: Tensor) -> Tensor:
        features: Tensor = self.body(F.avg_pool2d(self.stem(images), 2).movedim(1, 3))
        return features


class TestEncoder(ModelTest):
    @pytest.fixture(params=[*ARGUMENTS, "without intermediates"])
    def case(self, request: pytest.FixtureRequest) -> Case:
        shapes, unused = {
            "test_resnet": ([(2, 32, 16, 16), (2, 96, 4, 4)], []),
            "test_vit": ([(2, 64, 4, 4), (2, 64, 4, 4)], []),
            "test_convnext": ([(2, 24, 16, 16), (2, 64, 4, 4)], ["head.norm.weight", "head.norm.bias"]),
            "test_efficientnet": (
                [(2, 24, 16, 16), (2, 64, 4, 4)],
                ["conv_head.weight", "bn2.weight", "bn2.bias"],
            ),
            "without intermediates": ([(2, 4, 16, 16), (2, 6, 8, 8)], []),
        }[request.param]

        def make() -> Encoder:
            if request.param == "without intermediates":
                return Encoder(BackboneWithoutIntermediates(), 64)
            arguments = choose_arguments(request.param, ARGUMENTS[request.param], Needs({"image": 64}, maps=True))
            return Encoder(create_backbone(request.param, **arguments), 64)

        return Case(
            make,
            inputs=(random(2, 3, 64, 64),),
            shapes=shapes,
            unused=frozenset(f"backbone.{name}" for name in unused),
            has_graph_breaks=request.param == "without intermediates",  # it registers hooks
        )

    def test_the_measured_channels_and_stride_are_those_of_the_outputs(self, case: Case) -> None:
        encoder = case.model()
        low_bchw, high_bchw = encoder(*case.inputs)
        assert (encoder.low_channels, encoder.high_channels) == (low_bchw.shape[1], high_bchw.shape[1])
        assert encoder.stride == 64 // high_bchw.shape[-1]


def make_encoder() -> Encoder:
    return Encoder(create_backbone("test_resnet", output_stride=16), image_size=64)


def make_multiclass_segmenter(decoder: str) -> MulticlassSegmenter:
    encoder = make_encoder()
    return MulticlassSegmenter(
        encoder, DECODERS[decoder](encoder.low_channels, encoder.high_channels, CHANNELS, (1, 2, 3), 0.1), NUM_CLASSES
    )


def make_attention_segmenter(placement: str, decoder: str = "deeplabv3plus") -> AttentionSegmenter:
    encoder = make_encoder()
    on_encoder = placement == "encoder"
    dim = 24 if on_encoder else CHANNELS
    attention = ClassAttention(NUM_CLASSES, encoder.high_channels if on_encoder else CHANNELS, dim, NUM_HEADS)
    decoder_channels = dim if on_encoder else encoder.high_channels
    return AttentionSegmenter(
        encoder,
        DECODERS[decoder](encoder.low_channels, decoder_channels, CHANNELS, (1, 2, 3), 0.1),
        attention,
        CHANNELS,
        placement,
    )


class TestMulticlassSegmenter(ModelTest):
    @pytest.fixture(params=DECODERS)
    def case(self, request: pytest.FixtureRequest) -> Case:
        return Case(
            make=lambda: make_multiclass_segmenter(request.param),
            inputs=(random(2, 3, 64, 48),),
            shapes=[(2, 1 + NUM_CLASSES, 64, 48)],
        )


class TestAttentionSegmenter(ModelTest):
    @pytest.fixture(params=["encoder", "decoder"])
    def case(self, request: pytest.FixtureRequest) -> Case:
        size = (4, 3) if request.param == "encoder" else (16, 12)
        return Case(
            make=lambda: make_attention_segmenter(request.param),
            inputs=(random(2, 3, 64, 48), QUERIES),
            shapes=[(2, 3, 64, 48), (2, 3, NUM_HEADS, *size)],
        )
