"""The folders that docs/data.md shows are what its commands read: both are taken from the page."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, code_blocks, make_voc, runs, save_image, write_coco

pytestmark = pytest.mark.slow  # these tests train

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
COMMANDS = [
    match.replace("\\\n", " ") for match in re.findall(r"^    (python -m cvexp(?:.*\\\n)*.*)$", PAGE, re.MULTILINE)
]
MASKS = {  # the values in the masks of each folder
    "lakes": [0, 1, 2, 255],
    "ponds": [0, 1, 2, 255],
    "camvid": [0, 1, 3, 11],
    "streets": [(128, 128, 128), (128, 64, 128), (64, 0, 128), (0, 0, 0)],
    "cityscapes": [0, 7, 24, 26],
}


def tree_files(tree: str) -> list[str]:
    """Return the files in a tree whose folders end in `/` and whose levels are indented."""
    folders: list[str] = []
    files = []
    for line in tree.splitlines():
        name = line.strip()
        folders = folders[: (len(line) - len(line.lstrip())) // 4]
        if name.endswith("/"):
            folders.append(name)
        else:
            files.append("".join([*folders, name]))
    return files


TREES = [tree_files(tree) for tree in code_blocks("data.md", "text")]


def is_mask(file: str) -> bool:
    root, _, rest = file.partition("/")
    return root in MASKS and (rest.startswith(("masks/", "colors/")) or file.endswith("_L.png"))


def save_bands(file: str, values: list[object]) -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    rows = np.repeat(np.array(values, dtype=np.uint8), 10, axis=0)
    Image.fromarray(np.repeat(rows[:, None], 48, axis=1)).save(file)


def write_boxes() -> None:
    """Boxes and a polygon, with ids that have gaps and differ between the files, and pictures in folders."""
    for name, ids, files in (("labels", (3, 90), ("2024/1", "2024/2")), ("labels_val", (90, 5), ("2025/3", "2025/4"))):
        images = [{"id": f"i{file}", "file_name": f"{file}.jpg", "width": 48, "height": 40} for file in files]
        names = ("cat", "dog") if name == "labels" else ("dog", "cat")
        categories = [{"id": number, "name": word} for number, word in zip(ids, names, strict=True)]
        annotations = [
            {"id": i, "image_id": image["id"], "category_id": ids[i % 2], "bbox": [1, 1, 40, 36]}
            for i, image in enumerate(images)
        ]
        content = {"images": images, "categories": categories, "annotations": annotations}
        Path(f"boxes/{name}.json").write_text(json.dumps(content))


def write_data() -> None:
    """Write all files of the page; those that are neither images nor masks have special contents."""
    write_coco(Path("coco"), train=4, val=3)
    voc = np.zeros((60, 60), dtype=np.uint8)
    voc[5:55, 5:50] = 8
    make_voc(Path("VOC2012"), voc)
    for name in "cde":  # the smallest number of training images, and enough to hold out some for a test split
        save_image(Path(f"VOC2012/JPEGImages/{name}.jpg"), size=(60, 60))
        Image.fromarray(voc).save(f"VOC2012/SegmentationClass/{name}.png")
    Path("VOC2012/ImageSets/Segmentation/train.txt").write_text("a\nc\n")
    Path("VOC2012/ImageSets/Segmentation/val.txt").write_text("b\nd\ne\n")
    for file in (file for tree in TREES for file in tree if not file.startswith(("coco/", "VOC2012/"))):
        if is_mask(file):
            save_bands(file, MASKS[file.partition("/")[0]])  # type: ignore[arg-type]
        elif not file.endswith(".json"):
            save_image(Path(file))
    write_boxes()


def test_the_page_shows_all_sources() -> None:
    sources = {path.stem for path in (Path(__file__).parents[1] / "conf" / "dataset").glob("*.yaml")}
    assert sources == set(re.findall(r"^\| \[`(\w+)`\]", PAGE, re.MULTILINE))
    anchors = {
        re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in re.findall("^## (.*)", PAGE, re.M)
    }
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= anchors


def test_the_commands_run_on_the_folders(cvexp: Callable[..., Outcome]) -> None:
    write_data()
    missing = [file for tree in TREES for file in tree if not Path(file).is_file()]
    assert not missing
    commands = [shlex.split(command)[3:] for command in COMMANDS if "PATH" not in command]
    roots = {
        word.removeprefix("dataset.root=") for words in commands for word in words if word.startswith("dataset.root")
    }
    assert {tree[0].partition("/")[0] for tree in TREES} <= roots
    for words in commands:
        tiny = {"task=dino": TINY, "task=prepare": []}.get(words[0], [*TINY_SEGMENTATION, "dataset.image_size=32"])
        quick = [word for word in tiny if not word.startswith("dataset.") or "image_size" in word]
        quick += ["dataset.min_crop_size=8", "tracking.system_metrics=false"]
        quick += [] if words[0] == "task=prepare" else ["trainer.max_epochs=1", "trainer.max_steps=1"]
        outcome = cvexp(*dict.fromkeys([*words, *quick]))
        assert outcome.code == 0, (words, outcome.message)
    trained = {
        run.data.params["dataset.root"].rpartition("/")[2]: run for run in runs() if run.data.tags["role"] != "job"
    }
    assert trained.keys() == roots
    for root, classes in (("camvid", {"sky", "building", "road"}), ("streets", {"sky", "road"})):
        of_iou = {name.removeprefix("best/iou/") for name in trained[root].data.metrics if name.startswith("best/iou/")}
        assert of_iou == classes
    assert "best/iou/background" in trained["cityscapes"].data.metrics


def test_the_course_command_is_composed() -> None:
    (command,) = (command for command in COMMANDS if "PATH" in command)
    assert "+experiment=course_dino" in command


def test_files_of_a_tree_are_found() -> None:
    assert tree_files("a/\n    b/\n        1.jpg\n    2.jpg\nc/\n    3.jpg") == ["a/b/1.jpg", "a/2.jpg", "c/3.jpg"]
