from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from omegaconf import OmegaConf

from cvexp.composition import CONF
from cvexp.models.arguments import Needs, SizeError, StrideError, choose_arguments
from cvexp.models.backbone import ArgumentsError, BackboneError, Encoder, create_backbone

TWO_SIZES = Needs({"global": 96, "local": 48})
SMALL_VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2}
SMALL_SWIN = {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}


def maps(size: int, output_stride: int | None = None) -> Needs:
    return Needs({"image": size}, maps=True, output_stride=output_stride)


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
def test_the_chosen_arguments_meet_the_requirements(
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


@pytest.mark.parametrize(
    ("name", "args", "needs", "error", "words"),
    [
        ("convit_tiny", SMALL_VIT, TWO_SIZES, SizeError, ["local: convit_tiny", "it can with global=96 local=96"]),
        ("dla46_c", {}, TWO_SIZES, SizeError, ["local: dla46_c", "it can with global=96 local=64"]),
        (
            "vit_tiny_patch16_224",
            {**SMALL_VIT, "dynamic_img_size": False},
            TWO_SIZES,
            SizeError,
            ["local: vit_tiny", "doesn't match model (224)); it can with global=96 local=96"],
        ),
        ("test_resnet", {"global_pool": ""}, TWO_SIZES, BackboneError, ["test_resnet", "instead of one vector"]),
        ("test_resnet", {"patches": 3}, TWO_SIZES, ArgumentsError, ["test_resnet does not accept", "patches"]),
        ("ghostnet_050", {}, maps(64, 16), StrideError, ["got 16, but ghostnet_050", "its default is 32"]),
        ("vit_tiny_patch16_224", SMALL_VIT, maps(64, 8), StrideError, ["got 8, but vit", "its default is 16"]),
    ],
)
def test_errors_name_the_sizes_and_the_stride_that_a_model_supports(
    name: str, args: dict[str, Any], needs: Needs, error: type[BackboneError], words: list[str]
) -> None:
    with pytest.raises(error) as raised:
        choose_arguments(name, args, needs)
    assert all(word in str(raised.value) for word in words), raised.value
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "args",
    [
        {"checkpoint_path": "/etc/hosts"},
        {"pretrained": True, "cache_dir": "x"},
        {"pretrained_cfg": {"url": "http://127.0.0.1:9/y"}},
        {"pretrained_cfg_overlay": {"file": "y"}},
    ],
)
def test_arguments_load_no_files(args: dict[str, Any]) -> None:
    with pytest.raises(ArgumentsError, match=f"leave out {', '.join(sorted(args))}: arguments must not"):
        choose_arguments("test_resnet", args, TWO_SIZES)


@pytest.mark.parametrize("name", ["hf-hub:someone/resnet18", "local-dir:/tmp", "resnet18.local-dir:/tmp"])
def test_names_load_no_files(name: str) -> None:
    with pytest.raises(BackboneError, match=r"^timm has no model|Unknown model source"):
        choose_arguments(name, {}, TWO_SIZES)


@pytest.mark.parametrize("error", [KeyError("a"), AssertionError(), ImportError("needs a package\nInstall it")])
def test_every_exception_of_a_model_becomes_a_message_of_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*args: Any, **keywords: Any) -> None:
        raise error

    model = type(create_backbone("test_resnet"))
    for owner, name, verb in ((timm, "create_model", "created"), (model, "forward_intermediates", "used")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, fail)
            with pytest.raises(BackboneError, match=rf"^test_resnet can't be {verb}.*$") as raised:
                choose_arguments("test_resnet", {}, maps(64))
            assert "\n" not in str(raised.value)


@pytest.mark.parametrize("file", sorted((CONF / "backbone").glob("*.yaml")), ids=lambda file: file.stem)
def test_configured_backbones_have_feature_maps(file: Path) -> None:
    backbone_name = OmegaConf.load(file).name
    arguments = choose_arguments(backbone_name, {}, maps(64))
    with torch.no_grad():
        encoder = Encoder(create_backbone(backbone_name, **arguments), 64)
        low, high = encoder(torch.zeros(1, 3, 64, 64))
    assert low.shape == (1, encoder.low_channels, *[64 // (16 if "vit" in backbone_name else 4)] * 2)
    assert high.shape == (1, encoder.high_channels, 4, 4)
