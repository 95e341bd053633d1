"""What is made ready is remembered, shared, and made anew when files change."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from cvexp.data import load, open_splits, prepare
from cvexp.data.catalog import write_catalog
from cvexp.data.files import images
from cvexp.data.index import Splits
from cvexp.errors import UserError
from tests.helpers import TINY, Outcome, dataset, forked_pool, runs, store


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done, by the names of the files: `read` of annotations, `decode` of images."""
    done: list[str] = []
    check = prepare.check

    def counting_write(*arguments: object) -> None:
        done.append("read")
        write_catalog(*arguments)  # type: ignore[arg-type]

    def counting_check(path: str, size: tuple[int, int]) -> object:
        done.append(Path(path).name)
        return check(path, size)

    monkeypatch.setattr(prepare, "write_catalog", counting_write)
    monkeypatch.setattr(prepare, "check", counting_check)
    return done


def open_cats(root: Path, **keys: object) -> Splits:
    return open_splits(dataset("coco", root, **{"classes": ["cat"], **keys}), "pretraining")


def test_everything_is_read_once_and_again_only_when_it_changes(coco_root: Path, work: list[str]) -> None:
    open_cats(coco_root)
    assert sorted(work) == sorted(["read"] * 2 + [f"train{i}.jpg" for i in (0, 2, 4, 6)] + ["val0.jpg", "val2.jpg"])
    work.clear()
    open_cats(coco_root)
    assert work == []
    open_cats(coco_root, classes=["cat", "dog"])
    assert sorted(work) == sorted([f"train{i}.jpg" for i in (1, 3, 5, 7)] + ["val1.jpg", "val3.jpg"])
    work.clear()
    os.utime(coco_root / "train2017" / "train2.jpg", (1, 1))
    open_cats(coco_root)
    assert work == ["train2.jpg"]
    work.clear()
    path = coco_root / "annotations" / "instances_val2017.json"
    path.write_text(path.read_text() + " ")
    open_cats(coco_root)
    assert sorted(work) == ["read", "val0.jpg", "val2.jpg"]
    assert len(list(Path("outputs/data/index").glob("coco-val-*/"))) == 1  # the old one is gone


def _open(arguments: tuple[str, str]) -> tuple[str, int]:
    root, cache = arguments
    made = 0

    def counting(*positional: object) -> None:
        nonlocal made
        made += 1
        write_catalog(*positional)  # type: ignore[arg-type]

    with mock.patch.object(prepare, "write_catalog", counting):
        splits = open_splits(dataset("coco", root, classes=["cat"], cache=cache), "pretraining")
    return splits.train.fingerprint(), made


@pytest.mark.slow
def test_two_processes_at_once_do_the_work_once(coco_root: Path, tmp_path: Path) -> None:
    with forked_pool() as pool:
        (first, made), (second, made_too) = pool.map(
            _open, [(str(coco_root), str(tmp_path / "cache"))] * 2, chunksize=1
        )
    assert first == second
    assert made + made_too == 2  # train and val


def test_what_an_interruption_left_is_not_taken_for_whole(coco_root: Path, work: list[str]) -> None:
    def interrupted(draft: object, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "catalog.json").write_text('{"root"')
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "write_catalog", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_cats(coco_root)
    assert len(open_cats(coco_root).train) == 4


def test_checks_go_on_where_they_were_interrupted(
    coco_root: Path, work: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check = prepare.check

    def stopping(path: str, size: tuple[int, int]) -> object:
        if path.endswith("train4.jpg"):
            raise KeyboardInterrupt
        return check(path, size)

    monkeypatch.setattr(prepare, "check", stopping)
    with pytest.raises(KeyboardInterrupt):
        open_cats(coco_root)
    monkeypatch.setattr(prepare, "check", check)
    work.clear()
    open_cats(coco_root)
    assert "train0.jpg" not in work
    assert "train4.jpg" in work


def break_three(root: Path) -> None:
    """Two broken images and a broken annotation, in the training split."""
    (root / "train2017" / "train0.jpg").write_bytes(b"nothing")
    (root / "train2017" / "train2.jpg").unlink()
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][4]["segmentation"] = [[1, 2, 3]]
    path.write_text(json.dumps(content))


def test_what_is_broken_stops_unless_it_may_be_left_out(coco_root: Path) -> None:
    break_three(coco_root)
    with pytest.raises(UserError, match=r"annotations\[4\].*at least three.*strict=false"):
        load(dataset("coco", coco_root, classes=["cat", "dog"]), "pretraining")
    for _ in range(2):  # the second time it is remembered
        index = load(dataset("coco", coco_root, classes=["cat", "dog"], strict=False), "pretraining").train
        assert len(index) == 5
        assert len(index.problems) == 3
        limited = load(dataset("coco", coco_root, classes=["cat", "dog"], strict=False, limit=2), "pretraining").train
        assert limited.counts() == {"cat": 1, "dog": 1}
        assert not {"train2017/train0.jpg", "train2017/train2.jpg"} & {limited.catalog.file(i) for i in limited.images}


def test_all_broken_images_are_found_before_it_stops(coco_root: Path) -> None:
    for i in (0, 2, 4):
        (coco_root / "train2017" / f"train{i}.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"train0\.jpg.*and 2 more, which task=prepare lists.*strict=false"):
        load(dataset("coco", coco_root, classes=["cat", "dog"]), "pretraining")


def test_a_run_records_what_it_left_out(cvexp: Callable[..., Outcome], coco_root: Path) -> None:
    break_three(coco_root)
    tiny = [argument for argument in TINY if not argument.startswith("dataset.")]
    data = ["dataset=coco", f"dataset.root={coco_root}", "dataset.classes=[cat,dog]", "dataset.strict=false"]
    assert cvexp(*tiny, *data, "trainer.max_steps=1").code == 0
    (run,) = runs()
    assert run.data.metrics["data/left_out"] == 3
    text = Path(store().download_artifacts(run.info.run_id, "data/left_out.txt", ".")).read_text()
    assert len(text.splitlines()) == 3


def test_prepare_lists_every_problem_and_saves_the_report(cvexp: Callable[..., Outcome], coco_root: Path) -> None:
    break_three(coco_root)
    data = ["task=prepare", "dataset=coco", f"dataset.root={coco_root}", "dataset.classes=[cat,dog]"]
    outcome = cvexp(*data, "tracking.system_metrics=false")
    assert outcome.code == 1
    assert "3 things are wrong" in outcome.message
    (run,) = runs()
    report = json.loads(Path(store().download_artifacts(run.info.run_id, "data/report.json", ".")).read_text())
    train = report["pretraining"]["train"]
    assert train["images"] == 5
    assert train["classes"]["dog"] == {"images": 4, "instances": 4, "crops": 4, "pixels": 4 * 40 * 45}
    assert len(train["problems"]) == 3
    assert train["width"] == {"least": 80, "median": 80, "most": 80}
    outcome = cvexp(*data, "tracking.system_metrics=false", "dataset.strict=false")
    assert outcome.code == 0
    assert outcome.message.count("problem: ") == 3


def test_a_change_between_check_and_use_names_the_file(coco_root: Path) -> None:
    index = load(dataset("coco", coco_root, classes=["cat"]), "pretraining").train
    index.path(0).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"train0\.jpg: the image is broken"):
        images.read_image(index.path(0))
    shutil.rmtree(coco_root / "train2017")
    with pytest.raises(UserError, match=r"train0\.jpg: there is no such file"):
        images.read_image(index.path(0))
