"""What `backbone.weights` may name: the course's file, ours, and those of others."""

import argparse
import json
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.entities import Run
from safetensors.torch import save_file

from cvexp.models.backbone import create_backbone
from cvexp.weights.fitting import fit_decoder
from cvexp.weights.read import read_checkpoint
from cvexp.weights.start import Start
from tests.helpers import TINY_SEGMENTATION, Outcome, runs, store

pytestmark = pytest.mark.slow  # most of these tests train, or start servers or processes


def record(run: Run) -> dict[str, Any]:
    path = Path(store().download_artifacts(run.info.run_id, "weights.json"))
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.fixture
def course_weights(course: Path, tmp_path: Path) -> Path:
    """A file with the keys, shapes and types of the course's binary_segmentation.pth."""
    shapes = json.loads((course / "binary_segmentation.keys.json").read_text())["model"]
    torch.manual_seed(0)
    model = OrderedDict()
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            model[key] = torch.tensor(7)
        else:  # weights small, variances not, so that the numbers stay in range through all layers
            model[key] = 0.05 * torch.randn(shape) if len(shape) > 1 else 0.5 + 0.1 * torch.rand(shape)
    for key in model:
        if key.startswith("low_feat."):
            model[key] = model["encoder." + key.removeprefix("low_feat.")]
    content = {
        "opt": argparse.Namespace(lr=0.001, snapshot="x"),
        "epoch": 3,
        "model": model,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.001}]},
        "loss": 0.5,
        "miou": torch.tensor(0.7),
    }
    torch.save(content, tmp_path / "binary_segmentation.pth")
    return tmp_path / "binary_segmentation.pth"


@pytest.mark.parametrize("task", ["multiclass", "attention"])
def test_the_courses_file_fills_backbone_and_decoder_and_every_key_is_accounted_for(
    cvexp: Callable[..., Outcome], course: Path, course_weights: Path, task: str
) -> None:
    small = ["dataset.image_size=64", "dataset.limit=4", "trainer.max_steps=1", "loader.batch_size=2"]
    small += ["loader.num_workers=0", "trainer.accelerator=cpu", "tracking.system_metrics=false"]
    start = f"backbone.weights={course_weights}"
    outcome = cvexp(f"+experiment=course_{task}", f"dataset.root={course}", start, *small)
    assert outcome.code == 0, outcome.message
    (run,) = runs()
    said = record(run)
    file = torch.load(course_weights, weights_only=False)["model"]
    loaded = said["loaded"]
    assert {*loaded, *said["given_twice"], *said["left_out"]} == set(file)
    assert len(loaded) + len(said["given_twice"]) + len(said["left_out"]) == len(file)
    assert sum(name.startswith("backbone.") for name in loaded.values()) == 120
    assert sorted(said["given_twice"]) == sorted(key for key in file if key.startswith("low_feat."))
    classifier = ["decoder.last_conv.6.bias", "decoder.last_conv.6.weight"]
    if task == "multiclass":  # has one output for each class, where the file has two
        assert said["left_out"] == classifier
        assert said["left_random"] == ["classifier.weight", "classifier.bias"]
    else:
        assert said["left_out"] == []
        assert {name.partition(".")[0] for name in said["left_random"]} == {"attention"}  # the course had another
    assert run.data.tags["start"] == "binary_segmentation"
    # The backbone is frozen, so what training left in it is what the file has.
    state = torch.load(Path(store().download_artifacts(run.info.run_id, "checkpoints/last.ckpt")), weights_only=True)
    for key, name in loaded.items():
        if name.startswith("backbone."):
            assert torch.equal(state["state_dict"][f"model.encoder.{name}"], file[key]), key


def test_the_decoders_tensors_go_where_they_belong(course_weights: Path) -> None:
    """The course's description of its decoder, in plain functions with its own key names, equals ours after loading."""
    import torch.nn.functional as F

    from cvexp.models.deeplab import DeepLabV3Plus

    decoder = DeepLabV3Plus(64, 512, 256, (6, 12, 18), 0.5).eval()
    classifier = torch.nn.Conv2d(256, 1, 1)
    start = Start(tensors=read_checkpoint(course_weights).tensors)
    fit_decoder(torch.nn.ModuleDict({"decoder": decoder, "classifier": classifier}), start, of_classes="attention")
    state = {key.removeprefix("decoder."): value for key, value in start.tensors.items()}

    def layer(x: torch.Tensor, conv: str, norm: str, **kwargs: Any) -> torch.Tensor:
        x = F.conv2d(x, state[f"{conv}.weight"], **kwargs)
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, variance, weight, bias = (state[f"{norm}.{part}"] for part in parts)
        return F.relu(F.batch_norm(x, mean, variance, weight, bias))

    low, high = torch.rand(1, 64, 16, 16), torch.rand(1, 512, 4, 4)
    pyramid = [layer(high, "aspp1.atrous_convolution", "aspp1.bn")]
    pyramid += [
        layer(high, f"aspp{i + 2}.atrous_convolution", f"aspp{i + 2}.bn", padding=rate, dilation=rate)
        for i, rate in enumerate((6, 12, 18))
    ]
    pooled = layer(high.mean(dim=(2, 3), keepdim=True), "global_avg_pool.1", "global_avg_pool.2")
    x = layer(torch.cat([*pyramid, pooled.expand(-1, -1, 4, 4)], dim=1), "conv1", "bn1")
    x = F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
    x = torch.cat([x, layer(low, "conv2", "bn2")], dim=1)
    x = layer(layer(x, "last_conv.0", "last_conv.1", padding=1), "last_conv.3", "last_conv.4", padding=1)
    background, foreground = F.conv2d(x, state["last_conv.6.weight"], state["last_conv.6.bias"])[0]
    with torch.no_grad():
        ours = classifier(decoder(low, high))[0, 0]
    torch.testing.assert_close(ours, foreground - background, rtol=1e-3, atol=1e-3 * float(foreground.abs().max()))


