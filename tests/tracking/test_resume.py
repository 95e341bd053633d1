"""Going on with a run that was tampered with, was killed early, or has other data now."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from omegaconf import OmegaConf

from cvexp.composition import check, compose, compose_yaml
from cvexp.config import RunConfig
from cvexp.errors import UserError
from cvexp.tracking import opening, resume
from cvexp.tracking.run import Run as OpenRun
from cvexp.training import module
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, runs, save_image, store, write_coco

pytestmark = pytest.mark.slow  # most of these tests train, or start servers or processes


NO_DATA = [argument for argument in TINY if not argument.startswith("dataset.")]


def kill(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def killed_at(
    place: object, name: str, cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> Run:
    """A run that is killed where a function would be called; MLflow is not told of the end, as after SIGKILL."""
    with monkeypatch.context() as patch:
        patch.setattr(place, name, kill)
        patch.setattr(opening, "_close", lambda run, *_: run.drain())
        assert cvexp(*arguments).code == 128 + signal.SIGTERM
    (run,) = runs()
    assert run.info.status == "RUNNING"
    return run


def artifacts(run: Run) -> Path:
    return Path("outputs/artifacts", str(run.info.run_id), "artifacts")


def change_config(run: Run, key: str, value: object) -> None:
    path = artifacts(run) / "config.yaml"
    config = yaml.safe_load(path.read_text())
    node = config
    *groups, last = key.split(".")
    for group in groups:
        node = node[group]
    node[last] = value
    path.write_text(yaml.safe_dump(config))


@pytest.mark.parametrize("key", ["name", "dataset.root", "optimizer.args.betas"])
def test_an_interpolation_in_a_recorded_configuration_is_refused(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("PRECIOUS", "hunter2")
    run = killed_at(module, "make_optimizer", cvexp, monkeypatch, *TINY)
    change_config(run, key, "${oc.env:PRECIOUS}" if key != "optimizer.args.betas" else ["${oc.env:PRECIOUS}", 1])
    outcome = cvexp(f"resume={run.info.run_id}")
    assert outcome.code == 1
    assert key in outcome.message
    assert "interpolation" in outcome.message
    assert "hunter2" not in outcome.message
    assert cvexp("task=neighbors", f"run={run.info.run_id}").code == 1


def test_a_run_that_was_recorded_without_newer_keys_goes_on(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = killed_at(module, "make_optimizer", cvexp, monkeypatch, *TINY, "trainer.max_steps=1")
    path = artifacts(run) / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for group, key in (("dataset", "keep"), ("trainer", "compile")):
        del config[group][key]
    del config["benchmark"]
    path.write_text(yaml.safe_dump(config))
    assert cvexp(f"resume={run.info.run_id}").code == 0


@pytest.mark.parametrize("key", ["dataset.root", "dataset.cache"])
def test_a_recorded_configuration_makes_no_folder_anywhere(
    cvexp: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    key: str,
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "new"
    run = killed_at(module, "make_optimizer", cvexp, monkeypatch, *TINY)
    change_config(run, key, str(elsewhere))
    outcome = cvexp(f"resume={run.info.run_id}")
    assert outcome.code == 1
    assert f"{key}: '{elsewhere}'" in outcome.message
    assert not elsewhere.exists()


def test_a_changed_folder_tag_makes_no_folder_anywhere(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "new"
    run = killed_at(module, "make_optimizer", cvexp, monkeypatch, *TINY)
    for folder in (str(elsewhere), "outputs/../../new", ""):
        store().set_tag(run.info.run_id, "cvexp.folder", folder)
        outcome = cvexp(f"resume={run.info.run_id}")
        assert outcome.code == 1
        assert "cvexp.folder" in outcome.message
    assert not elsewhere.exists()
    assert not Path("../new").exists()


def test_a_run_killed_before_its_configuration_was_recorded(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = killed_at(MlflowClient, "log_text", cvexp, monkeypatch, *TINY)
    outcome = cvexp(f"resume={run.info.run_id}")
    assert outcome.code == 1
    assert len(outcome.message.strip().splitlines()) == 1
    assert "start again with: python -m cvexp backbone.name=test_resnet" in outcome.message


@pytest.mark.parametrize(("place", "method"), [(MlflowClient, "log_batch"), (OpenRun, "log_inputs")])
@pytest.mark.parametrize("task", ["dino", "multiclass"])
def test_a_run_killed_before_its_data_were_recorded_records_them_later(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, task: str, place: type, method: str
) -> None:
    """Or before its parameters were."""
    tiny = TINY if task == "dino" else TINY_SEGMENTATION
    run = killed_at(place, method, cvexp, monkeypatch, f"task={task}", *tiny, "trainer.max_epochs=1")
    assert "data.val.fingerprint" not in run.data.tags
    outcome = cvexp(f"resume={run.info.run_id}")
    assert outcome.code == 0, outcome.message
    (run,) = runs()
    assert run.data.params["task.name"] == task
    assert run.inputs is not None
    assert {tag.value for entry in run.inputs.dataset_inputs for tag in entry.tags} == {"train", "val"}
    assert run.data.tags["data.train.fingerprint"]
    assert run.data.metrics["data/left_out"] == 0


def test_a_run_killed_between_the_two_fingerprints_records_both(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = killed_at(module, "make_optimizer", cvexp, monkeypatch, *TINY)
    store().delete_tag(run.info.run_id, "data.val.fingerprint")
    outcome = cvexp(f"resume={run.info.run_id}")
    assert outcome.code == 0, outcome.message
    assert runs()[0].data.tags["data.val.fingerprint"]


def replace_image(root: Path) -> str:
    shutil.copy(root / "train2017" / "train1.jpg", root / "train2017" / "train3.jpg")
    return "train: changed train2017/train3.jpg"


def move_box(root: Path) -> str:
    path = root / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][2]["bbox"][0] += 1
    path.write_text(json.dumps(content))
    return "val: changed val2017/val2.jpg"


def take_image_out(root: Path) -> str:
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"], content["annotations"] = content["images"][:-1], content["annotations"][:-1]
    path.write_text(json.dumps(content))
    return "train: gone train2017/train7.jpg"


def change_many(root: Path) -> str:
    for i in range(8):
        save_image(root / "train2017" / f"train{i}.jpg", size=(80, 60), seed=100 + i)
    return "train: changed train2017/train0.jpg, train2017/train1.jpg, train2017/train2.jpg and 5 more"


@pytest.mark.parametrize("change", [replace_image, move_box, take_image_out, change_many])
@pytest.mark.parametrize("task", ["dino", "attention"])
def test_resume_refuses_changed_data_and_names_files(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], str], task: str
) -> None:
    root = write_coco(Path("coco"))
    shutil.copytree(root, "kept")
    tiny = NO_DATA if task == "dino" else [a for a in TINY_SEGMENTATION if not a.startswith("dataset.")]
    data = ["dataset=coco", f"dataset.root={root}", "dataset.classes=[cat,dog]", "dataset.image_size=64"]
    run = killed_at(module, "make_optimizer", cvexp, monkeypatch, f"task={task}", *tiny, *data)
    said = change(root)
    outcome = cvexp(f"resume={run.info.run_id}")
    assert outcome.code == 1
    assert said in outcome.message
    assert "restore them, or start a new run" in outcome.message
    shutil.rmtree(root)
    shutil.copytree("kept", root)
    assert cvexp(f"resume={run.info.run_id}").code == 0


OWN_COCO = [
    "dataset=coco",
    "dataset.root=data",
    "dataset.download=true",
    "dataset.annotations_url=http://127.0.0.1:9/a",
]


def recorded(*overrides: str, by: list[str], named: tuple[str, ...] = ()) -> RunConfig:
    """Read a configuration back from a store in a process that has another one."""
    saved = OmegaConf.to_container(OmegaConf.create(asdict(compose(*overrides))))
    fake: Any = SimpleNamespace(read=lambda *_: saved)
    return check(resume.recorded_config(fake, "0", compose(*by), named))


@pytest.mark.parametrize(
    ("by", "is_kept"),
    [
        (OWN_COCO, True),
        ([*OWN_COCO, "dataset.limit=3", "tracking.folder=other"], True),
        (["task=report"], False),
        ([*OWN_COCO, "dataset.download=false"], False),
        ([*OWN_COCO, "dataset.root=elsewhere"], False),
        ([*OWN_COCO, "dataset.annotations_url=http://127.0.0.1:9/b"], False),
        ([*OWN_COCO, "dataset.train_annotations=.bash_aliases"], False),
    ],
)
def test_a_recorded_configuration_fetches_only_what_the_command_line_asks_for(by: list[str], is_kept: bool) -> None:
    assert recorded(*OWN_COCO, by=by).dataset.download is is_kept  # type: ignore[attr-defined]


def test_a_job_on_a_changed_run_leaves_existing_folders_alone(
    cvexp: Callable[..., Outcome], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With the names of the annotation files, its author could otherwise choose which files appear there."""
    home = tmp_path_factory.mktemp("home")
    arguments = [*NO_DATA, "dataset=coco", f"dataset.root={write_coco(Path('coco'))}", "dataset.classes=[cat,dog]"]
    assert cvexp(*arguments, "dataset.image_size=64", "trainer.max_steps=1").code == 0
    (run,) = runs()
    for key, value in (
        ("root", str(home)),
        ("download", True),
        ("annotations_url", "http://127.0.0.1:9/evil.zip"),
        ("train_annotations", ".ssh/rc"),
    ):
        change_config(run, f"dataset.{key}", value)
    outcome = cvexp("task=neighbors", "trainer.accelerator=cpu")
    assert outcome.code == 1
    assert "there is no file" in outcome.message
    assert not list(home.iterdir())


