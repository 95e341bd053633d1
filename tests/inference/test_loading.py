"""`cvexp.load`, on real runs that were just started."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import mlflow
import numpy as np
import pytest
import torch

import cvexp as package
from cvexp.errors import UserError
from cvexp.inference.embedder import Embedder
from cvexp.inference.segmenter import Segmenter
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, mlflow_server, runs, store

pytestmark = pytest.mark.slow  # these tests train

IMAGES = [np.random.RandomState(seed).randint(0, 256, (40, 60, 3), dtype=np.uint8) for seed in range(2)]
QUICK = ["trainer.max_epochs=1", "trainer.max_steps=1"]


def without(settings: list[str], *keys: str) -> list[str]:
    return [setting for setting in settings if setting.partition("=")[0] not in keys]


def train(cvexp: Callable[..., Outcome], task: str, *settings: str, folder: Path = Path("outputs")) -> tuple[str, Path]:
    """Train for a step, and return the run's id and its best checkpoint."""
    tiny = TINY if task in ("dino", "simclr") else TINY_SEGMENTATION
    own = ["task=simclr", "task.hidden_dim=8", "task.size=32", "task.dense_images=0"] if task == "simclr" else []
    arguments = (
        [s for s in tiny if not (task == "simclr" and s.startswith("task."))] if own else [*tiny, f"task={task}"]
    )
    outcome = cvexp(*without(arguments, "trainer.max_epochs"), *own, *QUICK, *settings)
    assert outcome.code == 0, outcome.message
    run = runs(folder)[0]
    return run.info.run_id, Path(unquote(urlparse(run.info.artifact_uri).path)) / "checkpoints" / "best.ckpt"


def output(network: Segmenter | Embedder) -> np.ndarray[Any, np.dtype[Any]]:
    if isinstance(network, Segmenter):
        return np.stack([prediction.probability() for prediction in network.predict(IMAGES)])
    return network.embed(IMAGES)


@pytest.mark.parametrize("task", ["dino", "simclr", "multiclass", "attention"])
def test_a_run_its_id_and_its_file_give_the_same_network(
    cvexp: Callable[..., Outcome], task: str, tmp_path: Path
) -> None:
    run_id, path = train(cvexp, task)
    moved = tmp_path / "elsewhere" / "my & model.ckpt"
    moved.parent.mkdir()
    moved.write_bytes(path.read_bytes())
    state = torch.get_rng_state()
    ways: list[Any] = [run_id, f"runs:/{run_id}", f"runs:/{run_id}/checkpoints/best.ckpt", path, str(moved)]
    networks = [package.load(way) for way in ways]
    assert torch.equal(torch.get_rng_state(), state)
    assert {type(network) for network in networks} == {Embedder if task in ("dino", "simclr") else Segmenter}
    assert {network.classes for network in networks} == {("disk", "square", "triangle", "star", "cross")}
    assert networks[0].config.task.name == task
    for network in networks[1:]:
        np.testing.assert_array_equal(output(network), output(networks[0]))


