import socket
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from cvexp.models.backbone import BackboneError, Encoder, PretrainedWeightsError, create_backbone, feature_dim
from cvexp.models.probe import Needs, choose_arguments

TWO_SIZES = Needs({"task.global_size": 96, "task.local_size": 48})
SMALL_VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2}
SMALL_SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}


def maps(size: int, output_stride: int | None = None) -> Needs:
    return Needs({"dataset.image_size": size}, maps=True, output_stride=output_stride)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv3_small_050",
        "mobilenetv4_conv_small_035",
        "ghostnet_050",
        "repghostnet_050",
        "efficientvit_b0",
        "hgnetv2_b0",
        "inception_next_atto",
    ],
)
def test_the_length_of_the_features_is_measured_where_timm_has_it_wrong(name: str) -> None:
    backbone = create_backbone(name)
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    random_state = torch.get_rng_state()
    length = feature_dim(backbone, 64)
    assert length != backbone.num_features
    assert backbone.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    assert backbone(torch.randn(2, 3, 64, 64)).shape == (2, length)


@pytest.mark.parametrize(
    ("name", "args", "needs", "expected"),
    [
        ("test_resnet", {}, TWO_SIZES, {}),
        ("test_resnet", {}, maps(64), {"output_stride": 16}),
        ("test_resnet", {}, maps(64, 8), {"output_stride": 8}),
        ("test_resnet", {"output_stride": 8}, maps(64), {"output_stride": 8}),
        ("ghostnet_050", {}, maps(64), {}),
        ("vit_tiny_patch16_224", SMALL_VIT, TWO_SIZES, {"dynamic_img_size": True}),
        ("vit_tiny_patch16_224", SMALL_VIT, maps(224), {}),
        ("vit_tiny_patch16_224", SMALL_VIT, maps(90), {"dynamic_img_size": True, "dynamic_img_pad": True}),
        ("vit_tiny_patch16_224", {**SMALL_VIT, "img_size": 96}, maps(96), {"img_size": 96}),
        ("convit_tiny", SMALL_VIT, maps(64), {"img_size": 64}),
    ],
)
def test_arguments_are_those_that_the_task_needs(
    name: str, args: dict[str, Any], needs: Needs, expected: dict[str, Any]
) -> None:
    random_state = torch.get_rng_state()
    assert choose_arguments(name, args, needs) == {**args, **expected}
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(
    ("name", "args"),
    [("vit_tiny_patch16_224", SMALL_VIT), ("swin_tiny_patch4_window7_224", SMALL_SWIN), ("test_vit", {})],
)
def test_weights_of_one_image_size_load_at_another(name: str, args: dict[str, Any]) -> None:
    pretrained = create_backbone(name, **choose_arguments(name, args, TWO_SIZES))
    for size in (96, 128, 224):
        other = create_backbone(name, **choose_arguments(name, args, maps(size)))
        other.load_state_dict(pretrained.state_dict())
        low, high = Encoder(other, size)(torch.randn(2, 3, size, size))
        assert low.shape[-1] >= high.shape[-1] == size // (32 if "swin" in name else 16)


@pytest.mark.parametrize("error", [KeyError("a"), AssertionError(), ImportError("needs a package\nInstall it")])
def test_whatever_a_model_raises_becomes_one_message(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*args: Any, **keywords: Any) -> None:
        raise error

    model = type(create_backbone("test_resnet"))
    for owner, name, words in ((timm, "create_model", "created"), (model, "forward_intermediates", "used")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(BackboneError, match=rf"^test_resnet can't be {words}.*$"):
                choose_arguments("test_resnet", {}, maps(64))


class _Hooked(nn.Module):
    """A model without `forward_intermediates`, whose second map has its channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 4, stride=4)
        self.body = nn.Linear(4, 6)
        self.feature_info = [
            {"num_chs": 4, "reduction": 4, "module": "stem"},
            {"num_chs": 6, "reduction": 8, "module": "body"},
        ]

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.body(self.stem(images).movedim(1, 3))
        return features


def test_without_forward_intermediates_the_maps_are_those_that_feature_info_names() -> None:
    backbone = _Hooked()
    encoder = Encoder(backbone, 32)
    assert (encoder.low_channels, encoder.high_channels) == (4, 6)
    images = torch.randn(2, 3, 32, 32)
    low, high = encoder(images)
    torch.testing.assert_close(low, backbone.stem(images))
    torch.testing.assert_close(high, backbone.forward_features(images).movedim(3, 1))
    assert not backbone.stem._forward_hooks


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[object]:
    """No network and an empty cache; the list grows with each attempt to reach something."""
    attempts: list[object] = []

    def fail(*arguments: object, **keywords: object) -> None:
        attempts.append(arguments)
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return attempts


def test_without_a_network_pretrained_weights_are_refused_at_once(offline: list[object]) -> None:
    with pytest.raises(PretrainedWeightsError, match=r"^the pretrained weights of test_vit can't be loaded"):
        create_backbone("test_vit", pretrained=True)
    assert len(offline) == 1
    assert not constants.HF_HUB_OFFLINE


def test_without_a_network_cached_weights_are_loaded(offline: list[object], tmp_path: Path) -> None:
    original = timm.create_model("test_vit")
    hub_id: str = timm.get_pretrained_cfg("test_vit").hf_hub_id  # type: ignore[union-attr, assignment]
    cached = tmp_path / "hub" / f"models--{hub_id.replace('/', '--')}"
    commit = "0" * 40
    for file, content in (("refs/main", commit), (f"snapshots/{commit}/model.safetensors", "")):
        (cached / file).parent.mkdir(parents=True, exist_ok=True)
        (cached / file).write_text(content)
    save_file(original.state_dict(), cached / f"snapshots/{commit}/model.safetensors")
    loaded = create_backbone("test_vit", pretrained=True).state_dict()
    assert all(torch.equal(value, original.state_dict()[key]) for key, value in loaded.items())
    assert len(offline) == 1
