"""Every mistake ends with one message that says what was got, where, and the remedy; exit status 1, no traceback."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import TINY, Outcome, runs, start

# For each mistake the arguments, and what the message has to say.
ON_COMMAND_LINE: dict[str, tuple[list[str], *tuple[str, ...]]] = {
    "misspelt group": (["optimzer=sgd"], "optimzer", "optimizer"),
    "misspelt option": (["backbone=resnet19"], "'resnet19'", "resnet18"),
    "misspelt key": (["optimizer.lrr=1"], "optimizer.lrr", "optimizer.lr"),
    "key of another task": (["task.query_dim=3"], "task.query_dim", "did you mean task."),
    "key without its group": (["batch_size=3"], "batch_size", "loader.batch_size"),
    "added key": (["+optimizer.momentun=0.9"], "optimizer.momentun", "no such key"),
    "no value": (["seed"], "seed", "--help"),
    "unknown experiment": (["+experiment=nothing"], "'nothing'", "experiment"),
    "text for a number": (["optimizer.lr=abc"], "optimizer.lr", "'abc'"),
    "fraction for a count": (["loader.batch_size=1.5"], "loader.batch_size", "1.5"),
    "number for a list": (["dataset.classes=3"], "dataset.classes", "3"),
    "negative batch size": (["loader.batch_size=-4"], "loader.batch_size: got -4", "at least 1"),
    "infinite learning rate": (["optimizer.lr=inf"], "optimizer.lr: got inf", "finite"),
    "zero temperature": (["task.teacher_temperature=0"], "task.teacher_temperature: got 0.0", "positive"),
    "one view": (["task.global_crops=1", "task.local_crops=0"], "task.local_crops: got 0", "two views"),
    "unknown metric": (["task.monitor=val/los"], "'val/los'", "val/loss"),
    "unknown precision": (["trainer.precision=fp16"], "'fp16'", "known"),
    "unknown class": (["dataset.classes=[disc]"], "'disc'", "disk"),
    "no class": (["dataset.classes=[]"], "dataset.classes: got []", "at least one"),
    "unknown backbone": (["backbone.name=resnet1888"], "'resnet1888'", "did you mean"),
    "argument of another backbone": (["backbone.args.patches=3"], "backbone.args", "patches"),
    "misspelt free dictionary": (["optimizer.arg.momentum=3"], "optimizer.arg: there is no", "did you mean optimizer"),
    "one process for several": (["trainer=ddp"], "trainer.strategy: got 'ddp_find", "one process", "torchrun"),
    "several devices": (["trainer.devices=2"], "trainer.devices: got '2 on 1 nodes'", "torchrun"),
    "launcher not installed": (["-m", "hydra/launcher=rq", "seed=0,1"], "pip install hydra-rq-launcher"),
    "sweeper not installed": (["-m", "hydra/sweeper=ax", "seed=0,1"], "pip install hydra-ax-sweeper"),
    "interval without a search": (["-m", "optimizer.lr=interval(0.1,1)"], "optimizer.lr", "hydra/sweeper=optuna"),
    "key of another sweeper": (["-m", "hydra.sweeper.n_trials=3", "seed=0"], "n_trials", "hydra/sweeper=optuna"),
    "values without a sweep": (["seed=0,1"], "Ambiguous value", "add -m"),
    "search of nothing": (["-m", "hydra/sweeper=optuna", "seed=0"], "nothing to search", "+search="),
    "unknown sampler": (["-m", "+search=dino", "hydra.sweeper.sampler=tbe"], "'tbe'", "tpe"),
    "range of nothing": (["-m", "hydra/sweeper=optuna", "optimizer.lr=interval(1,0)"], "optimizer.lr", "no range"),
    "unknown optimizer": (["optimizer.name=Adamm"], "'Adamm'", "Adam"),
    "no objects that large": (["dataset.min_crop_size=4000"], "no object", "dataset.min_crop_size"),
    "missing weights": (["backbone.weights=nowhere.pth"], "'nowhere.pth'", "timm"),
    "no run to start from": (["backbone.weights=latest:dino"], "latest:dino", "pretrain"),
    "unknown run to resume": (["resume=0123"], "'0123'", "make ui"),
    "unknown decoder": (["task=multiclass", "task.decoder=deeplabv4"], "'deeplabv4'", "deeplabv3"),
    "two rates": (["task=multiclass", "task.atrous_rates=[1,2]"], "task.atrous_rates: got [1, 2]", "three"),
    "weight of no class": (["task=multiclass", "task.class_weights={cat: 2}"], "'cat'", "known: background"),
    "one image in a batch": (["task=multiclass", "loader.batch_size=1"], "loader.batch_size: got 1", "at least 2"),
    "limit of one image": (["task=multiclass", "dataset.limit=1"], "1 training images", "a larger dataset.limit="),
    "stride of no model": (
        ["task=multiclass", "task.output_stride=7"],
        "task.output_stride: got 7",
        "its default is 32",
    ),
    "stride of a transformer": (
        ["task=multiclass", "backbone.name=test_vit", "task.output_stride=8"],
        "task.output_stride: got 8",
        "its default is 16",
    ),
    "size for no patches": (
        ["task=multiclass", "backbone.name=test_vit", "+backbone.args.dynamic_img_pad=false", "dataset.image_size=56"],
        "dataset.image_size: test_vit can't take images of 56 px",
        "it can with dataset.image_size=64",
    ),
    "views too small for a network": (
        ["backbone.name=dla46_c", "task.global_size=96", "task.local_size=48"],
        "task.local_size: dla46_c can't take images of 96 and 48 px",
        "it can with task.global_size=96 task.eval_size=96 task.local_size=64",
    ),
    "heads that don't divide": (["task=attention", "task.heads=3"], "task.heads: got 3", "divisor"),
    "unknown kind of attention": (["task=attention", "task.kind=cosin"], "'cosin'", "cosine"),
    "pretrained run of the wrong kind": (["task=compare", "runs=['0123']"], "'0123'", "make ui"),
    "needed path not given": (["dataset=coco"], "dataset.root", "dataset.root=..."),
}


@pytest.mark.parametrize("mistake", ON_COMMAND_LINE)
def test_on_the_command_line(cvexp: Callable[..., Outcome], mistake: str) -> None:
    arguments, *words = ON_COMMAND_LINE[mistake]
    own = {argument.partition("=")[0] for argument in arguments}
    of_other_task = "task." if "task" in own else ()
    tiny = [a for a in TINY if a.partition("=")[0] not in own and not a.startswith(of_other_task)]
    assert_refused(cvexp(*arguments, *tiny), *words)


def assert_refused(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 1, outcome.message
    assert outcome.message.startswith("cvexp: error: ")
    assert len(outcome.message.strip().splitlines()) == 1, outcome.message
    for word in words:
        assert word in outcome.message


def _remove_folder(root: Path) -> None:
    shutil.rmtree(root)


def _remove_images(root: Path) -> None:
    shutil.rmtree(root / "train2017")


def _remove_one_image(root: Path) -> None:
    (root / "train2017" / "train3.jpg").unlink()


def _truncate_image(root: Path) -> None:
    path = root / "train2017" / "train3.jpg"
    path.write_bytes(path.read_bytes()[:900])


def _text_for_image(root: Path) -> None:
    (root / "val2017" / "val1.jpg").write_text("<html>404</html>")


def _truncate_annotations(root: Path) -> None:
    path = root / "annotations" / "instances_train2017.json"
    path.write_text(path.read_text()[:-20])


def _captions_for_instances(root: Path) -> None:
    content = {"images": [], "annotations": [{"image_id": 1, "caption": "a cat"}]}
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


def _empty_split(root: Path) -> None:
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))


def _box_outside_the_image(root: Path) -> None:
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][2]["bbox"] = [500, 500, 50, 50]
    path.write_text(json.dumps(content))


IN_THE_DATA: dict[Callable[[Path], None], tuple[str, ...]] = {
    _remove_folder: ("there is no file", "dataset.root="),
    _remove_images: ("there is no folder", "dataset.train_images="),
    _remove_one_image: ("train3.jpg", "no such file"),
    _truncate_image: ("train3.jpg", "broken", "fetch or save it again"),
    _text_for_image: ("val1.jpg", "broken"),
    _truncate_annotations: ("instances_train2017.json", "not valid JSON"),
    _captions_for_instances: ("instances_train2017.json", "not in COCO's instance format"),
    _empty_split: ("val split", "no object of the classes cat, dog"),
    _box_outside_the_image: ("instances_train2017.json: annotations[2]", "outside the image"),
}


@pytest.mark.parametrize("damage", IN_THE_DATA)
def test_in_the_data(cvexp: Callable[..., Outcome], coco_root: Path, damage: Callable[[Path], None]) -> None:
    damage(coco_root)
    tiny = [argument for argument in TINY if not argument.startswith("dataset.")]
    data = ["dataset=coco", f"dataset.root={coco_root}", "dataset.classes=[cat,dog]"]
    assert_refused(cvexp(*tiny, *data), *IN_THE_DATA[damage])
    assert [run.info.status for run in runs()] == ["FAILED"]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_while_training(
    cvexp: Callable[..., Outcome], coco_root: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """After all was checked, in the main process or in a worker."""
    from cvexp.training import pretraining
    from cvexp.training.fit import fit

    def break_and_fit(*arguments: Any) -> float:
        _text_for_image(coco_root)
        return fit(*arguments)

    monkeypatch.setattr(pretraining, "fit", break_and_fit)
    tiny = [argument for argument in TINY if not argument.startswith(("dataset.", "loader.num_workers"))]
    data = ["dataset=coco", f"dataset.root={coco_root}", "dataset.classes=[cat,dog]", f"loader.num_workers={workers}"]
    assert_refused(cvexp(*tiny, *data), "val1.jpg", "broken")
    assert [run.info.status for run in runs()] == ["FAILED"]


def test_weights_of_another_architecture(cvexp: Callable[..., Outcome]) -> None:
    from cvexp.models.backbone import create_backbone

    torch.save(create_backbone("test_vit").state_dict(), "vit.pth")
    assert_refused(cvexp(*TINY, "backbone.weights=vit.pth"), "vit.pth", "test_resnet", "backbone=")
    state = create_backbone("test_resnet").state_dict()
    torch.save({key: value.repeat_interleave(2, 0) for key, value in state.items() if value.ndim}, "wider.pth")
    assert_refused(cvexp(*TINY, "backbone.weights=wider.pth"), "wider.pth", "different architecture")


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch was-run",)


def test_a_checkpoint_that_would_run_code(cvexp: Callable[..., Outcome]) -> None:
    torch.save({"model": _Evil()}, "evil.pth")
    assert_refused(cvexp(*TINY, "backbone.weights=evil.pth"), "evil.pth", "refused")
    assert not Path("was-run").exists()


def test_a_file_that_is_no_checkpoint(cvexp: Callable[..., Outcome]) -> None:
    Path("text.pth").write_text("not a checkpoint")
    assert_refused(cvexp(*TINY, "backbone.weights=text.pth"), "text.pth")


def test_a_server_that_does_not_answer(cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert_refused(cvexp(*TINY), "MLFLOW_TRACKING_URI", "127.0.0.1:9", "doesn't answer")


def test_a_file_where_the_output_folder_should_be(cvexp: Callable[..., Outcome]) -> None:
    Path("outputs").write_text("")
    assert_refused(cvexp(*TINY), "outputs", "tracking.folder=")


def test_a_store_that_is_no_database(cvexp: Callable[..., Outcome]) -> None:
    Path("outputs").mkdir()
    Path("outputs/mlflow.db").write_text("no database, but long enough to be taken for one" * 100)
    assert_refused(cvexp(*TINY), "mlflow.db", "tracking.folder=")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
def test_an_output_folder_without_permission(cvexp: Callable[..., Outcome], tmp_path: Path) -> None:
    if os.geteuid() == 0:  # the superuser may write anywhere but here
        folder = Path("/proc/sys/kernel/cvexp")
        if not folder.parent.is_dir():
            pytest.skip("the superuser may write to every folder of this system")
    else:
        folder = tmp_path / "locked" / "outputs"
        folder.parent.mkdir(mode=0o500)
    assert_refused(cvexp(*TINY, f"tracking.folder={folder}"), str(folder), "tracking.folder=PATH")


def test_a_loss_that_is_no_number(cvexp: Callable[..., Outcome]) -> None:
    assert_refused(
        cvexp(*TINY, "optimizer.lr=1e30", "optimizer.clip_norm=null"),
        "loss is nan or infinite in step 2",
        "optimizer.lr",
    )
    assert [run.info.status for run in runs()] == ["FAILED"]


def test_one_of_several_processes_reports(cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun has one
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}.items():
        monkeypatch.setenv(name, value)
    for arguments, message in (
        (TINY, "cvexp: error: trainer.strategy: there are 2 processes; add trainer=ddp"),
        (["task=neighbors"], "cvexp: error: task: neighbors runs in one process, but there are 2; leave out torchrun"),
        (["-m", *TINY, "seed=0,1"], "cvexp: error: -m: a sweep runs in one process"),
    ):
        monkeypatch.setenv("RANK", "1")
        first = cvexp(*arguments)
        monkeypatch.setenv("RANK", "0")
        second = cvexp(*arguments)
        assert (first.code, second.code) == (1, 1)
        assert message in first.message
        assert "error" not in second.message
    assert not Path("outputs/mlflow.db").exists()


@pytest.mark.slow
def test_a_traceback_is_shown_on_request(coco_root: Path) -> None:
    process = start("dataset=coco", "dataset.root=nowhere", HYDRA_FULL_ERROR="1")
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "Traceback" in output
    assert "nowhere/annotations" in output


@pytest.mark.slow
def test_without_request_no_traceback_is_shown() -> None:
    process = start("dataset=coco", "dataset.root=nowhere")
    output, _ = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in output
    lines = [line for line in output.splitlines() if not line.endswith(" so far")]  # on a busy machine
    assert len(lines) == 1, output
