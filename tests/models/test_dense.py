"""Feature maps and class attention of several backbones, against computations of our own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cvexp.models.backbone import create_backbone
from cvexp.models.dense import DenseView, choose_view, compute_dense

FIXED = {"dynamic_img_size": False}  # takes only images of one size


def create(name: str, **args: Any) -> nn.Module:
    torch.manual_seed(0)
    return create_backbone(name, **args)


@pytest.mark.parametrize(
    ("name", "args", "trained_size", "expected"),
    [
        ("resnet18", {}, 96, DenseView(448, 4, 32)),
        ("test_resnet", {}, 48, DenseView(224, 3, 16)),  # the last map would need images that are too large
        ("test_vit", {"dynamic_img_size": True}, 96, DenseView(224, 5, 16)),
        ("test_vit", {"dynamic_img_size": True}, 32, DenseView(160, 5, 16)),  # the largest permitted size
        ("test_vit", {"img_size": 64, "patch_size": 8, **FIXED}, 64, DenseView(64, 5, 8)),  # takes only this size
        ("test_vit", {"img_size": 32, **FIXED}, 32, DenseView(32, 5, 16)),
    ],
)
def test_the_last_map_with_enough_positions_is_chosen(
    name: str, args: dict[str, object], trained_size: int, expected: DenseView
) -> None:
    assert choose_view(create(name, **args), trained_size) == expected


def test_a_size_that_the_network_does_not_accept_is_refused() -> None:
    with pytest.raises(ValueError, match="no feature maps of images of 40 px"):
        choose_view(create("test_vit", img_size=64, **FIXED), 64, 40)
    with pytest.raises(ValueError, match="does not describe its feature maps"):
        choose_view(nn.Conv2d(3, 8, 3), 64)


def test_maps_are_those_of_timm_and_nothing_changes() -> None:
    backbone = create("test_resnet").train()
    images = torch.randn(2, 3, 64, 96)
    state = {key: value.clone() for key, value in backbone.state_dict().items()}
    random_state = torch.get_rng_state()
    dense = compute_dense(backbone, images, 4)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert backbone.training
    assert all(torch.equal(value, state[key]) for key, value in backbone.state_dict().items())
    assert torch.equal(dense.maps, backbone.eval().forward_features(images))  # type: ignore[operator]
    assert dense.maps.shape == (2, 96, 2, 3)
    assert dense.attention is None


def attention_of(backbone: nn.Module, images: Tensor) -> Tensor:
    """The attention (b, n, t, t) of the last block, from its definition."""
    inputs: list[Tensor] = []
    layer = backbone.get_submodule("blocks")[-1].attn  # type: ignore[index]
    handle = layer.register_forward_hook(lambda _module, args, _output: inputs.append(args[0]))
    backbone.eval()(images)
    handle.remove()
    x_btc = inputs[0].double()
    weight, bias = layer.qkv.weight.double(), layer.qkv.bias
    qkv = x_btc @ weight.T + (0 if bias is None else bias.double())
    q_bnth, k_bnth = (part.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=-1)[:2])
    q_bnth, k_bnth = layer.q_norm.double()(q_bnth), layer.k_norm.double()(k_bnth)
    scores = torch.einsum("bnqh,bnkh->bnqk", q_bnth, k_bnth) / q_bnth.shape[-1] ** 0.5
    weights: Tensor = scores.exp() / scores.exp().sum(-1, keepdim=True)
    backbone.float()
    return weights


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "args", "num_prefix", "of_class_token"),
    [
        ("test_vit", {"dynamic_img_size": True}, 1, True),
        ("test_vit", {"dynamic_img_size": True, "reg_tokens": 4, "qk_norm": True}, 5, True),
        ("test_vit", {"dynamic_img_size": True, "class_token": False, "global_pool": "avg"}, 0, False),
        ("test_vit", {"dynamic_img_size": True, "global_pool": "avg"}, 1, False),  # its class token is not trained
    ],
)
def test_attention_of_a_transformer(name: str, args: dict[str, object], num_prefix: int, of_class_token: bool) -> None:
    backbone = create(name, **args)
    images = torch.randn(2, 3, 64, 96)
    dense = compute_dense(backbone, images, 5)
    weights = attention_of(backbone, images)
    assert torch.allclose(weights.sum(-1), torch.ones(()).double())
    rows = weights[:, :, 0] if of_class_token else weights[:, :, num_prefix:].mean(2)
    assert dense.attention is not None
    assert dense.of_class_token == of_class_token
    assert dense.attention.shape == (2, weights.shape[1], 4, 6)
    assert torch.allclose(dense.attention.flatten(2).double(), rows[..., num_prefix:], atol=1e-6)
    assert all(layer.fused_attn for layer in backbone.modules() if hasattr(layer, "fused_attn"))


@pytest.mark.parametrize("name", ["test_vit2", "test_vit_relpos", "test_maxvit", "test_convnext", "test_mambaout"])
def test_other_backbones(name: str) -> None:
    backbone = create(name)
    view = choose_view(backbone, 160)
    dense = compute_dense(backbone, torch.randn(1, 3, view.size, view.size), view.map_index)
    assert min(dense.maps.shape[-2:]) >= 6
    assert (dense.attention is not None) == ("vit" in name and "max" not in name)
    if name == "test_vit_relpos":  # without prefix tokens, all weights are shown
        assert dense.attention is not None
        assert torch.allclose(dense.attention.sum((2, 3)), torch.ones(()))


def test_a_compiled_or_half_precision_backbone() -> None:
    backbone = create("test_vit", dynamic_img_size=True)
    images = torch.randn(1, 3, 64, 64)
    expected = compute_dense(backbone, images, 5)
    backbone.compile(backend="eager")
    compiled = compute_dense(backbone, images, 5)
    assert torch.equal(compiled.maps, expected.maps)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compute_dense(backbone, images, 5).maps, expected.maps)
    half = compute_dense(create("test_vit", dynamic_img_size=True).bfloat16(), images, 5)
    assert half.maps.dtype == torch.float32
    assert torch.allclose(half.maps, expected.maps, atol=0.2)
