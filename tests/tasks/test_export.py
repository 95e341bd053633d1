"""Finished runs as files, and the programs in docs/export.md that use them without cvexp."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cvexp as package
from cvexp.colors import color_of_label
from cvexp.inference.segmenter import Segmenter
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, runs, save_image, store, write_coco

pytestmark = pytest.mark.slow  # these tests train, and trace networks

DOCS = Path(__file__).parents[2] / "docs" / "export.md"


def programs() -> dict[str, str]:
    """Return the programs of the documentation by the file that they read."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    return {match[0]: block for block in blocks if (match := re.search(r"model\.\w+|backbone\.safetensors", block))}


def run_program(name: str, folder: Path) -> str:
    """Run a program of the documentation in a folder, where `import cvexp` fails, and return what it prints."""
    program = programs()[name]
    assert len(list(filter(str.strip, program.splitlines()))) <= 10
    code = f"import sys; sys.modules['cvexp'] = None\n{program}"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def artifacts() -> set[str]:
    return {item.path for item in store().list_artifacts(runs()[0].info.run_id, "export")}


def fine(outcome: Outcome) -> str:
    assert outcome.code == 0, outcome.message
    return outcome.message


def refusal(outcome: Outcome) -> str:
    assert outcome.code == 1, outcome.message
    assert outcome.message.count("\n") <= 1, outcome.message
    return outcome.message


