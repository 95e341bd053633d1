"""The program of registered models: compared with the networks that it stands for, and given what strangers send."""

import base64
import io
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

import cvexp
from cvexp.colors import color_of_label
from cvexp.export.about import describe
from cvexp.export.files import write
from cvexp.export.onnx_format import Onnx
from cvexp.export.subject import Subject
from cvexp.inference.embedder import Embedder
from cvexp.inference.networks import create_encoder, method_of
from cvexp.inference.segmenter import Segmenter
from cvexp.serving import model as program
from cvexp.tracking.registry import Parts, write_model
from cvexp.weights.start import Start
from tests.helpers import TINY, TINY_SEGMENTATION

pytestmark = pytest.mark.slow  # these tests export networks

CLASSES = ("R&D", "it's <b>", "car (parked)")
CPU = torch.device("cpu")


def network(task: str) -> Segmenter | Embedder:
    """Return a network with random weights."""
    torch.manual_seed(0)
    if task == "dino":
        config = cvexp.compose(*TINY, "task.eval_size=32")
        return Embedder(create_encoder(config, Start()), config, (), CPU)
    config = cvexp.compose(*TINY_SEGMENTATION, f"task={task}")
    model = method_of(config).build_model(config, len(CLASSES), Start())
    with torch.no_grad():  # or one of the classes would be everywhere
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return Segmenter(model, config, CLASSES, CPU)


def exported(trained: Segmenter | Embedder, path: Path) -> dict[str, Any]:
    """Write a network as an ONNX file, and return its description."""
    subject = Subject(trained)
    images = torch.randint(0, 256, (2, 3, subject.size, subject.size), dtype=torch.uint8)
    return write(Onnx(), subject, path, describe(subject, "0" * 32, "best", {}), images, 1e-3).about


def opened(path: Path) -> program.Network:
    served = program.Network()
    served.load_context(SimpleNamespace(artifacts={"onnx": str(path)}))
    return served


class Exported(NamedTuple):
    """A network, its ONNX file, and the program that runs it."""

    network: Segmenter | Embedder
    path: Path
    served: program.Network


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    """Networks by their task."""
    found = {}
    for task in ("multiclass", "attention", "dino"):
        path = tmp_path_factory.mktemp(task) / "model.onnx"
        trained = network(task)
        exported(trained, path)
        found[task] = Exported(trained, path, opened(path))
    return found


@pytest.fixture
def served(models: dict[str, Exported]) -> program.Network:
    return models["multiclass"].served


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return an image with smooth areas and edges, like a photograph."""
    coarse = np.random.RandomState(seed).randint(0, 256, (7, 9, 4), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated(orientation: int) -> bytes:
    image = picture(90, 60).convert("RGB")
    exif = image.getexif()
    exif[0x0112] = orientation
    return encoded(image, "JPEG", exif=exif)


def files() -> dict[str, bytes]:
    """Return image files of all kinds by a description."""
    sixteen_bits = Image.fromarray(np.random.RandomState(0).randint(0, 2**16, (40, 60)).astype(np.uint16))
    return {
        **{
            f"{mode} {width} x {height}": encoded(picture(width, height).convert(mode))
            for mode in ("RGB", "RGBA", "L", "LA", "P", "1")
            for width, height in ((300, 200), (40, 64))
        },
        **{
            f"{width} x {height}": encoded(picture(width, height).convert("RGB"))
            for width, height in ((64, 64), (1, 1), (1, 300), (500, 3), (1200, 900))
        },
        **{f"orientation {orientation}": rotated(orientation) for orientation in range(1, 9)},
        **{kind: encoded(picture(120, 80).convert("RGB"), kind) for kind in ("WEBP", "BMP", "TIFF", "GIF", "PPM")},
        "16 bits": encoded(sixteen_bits),
    }


def predict(served: program.Network, *data: object, **params: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = served.predict(None, pd.DataFrame({"image": list(data)}), params).to_dict("records")
    return rows


def label_map(row: dict[str, Any]) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(row["mask"]))))


@pytest.mark.parametrize("task", ["multiclass", "attention"])
def test_masks_are_those_of_the_segmenter(models: dict[str, Exported], task: str, tmp_path: Path) -> None:
    segmenter, _, served = models[task]
    assert isinstance(segmenter, Segmenter)
    found: set[int] = set()
    different, total = 0, 0
    for name, data in files().items():
        (tmp_path / "file").write_bytes(data)
        expected = segmenter.predict(tmp_path / "file")
        (row,) = predict(served, data)
        labels = label_map(row)
        assert labels.shape == expected.labels.shape == (row["height"], row["width"]), name
        share = np.mean(labels != expected.labels)
        assert share <= 0.005 or np.sum(labels != expected.labels) <= 2, name
        assert row["presence"] == pytest.approx(expected.presence, abs=0.01), name
        found |= set(labels.ravel().tolist())
        different, total = different + int(np.sum(labels != expected.labels)), total + labels.size
    assert len(found) > 2
    assert different / total < 0.002


def test_features_are_those_of_the_encoder(models: dict[str, Exported], tmp_path: Path) -> None:
    embedder, _, served = models["dino"]
    assert isinstance(embedder, Embedder)
    for name, data in files().items():
        (tmp_path / "file").write_bytes(data)
        expected = embedder.embed(tmp_path / "file")
        (row,) = predict(served, data)
        assert row["features"] == pytest.approx(expected, abs=0.02 * float(np.sqrt(np.mean(expected**2)))), name


def test_masks_have_the_colors_of_the_classes(served: program.Network) -> None:
    (row,) = predict(served, encoded(picture(200, 150).convert("RGB")))
    mask = Image.open(io.BytesIO(base64.b64decode(row["mask"])))
    colors = {label: mask.convert("RGB").getpixel((x, y)) for (y, x), label in np.ndenumerate(np.asarray(mask))}
    assert len(colors) > 1
    for label, pixel in colors.items():
        assert f"#{bytes(pixel).hex()}" == color_of_label(label).lower()  # type: ignore[arg-type]


def test_run_lengths_are_those_of_the_mask(served: program.Network) -> None:
    data = [encoded(picture(200, 150, seed).convert("RGB")) for seed in range(4)]
    for row, other in zip(predict(served, *data), predict(served, *data, format="rle"), strict=True):
        labels, masks = label_map(row), json.loads(other["mask"])
        assert masks.keys() == {CLASSES[label - 1] for label in np.unique(labels[labels > 0])}
        for name, lengths in masks.items():
            decoded = coco_mask.decode(coco_mask.frPyObjects(lengths, *lengths["size"]))
            np.testing.assert_array_equal(decoded.astype(bool), labels == 1 + CLASSES.index(name))


def bomb(width: int, height: int) -> bytes:
    """Return a small PNG file that claims to be large."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))


