from typing import Any

import pytest

from cvexp.config import BackboneConfig
from cvexp.errors import UserError
from cvexp.models.probe import Needs
from cvexp.weights.backbone import choose_arguments

VIEWS = Needs({"task.global_size": 96, "task.local_size": 48})


@pytest.mark.parametrize(
    ("name", "args", "needs", "words"),
    [
        ("resnet19", {}, VIEWS, ["backbone.name: timm has no model 'resnet19'", "resnet18"]),
        ("test_resnet", {"patches": 3}, VIEWS, ["backbone.args: test_resnet", "patches"]),
        (
            "test_resnet",
            {"global_pool": ""},
            VIEWS,
            ["backbone.name: test_resnet", "choose another with backbone.name="],
        ),
        ("dla46_c", {}, VIEWS, ["task.local_size: dla46_c", "task.global_size=96 task.local_size=64"]),
        (
            "ghostnet_050",
            {},
            Needs({"dataset.image_size": 64}, maps=True, output_stride=16),
            ["task.output_stride: got 16, but ghostnet_050"],
        ),
    ],
)
def test_errors_name_the_configuration_key(name: str, args: dict[str, Any], needs: Needs, words: list[str]) -> None:
    with pytest.raises(UserError) as raised:
        choose_arguments(BackboneConfig(name=name, weights=None, args=args), needs)
    assert all(word in str(raised.value) for word in words), raised.value
    assert "\n" not in str(raised.value)
