import socket
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from cvexp.models.backbone import (
    ArgumentsError,
    Encoder,
    PretrainedWeightsError,
    UnknownModelError,
    create_backbone,
    feature_dim,
)
from tests.models.test_models import BackboneWithoutIntermediates


@pytest.mark.parametrize(
    ("name", "arguments", "error", "message"),
    [
        ("resnet19", {}, UnknownModelError, r"timm has no model 'resnet19'"),
        ("test_resnet", {"patches": 3}, ArgumentsError, r"test_resnet does not accept {'patches': 3}: .*patches"),
    ],
)
def test_mistakes_have_errors_of_their_own(
    name: str, arguments: dict[str, Any], error: type[ValueError], message: str
) -> None:
    with pytest.raises(error, match=rf"^{message}"):
        create_backbone(name, **arguments)


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
def test_the_length_of_the_features_is_measured_because_timms_may_be_wrong(name: str) -> None:
    backbone = create_backbone(name)
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    random_state = torch.get_rng_state()
    length = feature_dim(backbone, 64)
    assert length != backbone.num_features
    assert backbone.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    assert backbone(torch.randn(2, 3, 64, 64)).shape == (2, length)


def test_without_forward_intermediates_the_maps_are_those_of_the_modules_in_feature_info() -> None:
    backbone = BackboneWithoutIntermediates()
    encoder = Encoder(backbone, 32)
    images = torch.randn(2, 3, 32, 32)
    low, high = encoder(images)
    torch.testing.assert_close(low, backbone.stem(images))
    torch.testing.assert_close(high, backbone.forward_features(images).movedim(3, 1))
    assert not backbone.stem._forward_hooks


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[object]:
    """Disable the network, empty the cache, and return a list of the attempts to connect."""
    attempts: list[object] = []

    def fail(*arguments: object, **keywords: object) -> None:
        attempts.append(arguments)
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return attempts


def test_without_a_network_pretrained_weights_fail_at_once(offline: list[object]) -> None:
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
