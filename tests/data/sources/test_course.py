import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from cvexp.data import load, uses
from cvexp.data.files.annotations import read_json
from cvexp.data.sources import course as source
from cvexp.errors import UserError
from tests.helpers import TINY, Outcome, dataset, runs


def test_the_archives_hold_what_the_data_page_says(course: Path) -> None:
    crops = load(dataset("course", course, password="dl_lab"), "pretraining")
    assert [(len(index.images), len(index)) for index in crops] == [(60, 60), (13, 13)]
    assert all(index.size(i) == (256, 256) for index in crops for i in index.images.tolist())
    assert crops.train.classes == ()
    images = load(dataset("course", course), "segmentation")
    assert [len(index.images) for index in images] == [24, 8]


def test_unpacked_crops_have_the_bytes_of_the_archive(course: Path) -> None:
    index = load(dataset("course", course, password="dl_lab"), "pretraining").val
    with zipfile.ZipFile(course / "unlabelled_dataset.zip") as archive:
        for i in index.images.tolist():
            assert index.path(i).read_bytes() == archive.read(index.catalog.file(i), pwd=b"dl_lab")


def test_label_maps_equal_those_composed_from_the_aggregated_file(course: Path) -> None:
    index = load(dataset("course", course), "segmentation").train
    path = index.root / "COCO_mini5class_medium" / "aggregated_annotations_train_5classes.json"
    entries = {entry["file_name"]: entry for entry in read_json(path)}
    for i in index.images.tolist():
        entry = entries[Path(index.catalog.file(i)).name]
        height, width = entry["height"], entry["width"]
        expected = np.zeros((height, width), np.uint8)
        painted = []
        for value, category in enumerate(("1", "2", "3", "17", "18"), 1):
            for a in entry["annotations"].get(category, []):
                runs = coco_mask.frPyObjects(a["segmentation"], height, width)
                mask = coco_mask.decode(runs if isinstance(runs, dict) else coco_mask.merge(runs)).astype(bool)
                painted.append((isinstance(a["segmentation"], dict), -mask.sum(), 255 if a["iscrowd"] else value, mask))
        for _, _, value, mask in sorted(painted, key=lambda entry: entry[:2]):
            expected[mask] = value
        assert np.array_equal(index.label_map(i), expected)


def test_the_password_is_asked_for_and_a_wrong_one_refused(course: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"protected; give the password with dataset\.password="):
        load(dataset("course", course), "pretraining")
    with pytest.raises(UserError, match="the password is wrong"):
        load(dataset("course", course, password="dl_lob"), "pretraining")
    assert not list(Path("outputs/data/index").glob("course-unlabeled*/"))  # nothing half unpacked


def test_another_folder_with_the_archives_leaves_the_first_ones_data_alone(course: Path, tmp_path: Path) -> None:
    first = load(dataset("course", course), "segmentation").train
    (tmp_path / "second").mkdir()
    shutil.copy(course / "segmentation_dataset.zip", tmp_path / "second")
    load(dataset("course", tmp_path / "second"), "segmentation")
    assert first.path(0).exists()


def test_an_unpacked_archive_is_taken_as_it_is(course: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(course / "segmentation_dataset.zip") as archive:
        archive.extractall(tmp_path / "unpacked")
    settings = dataset("course", tmp_path / "unpacked")
    assert len(load(settings, "segmentation").val.images) == 8
    assert uses(settings) == ("segmentation",)


def test_an_entry_without_size_takes_that_of_its_image(tmp_path: Path) -> None:
    """The page of the course promises `file_name` and `annotations` only."""
    folder = tmp_path / source.UNPACKED["segmentation"]
    for split, color in (("train", "blue"), ("val", "red")):
        (folder / "imgs" / f"{split}2014").mkdir(parents=True)
        Image.new("RGB", (50, 40), color).save(folder / "imgs" / f"{split}2014" / f"{split}.jpg")
        cat = {"segmentation": [[0, 0, 20, 0, 20, 40, 0, 40]]}
        crowd = {"segmentation": {"size": [40, 50], "counts": [40 * 30, 40 * 20]}}
        entries = [{"file_name": f"{split}.jpg", "annotations": {"17": [cat], "1": [crowd]}}]
        (folder / f"aggregated_annotations_{split}_5classes.json").write_text(json.dumps(entries))
    index = load(dataset("course", tmp_path), "segmentation").train
    assert index.label_map(0)[5].tolist() == [4] * 20 + [0] * 10 + [255] * 20


@pytest.mark.slow
def test_pretraining_without_labels_runs_and_keeps_the_password_to_itself(
    cvexp: Callable[..., Outcome], course: Path, tmp_path: Path
) -> None:
    tiny = [argument for argument in TINY if not argument.startswith("dataset.")]
    data = ["dataset=course", f"dataset.root={course}", "dataset.password=dl_lab", "dataset.limit=20"]
    outcome = cvexp(*tiny, *data)
    assert outcome.code == 0, outcome.message
    (run,) = runs()
    assert "val/knn_top1" not in run.data.metrics
    assert run.data.metrics["val/loss"] > 0
    assert "dl_lab" not in str(run.data.params) + str(run.data.tags)
    assert "dl_lab" not in next(Path("outputs/artifacts").rglob("config.yaml")).read_text()


def test_a_damaged_archive_says_so_and_leaves_nothing(course: Path, tmp_path: Path) -> None:
    shutil.copy(course / "segmentation_dataset.zip", tmp_path)
    path = tmp_path / "segmentation_dataset.zip"
    path.chmod(0o600)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"segmentation_dataset.zip: this is not a complete zip.*fetch it again"):
        load(dataset("course", tmp_path), "segmentation")
    assert not list(Path("outputs/data/index").glob("*/"))
