"""The test split is scored by the comparison, and by nothing before it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest

from cvexp.composition import compose
from cvexp.report.comparison import OPTIMISTIC
from cvexp.tasks.compare import differing_settings
from tests.helpers import (
    TINY,
    TINY_SEGMENTATION,
    Outcome,
    checkpoint,
    histories,
    runs,
    save_image,
    save_mask,
    store,
)

COMPARE = ["task=compare", "task.samples=200", "task.timed_images=1", "task.pictured_images=1"]
FOLDER = ["dataset=folder", "dataset.root=photos", "dataset.test_images=test"]
MASKS = [f"dataset.{split}_masks={split}" for split in ("train", "val")] + ["dataset.mask_values={a: 1, b: 2}"]


def without_dataset(settings: list[str]) -> list[str]:
    return [setting for setting in settings if not setting.startswith("dataset.")]


@pytest.fixture
def photos() -> Path:
    """A folder of images with masks. There are two folders of masks for the test images."""
    root = Path("photos")
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        for i in range(count):
            save_image(root / split / f"{i}.jpg")
            save_mask(root / ("masks" if split == "test" else split) / f"{i}.png", 1, 2)
            if split == "test":
                save_mask(root / "other" / f"{i}.png", 2, 0, 1, 1)
    return root


def assert_equal_but_for_the_test_split(first: mlflow.entities.Run, second: mlflow.entities.Run) -> None:
    """Fail unless two runs measured and selected the same."""
    ignored = ("best/speed", "data/", "test/")
    one, other = (
        {name: values for name, values in histories(Path("outputs"), run).items() if not name.startswith(ignored)}
        for run in (first, second)
    )
    assert one == other
    assert {"train/loss", "val/loss", "best/epoch"} <= one.keys()
    for name in ("best", "last"):
        tensors, others = checkpoint(first, name), checkpoint(second, name)
        assert all(tensors[key].equal(others[key]) for key in tensors)
    for split in ("train", "val"):
        assert len({run.data.tags[f"data.{split}.fingerprint"] for run in (first, second)}) == 1
    assert first.data.tags["data.test.fingerprint"] != second.data.tags["data.test.fingerprint"]


@pytest.mark.slow
def test_labels_of_the_test_split_change_nothing_but_the_comparison(
    cvexp: Callable[..., Outcome], photos: Path
) -> None:
    tiny = [*without_dataset(TINY_SEGMENTATION), *FOLDER, *MASKS, "dataset.image_size=32", "dataset.min_crop_size=8"]
    trained: dict[str, dict[str, mlflow.entities.Run]] = {"masks": {}, "other": {}}
    for masks in trained:
        for task in ("multiclass", "attention"):
            outcome = cvexp(*tiny, f"task={task}", f"dataset.test_masks={masks}")
            assert outcome.code == 0, outcome.message
            trained[masks][task] = runs()[0]
    for task in ("multiclass", "attention"):
        assert_equal_but_for_the_test_split(trained["masks"][task], trained["other"][task])
    ids = [run.info.run_id for run in (trained["masks"]["multiclass"], trained["other"]["attention"])]
    assert "different test images or labels" in cvexp(*COMPARE, f"runs=[{','.join(ids)}]").message
    counts = []
    for of_task in trained.values():
        ids = [run.info.run_id for run in of_task.values()]
        outcome = cvexp(*COMPARE, f"runs=[{','.join(ids)}]")
        assert outcome.code == 0, outcome.message
        assert "4 test images" in " ".join(outcome.message.split())
        assert "training measured" not in outcome.message
        run_id = runs()[0].info.run_id
        said = json.loads(Path(store().download_artifacts(run_id, "comparison/comparison.json")).read_text())
        assert said["split"] == "test"
        assert OPTIMISTIC not in said["warnings"]
        saved = np.load(store().download_artifacts(run_id, "comparison/counts.npz"))
        assert all(name.startswith("test/") for name in saved["images"].tolist())
        counts.append(dict(zip(saved["run_ids"].tolist(), saved["counts"], strict=True)))
    for task in ("multiclass", "attention"):
        first, second = (counts[i][trained[masks][task].info.run_id] for i, masks in enumerate(trained))
        assert not np.array_equal(first, second)
    assert cvexp("task=report").code == 0
    page = Path("outputs/report.html").read_text()
    assert "Scores on 4 test images" in page
    assert "optimistic" not in page
    save_mask(photos / "other" / "0.png", 1)
    assert "the test images or labels in" in cvexp(*COMPARE, f"runs=[{','.join(ids)}]").message


@pytest.mark.slow
def test_classes_of_the_test_split_do_not_change_pretraining(cvexp: Callable[..., Outcome]) -> None:
    for split in ("train", "val", "test"):
        for name in "ab":
            for i in range(4):
                save_image(Path("photos") / split / name / f"{i}.jpg")
    for name, other in (("a", "b"), ("b", "a")):
        shutil.copytree(f"photos/test/{name}", f"photos/permuted/{other}")
    for test in ("test", "permuted"):
        folder = [*FOLDER[:2], f"dataset.test_images={test}"]
        outcome = cvexp("task=dino", *without_dataset(TINY), *folder, "dataset.fraction=0.5")
        assert outcome.code == 0, outcome.message
        assert "dataset.fraction does not apply" in outcome.message
    assert_equal_but_for_the_test_split(*runs())


def test_runs_with_different_seeds_may_draw_different_images() -> None:
    def run(fingerprint: str, *settings: str) -> SimpleNamespace:
        return SimpleNamespace(
            config=compose("task=multiclass", *settings), tags={"data.train.fingerprint": fingerprint}
        )

    def told(*finished: SimpleNamespace) -> list[str]:
        return differing_settings(list(finished))  # type: ignore[arg-type]

    drawn = [run(f"{seed}", f"seed={seed}", "dataset.fraction=0.1") for seed in (0, 1)]
    assert told(*drawn) == []
    assert told(*drawn, run("0", "seed=0", "dataset.fraction=0.1")) == []
    (only,) = told(*drawn, run("2", "seed=0", "dataset.fraction=0.1"))
    assert only == "the fingerprint of the training data: 0, 2"
    assert told(drawn[0], run("3", "dataset.fraction=0.2")) == ["dataset.fraction: 0.1, 0.2"]
    assert told(run("0"), run("1", "seed=1")) == ["the fingerprint of the training data: 0, 1"]
