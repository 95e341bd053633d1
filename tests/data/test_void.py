"""Masks with a number that is no class: reported once for each number, with the remedy."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cvexp.data import load
from cvexp.data.problems import Problem, grouped
from cvexp.errors import UserError
from tests.helpers import TINY_SEGMENTATION, Outcome, dataset, make_voc, runs, save_image, save_mask, store

KEYS = ["dataset=folder", "dataset.root=camvid", "dataset.train_masks=train", "dataset.val_masks=val"]
CAMVID = [*KEYS, "dataset.mask_values={road: 1, sky: 2}", "dataset.mask_suffix=_mask.png", "dataset.min_crop_size=8"]


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """Every mask has the void number 11, one of them also an unknown 12, and one image is broken otherwise."""
    root = tmp_path / "camvid"
    for split, count in (("train", 6), ("val", 4)):
        for i in range(count):
            save_image(root / split / f"{i}.png")
            save_mask(root / split / f"{i}_mask.png", 0, 1, 2, 11)
    save_mask(root / "train" / "2_mask.png", 12, 1, 2, 11)
    (root / "train" / "5_mask.png").unlink()
    return root


def test_problems_are_grouped_by_number() -> None:
    problems = [
        Problem("a.png", "it is broken"),
        Problem("b.png", "the number {value}; add {value}", ("11",)),
        Problem("c.png", "the number {value}; add {value}", ("11", "12")),
        Problem("d.png", "it is broken"),
    ]
    assert grouped(problems) == [
        "a.png: it is broken",
        "2 masks, such as b.png, have the number 11; add 11",
        "c.png: the mask has the number 12; add 12",
        "d.png: it is broken",
    ]


def test_prepare_lists_each_number_once(cvexp: Callable[..., Outcome], camvid: Path) -> None:
    outcome = cvexp("task=prepare", *CAMVID, "tracking.system_metrics=false")
    assert outcome.code == 1
    assert "10 things are wrong" in outcome.message
    report = json.loads(Path(store().download_artifacts(runs()[0].info.run_id, "data/report.json", ".")).read_text())
    problems = [problem for index in report["pretraining"].values() for problem in index["problems"]]
    assert len(problems) == 10
    outcome = cvexp("task=prepare", *CAMVID, "tracking.system_metrics=false", "dataset.strict=false")
    lines = [line for line in outcome.message.splitlines() if line.startswith("problem: ")]
    assert len(lines) == 3, outcome.message
    (void,) = (line for line in lines if "the number 11" in line)
    assert "9 masks, such as " in void
    assert "train/0_mask.png" in void
    assert "name its class in dataset.mask_values, or set dataset.ignore_value=11" in void
    (other,) = (line for line in lines if "the number 12" in line)
    assert "train/2_mask.png" in other
    assert "dataset.ignore_value=12" in other


def test_training_names_a_void_number_once_and_the_remedy_works(camvid: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = {"train_masks": "train", "val_masks": "val", "mask_suffix": "_mask.png", "min_crop_size": 8}
    keys |= {"mask_values": {"road": 1, "sky": 2}}
    with pytest.raises(UserError, match=r"9 masks, .* number 11.*ignore_value=11.*and 2 more") as told:
        load(dataset("folder", camvid, **keys), "segmentation")
    assert "\n" not in str(told.value)
    with pytest.raises(UserError, match=r"no image of the train split is usable; 5 masks, .* have the number 11"):
        load(dataset("folder", camvid, **keys, strict=False), "segmentation")
    save_image(camvid / "train" / "more.png")
    save_mask(camvid / "train" / "more_mask.png", 1, 2)
    save_image(camvid / "val" / "more.png")
    save_mask(camvid / "val" / "more_mask.png", 1, 2)
    splits = load(dataset("folder", camvid, **keys, strict=False), "segmentation")
    assert [len(index.images) for index in splits] == [1, 1]
    assert [len(index.problems) for index in splits] == [6, 4]
    assert "10 files or annotations are left out; the first: 9 masks, such as" in caplog.text
    cured = load(dataset("folder", camvid, **keys, ignore_value=11, strict=False), "segmentation")
    assert [len(index.images) for index in cured] == [5, 5]


def test_a_run_counts_the_images_that_are_left_out(cvexp: Callable[..., Outcome], camvid: Path) -> None:
    for split in ("train", "val"):
        for i in range(3):
            save_image(camvid / split / f"good{i}.png")
            save_mask(camvid / split / f"good{i}_mask.png", 1, 2)
    tiny = [argument for argument in TINY_SEGMENTATION if not argument.startswith("dataset.")]
    settings = [*CAMVID, "dataset.image_size=64", "dataset.strict=false", "trainer.max_steps=1"]
    outcome = cvexp(*tiny, "task=multiclass", *settings)
    assert outcome.code == 0, outcome.message
    assert runs()[0].data.metrics["data/left_out"] == 10


def test_voc_has_no_key_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 masks, .* have the number 77") as told:
        load(dataset("voc", make_voc(tmp_path / "voc", np.full((60, 60), 77))), "segmentation")
    assert "dataset.ignore_value" not in str(told.value)
    assert "dataset=folder" in str(told.value)