GOOD = encoded(picture(30, 20).convert("RGB"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not an image file"),
        (b"hello", "not an image file of type JPEG"),
        (base64.b64encode(GOOD), "it must be base64 in dataframe_records"),
        (GOOD[:200], "it is broken"),
        (bomb(50_000, 50_000), "more than 134217728 pixels"),
        (bomb(12_000, 11_500), "it has 12000 x 11500 px, but at most"),
        (bomb(100_000, 1), "it has 100000 x 1 px, but at most"),
        (None, "must be the bytes"),
        (float("nan"), "must be the bytes"),
        ("text", "must be the bytes"),
        (encoded(Image.new("F", (3, 3)), "TIFF"), "floating-point numbers"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not an image file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(500), "it is broken|not an image file"),
    ],
)
def test_what_is_no_image_is_refused_in_one_sentence(served: program.Network, data: object, reason: str) -> None:
    with pytest.raises(program.InvalidInputError, match=f"^image 2: .*({reason})[^\n]*$") as caught:
        predict(served, GOOD, data)
    assert caught.value.get_http_status_code() == 400  # type: ignore[no-untyped-call]
    caught.value.message = f"Failed to predict data '...'. \nError: {caught.value.message}"  # as MLflow's server does
    assert "Failed to predict" not in json.loads(caught.value.serialize_as_json())["message"]


def test_unknown_formats_are_refused(served: program.Network) -> None:
    for value in ("gif", None, 3, ["png"], "x" * 10_000):
        with pytest.raises(program.InvalidInputError, match=r"^format: got .{1,50}, but it must be png or rle$"):
            predict(served, GOOD, format=value)


def test_features_of_long_images_are_refused_before_they_are_resized(models: dict[str, Exported]) -> None:
    with pytest.raises(program.InvalidInputError, match=r"scaled to 32 px, it has 1920000 x 32 px, but at most"):
        predict(models["dino"].served, encoded(Image.new("L", (60_000, 1))))


def test_labels_do_not_depend_on_the_number_of_rows_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.random.RandomState(0).randn(4, 9, 13).astype(np.float32)
    expected = program.label_map(scores, 50, 41)
    for values in (1, 500, 10**9):
        monkeypatch.setattr(program, "MAX_VALUES", values)
        np.testing.assert_array_equal(program.label_map(scores, 50, 41), expected)
    resized = torch.nn.functional.interpolate(torch.from_numpy(scores)[None], (50, 41), mode="bilinear")
    assert np.mean(resized[0].argmax(0).numpy() != expected) < 0.001


WITHOUT_CVEXP = """
import sys
sys.modules |= {"cvexp": None, "torch": None, "torchvision": None, "timm": None}
import mlflow, pandas
model = mlflow.pyfunc.load_model("model")
rows = model.predict(pandas.DataFrame({"image": [open("image.png", "rb").read()]}), params={"format": "rle"})
print(rows.to_json(orient="records"))
"""


def test_the_folder_of_a_model_works_without_cvexp_pytorch_and_pickle(
    models: dict[str, Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, onnx, served = models["multiclass"]
    about = {"kind": "segmenter", "classes": list(CLASSES)}
    Path("best.ckpt").write_bytes(b"weights")
    write_model(Path("model"), Parts(onnx, Path("best.ckpt"), about, {}))
    Path("image.png").write_bytes(GOOD)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    ran = subprocess.run([sys.executable, "-c", WITHOUT_CVEXP], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    (row,), (expected,) = json.loads(ran.stdout), predict(served, GOOD, format="rle")
    assert (row["mask"], row["width"]) == (expected["mask"], expected["width"])
    assert row["presence"] == pytest.approx(expected["presence"])
    requirements = Path("model/requirements.txt").read_text().split()
    assert [line.partition("==")[0] for line in requirements] == [
        *("mlflow-skinny", "numpy", "onnxruntime", "pandas", "pillow")
    ]
    assert [path.name for path in sorted(Path("model/artifacts").iterdir())] == ["best.ckpt", "model.onnx"]
    assert not list(Path("model").rglob("*.pkl"))