def test_a_safetensors_file_of_others_is_loaded(cvexp: Callable[..., Outcome], tmp_path: Path) -> None:
    torch.manual_seed(5)
    backbone = create_backbone("test_resnet")
    save_file({f"module.{key}": value for key, value in backbone.state_dict().items()}, tmp_path / "theirs.safetensors")
    start = [f"backbone.weights={tmp_path / 'theirs.safetensors'}", "task.freeze_backbone=true"]
    outcome = cvexp("task=attention", *TINY_SEGMENTATION, *start, "trainer.max_steps=1")
    assert outcome.code == 0, outcome.message
    (run,) = runs()
    assert len(record(run)["loaded"]) == len(backbone.state_dict())
    assert run.data.tags["start"] == "theirs"


def test_a_segmentation_run_starts_another_with_its_decoder(cvexp: Callable[..., Outcome]) -> None:
    assert cvexp("task=multiclass", *TINY_SEGMENTATION, "trainer.max_steps=1").code == 0
    (first,) = runs()
    weights = f"backbone.weights=runs:/{first.info.run_id}/checkpoints/best.ckpt"
    assert cvexp("task=multiclass", *TINY_SEGMENTATION, "trainer.max_steps=1", weights).code == 0
    second = runs()[0]
    said = record(second)
    assert said["left_out"] == said["left_random"] == []
    assert second.data.tags["start"] == "multiclass"
    assert second.data.tags["mlflow.parentRunId"] == first.info.run_id


def test_what_means_certain_classes_is_not_taken_for_others(cvexp: Callable[..., Outcome]) -> None:
    quick = [*TINY_SEGMENTATION, "trainer.max_steps=1", "dataset.classes=[disk,star]"]
    for task, part in (("multiclass", "classifier"), ("attention", "attention")):
        assert cvexp(f"task={task}", *quick).code == 0
        weights = f"backbone.weights=runs:/{runs()[0].info.run_id}/checkpoints/best.ckpt"
        assert cvexp(f"task={task}", *quick, weights).code == 0
        assert record(runs()[0])["left_random"] == []
        assert cvexp(f"task={task}", *quick, weights, "dataset.classes=[disk,square]").code == 0
        assert {name.partition(".")[0] for name in record(runs()[0])["left_random"]} == {part}


@pytest.mark.parametrize("source", ["checkpoints/best.ckpt", "checkpoints"])
def test_a_registered_model_is_loaded(cvexp: Callable[..., Outcome], source: str) -> None:
    quick = [*TINY_SEGMENTATION, "trainer.max_steps=1", "task=multiclass"]
    assert cvexp(*quick).code == 0
    (first,) = runs()
    client = store()
    client.create_registered_model("shapes")
    version = client.create_model_version("shapes", f"{first.info.artifact_uri}/{source}", first.info.run_id)
    client.set_registered_model_alias("shapes", "good", version.version)
    outcome = cvexp(*quick, "backbone.weights=models:/shapes@good")
    if source == "checkpoints":
        assert outcome.code == 1
        assert "should hold one checkpoint, but holds best.ckpt, last.ckpt" in outcome.message
        return
    assert outcome.code == 0, outcome.message
    assert record(runs()[0])["left_random"] == []
    assert runs()[0].data.tags["weights_from"] == first.info.run_id
    assert cvexp(*quick, f"backbone.weights=models:/shapes/{version.version}").code == 0
    for wrong in ("models:/shapes@bad", "models:/shapes/7", "models:/others@good", "models:/shapes"):
        outcome = cvexp(*quick, f"backbone.weights={wrong}")
        assert outcome.code == 1
        assert f"the registry has no {wrong}" in outcome.message


def test_a_run_that_does_not_exist_is_named(cvexp: Callable[..., Outcome]) -> None:
    outcome = cvexp("task=multiclass", *TINY_SEGMENTATION, "backbone.weights=runs:/0123/checkpoints/best.ckpt")
    assert outcome.code == 1
    assert "there is no run '0123'" in outcome.message