@pytest.mark.parametrize(("task", "key"), [("predict", "out"), ("export", "out"), ("prepare", "shards")])
def test_a_recorded_job_makes_no_folder_anywhere(task: str, key: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "new"
    job = [f"task={task}", f"task.{key}={elsewhere}", "dataset=shapes"]
    with pytest.raises(UserError, match=f"task.{key}: '{elsewhere}', which does not exist"):
        recorded(*job, by=["task=report"])
    recorded(*job, by=["task=report"], named=(f"task.{key}",))
    recorded(f"task={task}", f"task.{key}=results", by=["task=report"])


def test_a_recorded_table_is_written_only_where_there_is_a_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    recorded("task=embed", f"task.out={elsewhere}/a.npz", by=["task=report"])
    with pytest.raises(UserError, match=f"task.out: '{elsewhere}/new/a.npz', which does not exist"):
        recorded("task=embed", f"task.out={elsewhere}/new/a.npz", by=["task=report"])


@pytest.mark.parametrize("dataset", ["shapes", "coco", "voc", "folder"])
@pytest.mark.parametrize("task", ["dino", "attention"])
def test_configurations_that_lack_newer_keys_can_be_read(dataset: str, task: str, tmp_path: Path) -> None:
    config = compose_yaml([f"dataset={dataset}", "dataset.root=x", f"task={task}"])
    recorded = OmegaConf.to_container(OmegaConf.create(asdict(check(config))))
    assert isinstance(recorded, dict)
    newer = {
        "dataset": ("keep", "fraction", "fraction_seed", "test_fraction", "test_images", "test_list", "test_masks"),
        "trainer": ("compile", "sync_batchnorm", "steps_per_epoch"),
        "task": ("dense_images",),
    }
    for group, keys in newer.items():
        for key in keys:
            recorded[group].pop(key, None)
    path = tmp_path / "config.yaml"
    OmegaConf.save(OmegaConf.create(recorded), path)
    read = check(OmegaConf.create(resume._read_config(path)))
    assert read.dataset.fraction == 1.0
    assert read.trainer.steps_per_epoch is None
