"""Mistakes about the configured backbone name their key."""

from typing import Any

import pytest

from cvexp.config import BackboneConfig
from cvexp.errors import UserError
from cvexp.models import backbone as models
from cvexp.models.arguments import Needs
from cvexp.weights.backbone import choose_arguments, create_backbone
from cvexp.weights.start import Start

TWO_SIZES = Needs({"task.global_size": 96, "task.local_size": 48})
SMALL_VIT = {"embed_dim": 24, "depth": 2, "num_heads": 2}


def maps(size: int, output_stride: int | None = None) -> Needs:
    return Needs({"dataset.image_size": size}, maps=True, output_stride=output_stride)


@pytest.mark.parametrize(
    ("name", "args", "needs", "words"),
    [
        ("resnet19", {}, TWO_SIZES, ["backbone.name: timm has no model 'resnet19'", "resnet18"]),
        (
            "convit_tiny",
            SMALL_VIT,
            TWO_SIZES,
            ["task.local_size: convit_tiny", "task.global_size=96 task.local_size=96"],
        ),
        ("dla46_c", {}, TWO_SIZES, ["task.local_size: dla46_c", "task.global_size=96 task.local_size=64"]),
        (
            "vit_tiny_patch16_224",
            {**SMALL_VIT, "dynamic_img_size": False},
            TWO_SIZES,
            ["task.local_size", "doesn't match model (224)", "task.global_size=96 task.local_size=96"],
        ),
        ("test_resnet", {"global_pool": ""}, TWO_SIZES, ["backbone.name: test_resnet", "instead of one vector"]),
        ("test_resnet", {"patches": 3}, TWO_SIZES, ["backbone.args: test_resnet", "patches"]),
        ("ghostnet_050", {}, maps(64, 16), ["task.output_stride: got 16", "its default is 32"]),
        ("vit_tiny_patch16_224", SMALL_VIT, maps(64, 8), ["task.output_stride: got 8", "its default is 16"]),
    ],
)
def test_what_a_model_can_not_do_is_refused_with_what_it_can(
    name: str, args: dict[str, Any], needs: Needs, words: list[str]
) -> None:
    with pytest.raises(UserError) as raised:
        choose_arguments(BackboneConfig(name=name, weights=None, args=args), needs)
    assert all(word in str(raised.value) for word in words), raised.value
    assert "\n" not in str(raised.value)


def test_pretrained_weights_that_can_not_be_loaded_name_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise models.PretrainedWeightsError("no network")

    monkeypatch.setattr(models, "create_backbone", fail)
    config = BackboneConfig(name="test_vit", weights="timm", args={})
    with pytest.raises(UserError, match=r"^backbone\.weights=timm: no network; .* backbone\.weights=PATH"):
        create_backbone(config, {}, Start("timm", pretrained=True))
