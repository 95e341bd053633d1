"""The whole story on masks in which 0 is a class and every pixel has one, as gray, palette and color images."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import cvexp as package
from cvexp.data import load
from cvexp.inference.segmenter import Segmenter
from cvexp.metrics.names import safe_name
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, dataset, histories, runs, store

pytestmark = pytest.mark.slow  # these tests train

NAMES = ["sky & sea", "Straße <1>", "car"]
COLORS = [(70, 130, 180), (128, 64, 128), (64, 0, 128)]
VOID = (0, 0, 0)
MINE = ["--config-dir", "mine"]
KINDS: dict[str, dict[str, Any]] = {
    "gray": {"values": [0, 1, 2], "background": None, "ignored": 11},
    "palette": {"values": [0, 1, 2], "background": None, "ignored": 11},
    "colors": {"values": ["#4682B4", [128, 64, 128], "#400080"], "background": None, "ignored": "#000000"},
}


def write_scenes(root: Path) -> None:
    """Streets of 64 x 48 px with a border of void, and their masks of each kind."""
    random = np.random.RandomState(0)
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for i in range(count):
            labels = np.zeros((48, 64), dtype=np.uint8)
            labels[20 + i :] = 1
            labels[24 + i : 34 + i, 10 + 4 * i : 30 + 4 * i] = 2
            labels[:, :2] = 11
            palette = np.zeros((256, 3), dtype=np.uint8)
            palette[: len(COLORS)] = COLORS
            pixels = np.clip(palette[labels].astype(int) + random.randint(-30, 30, (48, 64, 3)), 0, 255)
            indexed = Image.fromarray(labels)
            indexed.putpalette(palette.tobytes())
            pictures = {
                f"{split}/{i}.jpg": Image.fromarray(pixels.astype(np.uint8)),
                f"gray/{split}/{i}_L.png": Image.fromarray(labels),
                f"palette/{split}/{i}_L.png": indexed,
                f"colors/{split}/{i}_L.png": indexed.convert("RGB"),
            }
            for file, picture in pictures.items():
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                picture.save(root / file)


def keys(kind: str) -> dict[str, object]:
    folders: dict[str, object] = {f"{split}_masks": f"{kind}/{split}" for split in ("train", "val", "test")}
    table = KINDS[kind]
    values = dict(zip(NAMES, table["values"], strict=True))
    named = {"mask_values": values, "background_value": table["background"], "ignore_value": table["ignored"]}
    return {**folders, **named, "test_images": "test", "mask_suffix": "_L.png", "min_crop_size": 8}


@pytest.fixture
def scenes() -> Path:
    """The data, and an experiment for each kind, because keys with special characters need a file."""
    root = Path("scenes")
    write_scenes(root)
    Path("mine/experiment").mkdir(parents=True)
    for kind in KINDS:
        settings = {"root": str(root.absolute()), "image_size": 64, **keys(kind)}
        content = {"defaults": [{"override /dataset": "folder"}], "dataset": settings}
        Path(f"mine/experiment/{kind}.yaml").write_text(f"# @package _global_\n{json.dumps(content)}")
    return root


def test_all_kinds_of_masks_have_the_same_labels_and_objects(tmp_path: Path) -> None:
    write_scenes(tmp_path)
    for use in ("segmentation", "pretraining"):
        splits = {kind: load(dataset("folder", tmp_path, **keys(kind)), use) for kind in KINDS}
        for indexes in zip(*splits.values(), strict=True):
            first, *others = indexes
            assert first.counts() == {name: len(first.images) for name in NAMES}
            for other in others:
                assert np.array_equal(first.box, other.box)
                assert all(np.array_equal(first.label_map(i), other.label_map(i)) for i in first.images)
            assert set(np.unique(first.label_map(0))) == {1, 2, 3, 255}


def without(prefix: str, arguments: list[str]) -> list[str]:
    return [argument for argument in arguments if not argument.startswith(prefix)]


def words_of(page: str) -> str:
    """The visible text of an HTML page."""
    return re.sub(r"<(style|script)\b.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)


def test_the_whole_story_without_a_background(cvexp: Callable[..., Outcome], scenes: Path) -> None:
    tiny = [*MINE, *without("dataset.", TINY_SEGMENTATION), "trainer.max_epochs=1"]
    outcome = cvexp("-m", "task=multiclass", *tiny, "+experiment=gray,palette,colors")
    assert outcome.code == 0, outcome.message
    outcome = cvexp("task=attention", *tiny, "+experiment=colors", "dataset.keep=ram")
    assert outcome.code == 0, outcome.message
    attention, *multiclass = (run for run in runs() if run.data.tags.get("role") == "segmentation")
    first, *others = (histories(Path("outputs"), run) for run in multiclass)
    assert len(others) == 2
    assert all(other == first for other in others)
    metrics = {name for run in (attention, *multiclass) for name in run.data.metrics}
    assert not [name for name in metrics if "background" in name]
    assert {f"val/iou/{safe_name(name)}" for name in NAMES} <= metrics
    for run in (attention, *multiclass):
        assert run.data.metrics["best/miou"] == run.data.metrics["best/miou_all"]
    other_values = cvexp("task=compare", f"runs=[{multiclass[-1].info.run_id},{attention.info.run_id}]")
    assert "different validation images or labels" in other_values.message

    ids = {"attention": attention.info.run_id, "multiclass": multiclass[0].info.run_id}
    compared = cvexp("task=compare", "task.samples=100", "task.timed_images=1", "trainer.accelerator=cpu")
    assert compared.code == 0, compared.message
    assert "background" not in compared.message
    job = runs()[0].info.run_id
    said = json.loads(Path(store().download_artifacts(job, "comparison/comparison.json")).read_text())
    assert [constant["label"] for constant in said["constants"]] == ["Straße <1>"]
    assert "iou/background" not in said["runs"][0]
    counts = np.load(store().download_artifacts(job, "comparison/counts.npz"))
    assert counts["classes"].tolist() == NAMES
    reported = cvexp("task=report")
    assert reported.code == 0, reported.message
    assert "background" not in words_of(Path("outputs/report.html").read_text())
    for task, run_id in ids.items():
        assert_every_pixel_gets_a_class(cvexp, scenes, run_id, task)


def assert_every_pixel_gets_a_class(cvexp: Callable[..., Outcome], scenes: Path, run_id: str, task: str) -> None:
    images = f"task.images=[{scenes}/test]"
    outcome = cvexp("task=predict", f"run={run_id}", images, f"task.out={task}", "trainer.accelerator=cpu")
    assert outcome.code == 0, outcome.message
    masks = [np.array(Image.open(path)) for path in sorted(Path(task).glob("masks/*.png"))]
    assert len(masks) == 4
    assert all(mask.min() >= 1 and mask.max() <= 3 for mask in masks)
    categories = json.loads(Path(task, "predictions.json").read_text())["categories"]
    assert [category["name"] for category in categories] == NAMES
    segmenter = package.load(run_id, device="cpu")
    assert isinstance(segmenter, Segmenter)
    for tiles in (None, 2.0):
        prediction = segmenter.predict(f"{scenes}/test/0.jpg", tiles=tiles)
        assert prediction.labels.min() >= 1
        probability = prediction.probability()
        assert probability.shape == (3, 48, 64)
        if tiles is None:
            assert np.array_equal(prediction.labels, masks[0])
        if task == "multiclass":
            np.testing.assert_allclose(probability.sum(axis=0), 1, atol=1e-5)
            assert not prediction.has_attention
        else:
            assert prediction.attention("car").shape == (48, 64)
    if task == "attention":  # then 0 stands for the classes that were not queried
        some = segmenter.predict(f"{scenes}/test/0.jpg", classes=["car"])
        assert set(np.unique(some.labels)) <= {0, 3}
        assert np.array_equal(some.labels == 3, some.probability("car") > 0.5)
        whole = segmenter.predict(f"{scenes}/test/0.jpg", classes=NAMES[::-1])
        assert np.array_equal(whole.labels, masks[0])


def test_a_registered_network_has_no_background(cvexp: Callable[..., Outcome], scenes: Path) -> None:
    """The masks that it returns are those of the network that was trained, which are exported and verified first."""
    tiny = [*without("dataset.", TINY_SEGMENTATION), "+experiment=palette", "trainer.max_steps=2"]
    assert cvexp(*MINE, "task=attention", *tiny).code == 0
    run_id = runs()[0].info.run_id
    registered = cvexp("task=register", f"run={run_id}", "task.model=streets", "trainer.accelerator=cpu")
    assert registered.code == 0, registered.message
    mlflow.set_tracking_uri("sqlite:///outputs/mlflow.db")
    model = mlflow.pyfunc.load_model("models:/streets/1")
    about = model.unwrap_python_model().about
    assert about["labels"] == [None, *NAMES]
    assert len(about["colors"]) == 1 + len(NAMES)
    photo = scenes / "test" / "0.jpg"
    row = model.predict(pd.DataFrame({"image": [photo.read_bytes()]})).iloc[0]
    labels = np.array(Image.open(io.BytesIO(base64.b64decode(row["mask"]))))
    segmenter = package.load(run_id, device="cpu")
    assert isinstance(segmenter, Segmenter)
    assert labels.min() >= 1
    assert np.mean(labels != segmenter.predict(photo).labels) < 0.01


def test_an_interrupted_run_goes_on_and_weights_count_only_known_classes(
    cvexp: Callable[..., Outcome], scenes: Path
) -> None:
    tiny = [*without("dataset.", TINY_SEGMENTATION), "+experiment=colors", "trainer.max_steps=2", "task=multiclass"]
    refused = cvexp(*MINE, *tiny, "task.class_weights={background: 2}")
    assert "task.class_weights: there is no class 'background'" in refused.message
    outcome = cvexp(*MINE, *tiny, "task.class_weights={car: 2}")
    assert outcome.code == 0, outcome.message
    (run,) = (run for run in runs() if run.info.status == "FINISHED")
    store().set_terminated(run.info.run_id, "KILLED")
    resumed = cvexp(f"resume={run.info.run_id}")
    assert resumed.code == 0, resumed.message


def test_pretraining_and_preparing_know_the_class_of_value_0(cvexp: Callable[..., Outcome], scenes: Path) -> None:
    tiny = [*without("dataset.", TINY), "trainer.max_epochs=1"]
    for experiment in ("gray", "colors"):
        outcome = cvexp(*MINE, "task=dino", f"+experiment={experiment}", *tiny)
        assert outcome.code == 0, outcome.message
    first, second = runs()
    assert histories(Path("outputs"), first) == histories(Path("outputs"), second)
    assert "val/knn_top1" in first.data.metrics
    outcome = cvexp(*MINE, "task=prepare", "+experiment=colors", "task.shards=shards")
    assert outcome.code == 0, outcome.message
    rows = [re.split(r"\s*[│|]\s*", line.strip("│| ")) for line in outcome.message.splitlines() if "%" in line]
    shares = {row[0]: row[1:] for row in rows if row[0].startswith("#")}
    assert shares["#000000"] == ["ignored", "3.12%", "3.12%", "3.12%"]
    assert shares["#4682B4"][0] == NAMES[0]
    assert len(shares) == 4
    outcome = cvexp("task=dino", "dataset=shards", "dataset.root=shards", *tiny)
    assert outcome.code == 0, outcome.message
    shutil.rmtree("shards")
