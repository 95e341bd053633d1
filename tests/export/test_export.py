"""Exported files: their outputs, their sizes, and what they say about themselves."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from cvexp.export.about import digest
from cvexp.export.files import FORMATS, ExportError
from cvexp.export.verification import compare, make_batches
from cvexp.inference.embedder import Embedder
from cvexp.inference.segmenter import Segmenter
from tests.export.networks import CLASSES, export, make_encoder, make_images, make_segmenter

ATTENTION = [
    "task.placement=encoder task.kind=dot_product task.normalization=softmax",
    "task.placement=decoder task.kind=additive task.normalization=mean_one",
    "task.placement=decoder task.kind=cosine task.normalization=sigmoid task.decoder=deeplabv3plus",
    "task.placement=encoder task.kind=scaled_dot_product task.normalization=sigmoid",
]


def run_file(name: str, path: Path, images: torch.Tensor) -> dict[str, torch.Tensor]:
    return FORMATS[name]().load(path)(images)


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["task=multiclass", *(f"task=attention {settings}" for settings in ATTENTION)])
def test_segmenters_compute_what_predict_computes(settings: str, tmp_path: Path) -> None:
    subject = make_segmenter(*settings.split())
    images = make_images(subject, 4)
    assert isinstance(subject.network, Segmenter)
    expected = subject.network.predict_squares(images)
    assert expected.labels.unique().numel() > 1
    names = {"scores", "probability", "labels"} | ({"attention"} if "attention" in settings else set())
    for name in ("onnx", "pt2"):
        path, written = export(subject, name, tmp_path)
        assert written.about["dynamic"] == {"batch": True, "height": True, "width": True, "multiple_of": 1}
        assert written.agreement.different_labels == pytest.approx(
            0, abs=1e-2
        )  # with random weights, many scores are about equal
        outputs = run_file(name, path, images)
        assert outputs.keys() == names
        assert outputs["scores"].shape == (4, 1 + len(CLASSES), 64, 64)
        torch.testing.assert_close(outputs["probability"], expected.probability, rtol=0, atol=1e-4)
        torch.testing.assert_close(outputs["scores"].argmax(1), outputs["labels"])
        if expected.attention is not None:
            torch.testing.assert_close(outputs["attention"], expected.attention, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_encoders_compute_what_embed_computes(tmp_path: Path) -> None:
    subject = make_encoder("task=simclr")
    picture = np.random.RandomState(0).randint(0, 256, (70, 90, 3), dtype=np.uint8)
    assert isinstance(subject.network, Embedder)
    expected = torch.from_numpy(subject.network.embed(picture))[None]
    images = subject.prepare(torch.from_numpy(picture))[None]
    for name in FORMATS:
        path, written = export(subject, name, tmp_path)
        torch.testing.assert_close(run_file(name, path, images), {"features": expected})
        assert written.about["classes"] == []
        assert written.about["activation"] is None


@pytest.mark.slow
def test_other_sizes_where_the_network_takes_them(tmp_path: Path) -> None:
    """A vision transformer takes multiples of its patch size, or only one size."""
    name = "backbone.name=test_vit"
    path, written = export(make_encoder("task=dino", name), "onnx", tmp_path)
    assert written.about["dynamic"]["multiple_of"] == 16
    model = onnx.load(path)
    axes = [axis.dim_param or axis.dim_value for axis in model.graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 3, "height", "width"]

    fixed = ["+backbone.args.img_size=64", "+backbone.args.dynamic_img_size=false"]
    subject = make_encoder("task=dino", name, *fixed, "task.global_size=64", "task.local_size=64")
    assert subject.multiple is None
    for kind in ("onnx", "pt2", "safetensors"):
        path, written = export(subject, kind, tmp_path)
        assert written.about["dynamic"] == {"batch": True, "height": False, "width": False, "multiple_of": None}
        assert run_file(kind, path, make_images(subject, 3))["features"].shape == (3, 64)
        with pytest.raises(Exception, match=r"(?i)dimension|guard|doesn't match"):
            run_file(kind, path, torch.zeros(1, 3, 80, 80, dtype=torch.uint8))


@pytest.mark.slow
def test_a_network_that_depends_on_the_size_falls_back_to_one_size(tmp_path: Path) -> None:
    """At 32 px, the last map of this network has one position, which `torch.export` takes for a constant."""
    subject = make_encoder("task=dino", "task.global_size=32", "task.eval_size=32")
    assert subject.multiple == 1
    _, written = export(subject, "pt2", tmp_path)
    assert not written.about["dynamic"]["height"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "pt2"])
def test_what_files_say_about_themselves(name: str, tmp_path: Path) -> None:
    path, written = export(make_segmenter("task=attention"), name, tmp_path)
    if name == "onnx":
        text = next(entry.value for entry in onnx.load(path).metadata_props if entry.key == "cvexp")
    else:
        extra = {"cvexp": ""}
        torch.export.load(path, extra_files=extra)
        text = extra["cvexp"]
    about = json.loads(text)
    assert about == written.about
    assert about["labels"] == ["background", *CLASSES]
    assert about["colors"] == ["#E8E8E8", "#0072B2", "#E69F00"]
    assert about["activation"] == "sigmoid"
    assert about["size"] == 64
    assert about["preprocessing"]["resize"] == "longer_side"
    content = path.read_bytes()
    if name == "pt2":
        with zipfile.ZipFile(path) as archive:
            content = b"".join(archive.read(part) for part in archive.namelist())
    assert b".py" not in content, "the exporter noted paths of this machine"


def test_the_names_of_weights_are_those_of_timm(tmp_path: Path) -> None:
    path, written = export(make_encoder("task=dino", "backbone.name=test_vit"), "safetensors", tmp_path)
    about, tensors = written.about, load_file(path)
    assert tensors.keys() == timm.create_model("test_vit", num_classes=0).state_dict().keys()
    assert about["digest"] == digest({key: tensor.numpy() for key, tensor in tensors.items()})
    model = timm.create_model(about["backbone"], num_classes=0, checkpoint_path=str(path), **about["args"])
    torch.testing.assert_close(dict(model.state_dict()), tensors, rtol=0, atol=0)
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["cvexp"]) == about


def test_a_digest_depends_on_every_value_type_shape_and_name() -> None:
    x = torch.arange(4, dtype=torch.float32)
    other = x.clone()
    other[3] = torch.nextafter(other[3], torch.tensor(9.0))
    tensors = [{"a": x}, {"a": other}, {"b": x}, {"a": x.view(2, 2)}, {"a": x.int()}, {"a": x, "b": x}, {}]
    digests = {digest({key: value.numpy() for key, value in named.items()}) for named in tensors}
    assert len(digests) == len(tensors)


@pytest.mark.parametrize(
    ("output", "change", "words"),
    [
        ("probability", 0.01, "probability differs by 1.0e-02"),
        ("probability", float("nan"), "probability differs by nan"),
        ("scores", 1e-3, "scores differs by"),
        ("labels", 1, "the labels are not those of the largest scores"),
        ("labels", 0.5, "instead of scores"),  # which makes them float32
    ],
)
def test_other_outputs_are_noticed(output: str, change: float, words: str) -> None:
    subject = make_segmenter("task=multiclass")

    def run(images: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = subject.reference(images)
        return {**outputs, output: outputs[output] + change}

    batches = list(make_batches(subject, make_images(subject), subject.multiple))
    assert [tuple(images.shape) for images in batches] == [(1, 3, 64, 64)] * 3 + [(5, 3, 64, 64), (2, 3, 97, 129)]
    assert not compare(subject.reference, subject, batches).problems(1e-4)
    assert words in "; ".join(compare(run, subject, batches).problems(1e-4))


def test_a_file_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    class Wrong(nn.Module):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"features": images.float().mean((2, 3))}

    subject = make_encoder("task=dino")
    subject.graph = Wrong()
    with pytest.raises(ExportError, match=r"the outputs are features \(1, 3\) float32 instead of features \(1, 96\)"):
        export(subject, "pt2", tmp_path)


def test_a_network_that_cannot_be_traced_gives_the_reason(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"features": images.float().flatten(1) if images.sum() > 0 else images.float().flatten(1) + 1}

    subject = make_encoder("task=dino")
    subject.graph = Branching()
    with pytest.raises(ExportError, match="data-dependent"):
        export(subject, "onnx", tmp_path)