def test_segmentation(cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no finished training run" in refusal(cvexp("task=export"))
    fine(cvexp("task=multiclass", *TINY_SEGMENTATION, "trainer.max_steps=3", "tracking.folder=my store"))
    place = "tracking.folder=my store"
    run_id = runs(Path("my store"))[0].info.run_id
    printed = fine(cvexp("task=export", place, "task.out=models"))
    assert re.search(r"models/model.onnx: [\d.]+ MB, any number of images of any size, trained at 64 px", printed)
    job = runs(Path("my store"))[0]
    assert job.data.tags["of_run"] == run_id
    assert job.data.metrics["export/max_difference/onnx/probability"] < 1e-4
    assert job.data.metrics["export/different_labels/pt2"] < 1e-3
    paths = {item.path for item in store(Path("my store")).list_artifacts(job.info.run_id, "export")}
    assert paths == {"export/model.onnx", "export/model.pt2"}
    assert {path.name for path in Path("models").iterdir()} == {"model.onnx", "model.pt2"}

    save_photo(Path("models/photo.jpg"), 90, 70)
    run_program("model.onnx", Path("models"))
    segmenter = package.load(run_id, tracking_folder="my store", device="cpu")
    assert isinstance(segmenter, Segmenter)
    expected = segmenter.predict("models/photo.jpg")
    with Image.open("models/labels.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    colors = np.array([[int(color_of_label(n)[at : at + 2], 16) for at in (1, 3, 5)] for n in range(4)])
    assert pixels.shape == (70, 90, 3)
    assert (pixels == colors[expected.labels]).all(2).mean() > 0.9  # Pillow rounds differently
    presence = dict(line.split(": ") for line in run_program("model.pt2", Path("models")).splitlines())
    assert list(presence) == list(segmenter.classes)

    for name in ("model.onnx", "model.pt2"):
        assert "verified" in fine(cvexp("task=export", place, f"task.verify=models/{name}"))
    words = refusal(cvexp("task=export", place, "task.out=models", "task.checkpoint=last"))
    assert "task.out: there is another file models/model.onnx, which is not overwritten" in words
    assert "choose onnx or pt2" in refusal(cvexp("task=export", place, "task.formats=[safetensors]"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'cvexp[export]'" in refusal(cvexp("task=export", place))
    words = refusal(cvexp("task=export", place, "task.formats=[pt2]", "task.images=[nowhere.jpg]"))
    assert "task.images: there is no file or folder 'nowhere.jpg'" in words


def save_photo(path: Path, width: int, height: int) -> None:
    """Save a smooth picture."""
    save_image(path, size=(3, 2))
    with Image.open(path) as image:
        image.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=95)


def test_pretraining(cvexp: Callable[..., Outcome]) -> None:
    fine(cvexp("task=dino", *TINY, "trainer.max_steps=1"))
    run_id = runs()[0].info.run_id
    printed = fine(cvexp("task=export", "task.checkpoint=last"))
    folder = Path(f"outputs/export/{run_id}-last")
    names = {"model.onnx", "model.pt2", "backbone.safetensors"}
    assert {path.name for path in folder.iterdir()} == names
    assert artifacts() == {f"export/{name}" for name in names}
    assert printed.count("largest difference: features") == 3
    save_photo(folder / "photo.jpg", 90, 70)
    assert run_program("backbone.safetensors", folder) == "torch.Size([1, 96])\n"

    assert "replaced" in fine(cvexp("task=export", "task.checkpoint=last", "task.formats=[safetensors]"))
    (folder / "model.onnx").write_bytes(b"mine")
    assert "not overwritten" in refusal(cvexp("task=export", "task.checkpoint=last"))
    assert (folder / "model.onnx").read_bytes() == b"mine"
    assert "not a readable ONNX file" in refusal(cvexp("task=export", f"task.verify={folder}/model.onnx"))
    assert "there is no file" in refusal(cvexp("task=export", "task.verify=none.onnx"))
    assert "must be a file that ends with .onnx, .pt2" in refusal(cvexp("task=export", "task.verify=photo.jpg"))
    good = ["task=export", f"task.verify={folder}/backbone.safetensors"]
    assert f"verified, run {run_id}, last checkpoint" in fine(cvexp(*good))
    fine(cvexp("task=dino", *TINY, "trainer.max_steps=1", "seed=1"))
    assert f"was exported from run {run_id}, not from" in refusal(cvexp(*good, f"run={runs()[0].info.run_id}"))

    Image.new("RGB", (128, 128)).save(next(Path("outputs/data/shapes").glob("*/val/000003.bmp")))
    assert "have changed since the run" in (message := refusal(cvexp(*good)))
    assert "with task.images=[a.jpg,b.jpg]" in message
    assert "verified" in fine(cvexp(*good, f"task.images=[{folder}/photo.jpg]"))


def test_files_that_differ_too_much_are_not_kept(cvexp: Callable[..., Outcome]) -> None:
    fine(cvexp("task=dino", *TINY, "trainer.max_steps=1"))
    words = refusal(cvexp("task=export", "task.tolerance=1e-12", "task.out=models"))
    assert "can't be exported as onnx (features differs by" in words
    assert "other formats were written" in words
    assert {path.name for path in Path("models").iterdir()} == {"model.pt2", "backbone.safetensors"}
    assert artifacts() == {"export/model.pt2", "export/backbone.safetensors"}
    assert runs()[0].info.status == "FAILED"


def test_odd_names_and_data_that_are_gone(cvexp: Callable[..., Outcome]) -> None:
    annotations = write_coco(Path("data")) / "annotations"
    for path in annotations.iterdir():
        path.write_text(path.read_text().replace('"cat"', '"R&D"').replace('"dog"', '"car (parked)"'))
    keys = [key for key in TINY_SEGMENTATION if not re.match(r"dataset\.\w+_images", key)]
    fine(cvexp("task=attention", *keys, "dataset=coco", "dataset.root=data", "trainer.max_steps=1"))
    Path("data").rename("moved")
    export = ["task=export", "task.formats=[pt2]", "task.out=models"]
    assert "with task.images=[a.jpg,b.jpg]" in refusal(cvexp(*export))
    save_photo(Path("models/photo.jpg"), 90, 70)
    fine(cvexp(*export, "task.images=[models]"))
    lines = run_program("model.pt2", Path("models")).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["R&D", "car (parked)", "person"]
