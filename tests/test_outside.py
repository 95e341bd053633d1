"""A package that is installed beside cvexp brings a source, a pretraining method, a segmentation method and a job."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvexp import plugins
from tests.helpers import Outcome, runs, store

pytestmark = pytest.mark.slow  # most of these tests train, or start servers or processes


OUTSIDE = Path(__file__).parent / "outside"

COMMON = [
    *("dataset=boxes", "dataset.root=data", "backbone=resnet_mini", "loader.batch_size=4", "loader.num_workers=0"),
    *(
        "trainer.max_epochs=2",
        "trainer.accelerator=cpu",
        "tracking.system_metrics=false",
        "tracking.log_every_n_steps=1",
    ),
]


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the package as pip does: its modules and its entry points become visible."""
    info = tmp_path / "site" / "cvexp_outside-1.0.dist-info"
    info.mkdir(parents=True)
    project = tomllib.loads((OUTSIDE / "pyproject.toml").read_text())["project"]
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cvexp-outside\nVersion: 1.0\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(info.parent))
    monkeypatch.syspath_prepend(str(OUTSIDE))
    plugins._loaders.cache_clear()
    yield
    plugins._loaders.cache_clear()


def write_boxes(root: Path) -> None:
    """Write noise with one bright or dark box in each image."""
    random = np.random.RandomState(0)
    root.mkdir()
    with (root / "boxes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        sides = ["left", "top", "right", "bottom", "image_width", "image_height"]
        table.writerow(["split", "file", "class", *sides])
        for split, num_images in (("train", 12), ("val", 8)):
            for i in range(num_images):
                pixels = random.randint(96, 160, (64, 64, 3), dtype=np.uint8)
                pixels[16:48, 16:48] = 255 if i % 2 else 0
                Image.fromarray(pixels).save(root / f"{split}{i}.png")
                row = [split, f"{split}{i}.png", "bright & light" if i % 2 else "dark", 16, 16, 48, 48, 64, 64]
                table.writerow(row)


@pytest.mark.usefixtures("outside")
def test_everything_of_the_package_works_like_our_own(cvexp: Callable[..., Outcome]) -> None:
    write_boxes(Path("data"))

    def run(*arguments: str) -> Outcome:
        outcome = cvexp(*arguments)
        assert outcome.code == 0, outcome.message
        return outcome

    run("task=rotation", *COMMON)
    pretraining = runs()[0]
    assert pretraining.data.tags["role"] == "pretraining"
    assert {"val/rotation_accuracy", "val/knn_top1", "best/loss", "train/rotation_accuracy"} <= set(
        pretraining.data.metrics
    )
    for task in ("multiclass", "linear"):
        run(f"task={task}", "backbone.weights=latest:rotation", "task.decoder_channels=8", *COMMON)
        assert runs()[0].data.tags["start"] == "rotation"
        assert runs()[0].data.tags["weights_from"] == pretraining.info.run_id

    assert "linear - multiclass, from rotation" in run("task=compare").message
    for job in (["task=neighbors"], ["task=embed", "task.images=[data]"]):
        run(*job)
        assert runs()[0].data.tags["of_run"] == pretraining.info.run_id
    run("task=report")
    page = Path("outputs/report.html").read_text()
    assert "The method linear classifies each position of the last feature map with a linear layer." in page
    assert "1.386 if all rotations look alike" in page
    assert "rotation_accuracy" in page
    assert "There is no finished run of the method attention." in page

    for method, expected in (("linear", "model.onnx"), ("rotation", "backbone.safetensors")):
        of_method = next(other.info.run_id for other in runs() if other.data.tags.get("task") == method)
        assert expected in run("task=export", f"run={of_method}").message
        assert f"models:/{method}/1:" in run("task=register", f"run={of_method}", f"task.model={method}").message

    run("task=sizes")
    path = store().download_artifacts(runs()[0].info.run_id, "sizes.json")
    sizes = json.loads(Path(path).read_text())
    assert 0 < sizes["linear"] < sizes["multiclass"]


@pytest.mark.usefixtures("outside")
def test_its_options_are_known(cvexp: Callable[..., Outcome]) -> None:
    assert "did you mean rotation" in cvexp("task=rotatoin").message
    assert (
        "task.knn_kk: there is no such key or group; did you mean task.knn_k"
        in cvexp("task=rotation", "task.knn_kk=3").message
    )
    assert "boxes.csv; check dataset.root=" in cvexp("dataset=boxes", "dataset.root=nowhere").message


def test_without_it_they_are_not(cvexp: Callable[..., Outcome]) -> None:
    assert "task: there is no option 'rotation'" in cvexp("task=rotation").message
    assert "rotation" not in plugins.known("task")