def test_runs_are_found_in_other_folders_and_on_servers(
    cvexp: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, path = train(cvexp, "multiclass", "tracking.folder='my runs'", folder=Path("my runs"))
    expected = output(package.load(path))
    np.testing.assert_array_equal(output(package.load(run_id, tracking_folder="my runs")), expected)
    with pytest.raises(UserError, match=r"load: there is no run .* tracking.folder="):
        package.load(run_id)
    backend = f"sqlite:///{tmp_path / 'server.db'}"
    with mlflow_server("--backend-store-uri", backend, "--artifacts-destination", str(tmp_path / "s")) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        outcome = cvexp(*without(TINY_SEGMENTATION, "trainer.max_epochs"), "task=multiclass", *QUICK)
        assert outcome.code == 0, outcome.message
        from mlflow import MlflowClient

        experiment = MlflowClient(address).get_experiment_by_name("cvexp")
        assert experiment is not None
        (run,) = MlflowClient(address).search_runs([experiment.experiment_id])
        np.testing.assert_array_equal(output(package.load(run.info.run_id)), expected)


@pytest.fixture
def content(cvexp: Callable[..., Outcome]) -> dict[str, Any]:
    """The content of a checkpoint, to be changed and saved as `changed.ckpt`."""
    _, path = train(cvexp, "multiclass")
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def changed(content: dict[str, Any], **metadata: Any) -> Path:
    content["cvexp"] |= metadata
    torch.save(content, "changed.ckpt")
    return Path("changed.ckpt")


def test_files_that_are_no_checkpoints_of_a_run_are_refused(content: dict[str, Any]) -> None:
    config = content["cvexp"]["config"]
    torch.save(content["state_dict"], "plain.pth")
    Path("text.ckpt").write_text("hello")
    torch.save({"state_dict": {}, "evil": print}, "evil.ckpt")
    cases: list[tuple[Any, str]] = [
        ("nowhere.ckpt", "there is no file"),
        ("text.ckpt", "not a readable checkpoint|refused"),
        ("evil.ckpt", "refused"),
        ("plain.pth", "not a checkpoint of a training run"),
        ("models:/nothing@champion", "load: the registry has no"),
        ("0" * 32, "load: there is no run"),
    ]
    for what, reason in cases:
        with pytest.raises(UserError, match=reason):
            package.load(what)
    secret = {**config, "name": "${oc.env:HOME}"}
    for metadata, reason in (
        ({"config": secret}, "never interpolations"),
        ({"config": {**config, "task": {**config["task"], "name": "os"}}}, "task.name"),
        ({"config": {**config, "dataset": 3}}, "can't be used"),
        ({"config": {"a": 1}}, "can't be used"),
        ({"config": {**config, "backbone": {**config["backbone"], "args": {"checkpoint_path": "x"}}}}, "backbone.args"),
        ({"classes": ["one"]}, "its tensors are not those"),
    ):
        with pytest.raises(UserError, match=reason):
            package.load(changed(dict(content), **{"config": config, "classes": ["a"] * 5, **metadata}))


PROGRAM = """
import mlflow
import pathlib
pathlib.Path("was-run").touch()
mlflow.models.set_model(mlflow.pyfunc.PythonModel())
"""


def test_the_program_in_a_registered_model_is_not_run(cvexp: Callable[..., Outcome]) -> None:
    run_id, path = train(cvexp, "multiclass")
    Path("program.py").write_text(PROGRAM)
    checkpoint = {"checkpoint": str(path)}
    mlflow.pyfunc.save_model("model", python_model="program.py", artifacts=checkpoint, pip_requirements=[])
    store().log_artifacts(run_id, "model", "model")
    store().create_registered_model("shapes")
    store().create_model_version("shapes", f"{runs()[0].info.artifact_uri}/model", run_id=run_id)
    Path("was-run").unlink()  # because MLflow runs it when it saves it
    np.testing.assert_array_equal(output(package.load("models:/shapes/1")), output(package.load(run_id)))
    outcome = cvexp(*TINY_SEGMENTATION, "task=multiclass", *QUICK, "backbone.weights=models:/shapes/1")
    assert outcome.code == 0, outcome.message
    assert not Path("was-run").exists()
    mlflow.pyfunc.load_model("model")
    assert Path("was-run").exists()


def test_the_classes_of_older_checkpoints_are_those_of_their_run(cvexp: Callable[..., Outcome]) -> None:
    run_id, path = train(cvexp, "multiclass", "dataset.classes=null")
    names = package.load(run_id).classes
    content = torch.load(path, weights_only=True)
    del content["cvexp"]["classes"]
    torch.save(content, path)
    assert package.load(run_id).classes == names
    with pytest.raises(UserError, match="does not name its classes"):
        package.load(path)
