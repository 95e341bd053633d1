"""`task=register`: models that load without cvexp, and aliases that only better versions get."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

import cvexp as package
from cvexp import promotion
from cvexp.errors import UserError
from cvexp.export.onnx_format import Onnx
from cvexp.inference.embedder import Embedder
from cvexp.inference.segmenter import Segmenter
from cvexp.tasks import register
from cvexp.tracking import registry
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, finish, mlflow_server, start_at_once, store

pytestmark = pytest.mark.slow  # these tests train

NUM_TEST = 31  # of 40 generated images, those that have objects of the two classes
STEP = ["trainer.max_epochs=1", "trainer.max_steps=1"]


def without(settings: list[str], *keys: str) -> list[str]:
    return [setting for setting in settings if setting.partition("=")[0] not in keys]


SEGMENTATION = [
    *without(
        TINY_SEGMENTATION, "dataset.train_images", "dataset.test_images", "trainer.max_epochs", "loader.batch_size"
    ),
    *("dataset.train_images=48", "dataset.test_images=40", "loader.batch_size=8", "dataset.classes=[disk,square]"),
    "optimizer.lr=0.005",
]
PRETRAINING = [*without(TINY, "dataset.test_images", "trainer.max_epochs"), "dataset.test_images=40"]


def change(folder: Path, run_id: str, tensors: str) -> None:
    """Set tensors of a checkpoint to zero."""
    path = Path(unquote(urlparse(store(folder).get_run(run_id).info.artifact_uri).path)) / "checkpoints" / "best.ckpt"
    content = torch.load(path, weights_only=True)
    chosen = [
        tensor for name, tensor in content["state_dict"].items() if tensors in name and tensor.is_floating_point()
    ]
    assert chosen
    for tensor in chosen:
        tensor.zero_()
    torch.save(content, path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A store with runs, and their ids by name: two equal ones, one that predicts no class, and three encoders."""
    folder = tmp_path_factory.mktemp("trained") / "outputs"
    jobs = {
        "good": [*SEGMENTATION, "task=multiclass", "trainer.max_epochs=12"],
        "equal": [*SEGMENTATION, "task=multiclass", "trainer.max_epochs=12"],
        "bad": [*SEGMENTATION, "task=multiclass", *STEP],
        "encoder": [*PRETRAINING, *STEP],
        "other encoder": [*PRETRAINING, *STEP, "seed=1"],
        "bad encoder": [*PRETRAINING, *STEP, "seed=2"],
    }
    ids = {name: package.run(*words, f"tracking.folder={folder}")[0] for name, words in jobs.items()}
    change(folder, ids["bad"], "classifier")
    change(folder, ids["bad encoder"], "backbone")
    return folder, ids


@pytest.fixture
def ids(trained: tuple[Path, dict[str, str]]) -> dict[str, str]:
    """Copy the store to where runs are recorded by default."""
    shutil.copytree(trained[0], "outputs")
    return trained[1]


Register = Callable[..., str]


@pytest.fixture
def to_register(cvexp: Callable[..., Outcome], ids: dict[str, str]) -> Register:
    """Register one of the runs, and return what was printed."""

    def run(name: str, *settings: str, model: str = "shapes", code: int = 0) -> str:
        outcome = cvexp("task=register", f"run={ids[name]}", f"task.model='{model}'", *settings)
        assert outcome.code == code, outcome.message
        return " ".join(outcome.message.split())

    return run


def champion(model: str = "shapes") -> int:
    return int(store().get_registered_model(model).aliases["champion"])


def versions(model: str = "shapes") -> list[mlflow.entities.model_registry.ModelVersion]:
    found = [version for version in store().search_model_versions() if version.name == model]
    return sorted(found, key=lambda version: int(version.version))


def test_a_run_becomes_a_model_that_mlflow_and_cvexp_load(
    to_register: Register, cvexp: Callable[..., Outcome], ids: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = store().get_metric_history(ids["good"], "test/miou")
    message = to_register("good", "task.alias=champion", model="R&D (1)")
    assert "models:/R&D (1)/1: the best checkpoint of the run" in message
    assert "champion: now version 1: it named no version before" in message
    (version,) = versions("R&D (1)")
    assert version.run_id == ids["good"]
    assert version.tags["task"] == "multiclass"
    assert json.loads(version.tags["classes"]) == ["disk", "square"]
    assert float(version.tags["test/miou"]) == pytest.approx(before[0].value, abs=1e-4)
    assert version.tags["selected"].startswith("epoch ")

    (logged,) = store().search_logged_models(["1"], order_by=[{"field_name": "metrics.test/miou"}])
    assert (logged.source_run_id, logged.status, logged.model_type) == (ids["good"], "READY", "segmenter")
    metrics = {metric.key: metric for metric in logged.metrics or []}
    assert metrics["test/miou"].value == before[0].value
    assert {metrics[f"{split}/miou"].dataset_name for split in ("best", "test")} == {"shapes-val", "shapes-test"}
    assert store().get_metric_history(ids["good"], "test/miou") == before
    outputs: Any = store().get_run(ids["good"]).outputs
    assert [output.model_id for output in outputs.model_outputs] == [logged.model_id]

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    uri = "models:/R&D (1)@champion"
    model: Any = mlflow.pyfunc.load_model(store().get_model_version_download_uri("R&D (1)", "1"))
    about = model.metadata.metadata["cvexp"]
    assert (about["run"], about["classes"]) == (ids["good"], ["disk", "square"])
    assert about["metrics"]["test/miou"] == before[0].value
    assert len(model.predict(registry.example())) == 1

    loaded, direct = package.load(uri), package.load(ids["good"])
    assert isinstance(loaded, Segmenter)
    assert isinstance(direct, Segmenter)
    image = Image.effect_mandelbrot((80, 60), (-2, -1.5, 1, 1.5), 20).convert("RGB")
    image.save("image.png")
    expected = direct.predict("image.png").labels
    np.testing.assert_array_equal(loaded.predict("image.png").labels, expected)
    assert cvexp("task=predict", "task.images=[image.png]", f"task.model='{uri}'", "task.out=predicted").code == 0
    np.testing.assert_array_equal(np.asarray(Image.open("predicted/masks/image.png")), expected)
    outcome = cvexp(*SEGMENTATION, *STEP, "task=attention", f"backbone.weights='{uri}'")
    assert outcome.code == 0, outcome.message
    Path("outputs").rename("moved")
    assert isinstance(package.load(uri, tracking_folder="moved"), Segmenter)


def test_an_alias_moves_to_better_versions_only(to_register: Register) -> None:
    alias = "task.alias=champion"
    to_register("bad", alias)
    assert champion() == 1
    message = to_register("good", alias)
    assert champion() == 2, message
    assert "champion: now version 2: mIoU 0." in message
    assert f"on {NUM_TEST} test images" in message
    message = to_register("equal", alias)
    assert champion() == 2
    assert "still version 2: version 3 has mIoU" in message
    assert f"difference +0.0000 (95% interval +0.0000 to +0.0000) on {NUM_TEST} test images; task.force=true" in message
    message = to_register("bad", alias)
    assert "models:/shapes/1: the run" in message
    assert "so there is no new version" in message
    assert "still version 2: version 1 has mIoU 0.0000 instead of 0." in message
    assert "champion: already version 2" in to_register("good", alias)
    assert "champion" not in to_register("good")
    assert champion() == 2
    assert "moved by task.force from version 2" in to_register("bad", alias, "task.force=true")
    assert champion() == 1
    assert len(versions()) == 3
    assert f"on {NUM_TEST} test images" in versions()[1].tags["alias.champion"]

    equal, good, _ = store().search_runs(["1"], "tags.task = 'register'")[-3:]
    moved, stayed = (
        json.loads(Path(store().download_artifacts(run.info.run_id, "register/decision.json")).read_text())
        for run in (good, equal)
    )
    assert (moved["moved"], moved["split"], moved["num_images"]) == (True, "test", NUM_TEST)
    assert moved["new"] > moved["low"] > moved["current"] == 0
    assert stayed["moved"] is False
    assert (stayed["low"], stayed["high"]) == (0, 0)


def test_encoders_are_compared_by_their_neighbors(to_register: Register) -> None:
    alias = "task.alias=champion"
    to_register("bad encoder", alias)
    message = to_register("encoder", alias)
    assert "champion: now version 2: kNN top-1 accuracy 0." in message, message
    assert "still version 2: version 3 has kNN top-1 accuracy" in to_register("other encoder", alias)
    assert champion() == 2
    assert isinstance(package.load("models:/shapes@champion"), Embedder)
    message = to_register("good", alias)
    assert (
        "it can't be compared with version 4, because one is of task=multiclass, and the other of task=dino" in message
    )
    assert champion() == 2
    assert {version.tags["task"] for version in versions()} == {"dino", "multiclass"}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["dataset.classes=[disk,star]"], "they have different classes"),
        (["dataset.test_images=0"], "they have different test images or labels"),
    ],
)
def test_runs_that_can_not_be_compared_leave_the_alias(
    cvexp: Callable[..., Outcome], to_register: Register, ids: dict[str, str], settings: list[str], reason: str
) -> None:
    keys = [setting.partition("=")[0] for setting in settings]
    outcome = cvexp(*without(SEGMENTATION, *keys), *settings, "task=multiclass", *STEP)
    assert outcome.code == 0, outcome.message
    ids = {**ids, "here": store().search_runs(["1"], "tags.task = 'multiclass'")[0].info.run_id}
    to_register("good", "task.alias=champion")
    message = cvexp("task=register", f"run={ids['here']}", "task.model=shapes", "task.alias=champion").message
    assert reason in message
    assert "champion: still version 1" in message
    assert len(versions()) == 2


def test_without_test_images_and_with_few_images_the_alias_stays(
    cvexp: Callable[..., Outcome],
) -> None:
    for seed in range(2):
        own = [*without(SEGMENTATION, "dataset.test_images"), "dataset.test_images=0", f"seed={seed}"]
        assert cvexp(*own, "task=multiclass", *STEP).code == 0
        outcome = cvexp("task=register", "task.model=shapes", "task.alias=champion")
        assert outcome.code == 0, outcome.message
    text = " ".join(outcome.message.split())
    assert "warning: there is no test split, so the networks are compared on the validation images" in text
    assert re.search(r"on \d validation images; at least 20 are needed; task.force=true moves it anyway", text)
    assert champion() == 1


def test_if_the_data_have_changed_the_version_is_registered_and_the_alias_stays(
    to_register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_register("good", "task.alias=champion")
    Image.new("RGB", (70, 50), "navy").save("own.png")
    monkeypatch.setattr("cvexp.data.index.Index.fingerprint", lambda index: "changed")
    message = to_register("equal", "task.alias=champion", code=1)
    assert "the validation images in" in message
    assert "task.images=" in message
    message = to_register("equal", "task.alias=champion", "task.images=[own.png]")
    assert "it can't be compared with version 2 (dataset: the test images or labels" in message
    assert "task.force=true moves it" in message
    assert (champion(), len(versions())) == (1, 2)


def test_names_that_mlflow_can_not_find_are_refused(cvexp: Callable[..., Outcome]) -> None:
    for name in ("a/b", "a:b", "a@b", "a#b", "a?b", "50%", " ", "..", ""):
        outcome = cvexp("task=register", f"task.model='{name}'")
        assert (outcome.code, outcome.message.count("\n")) == (1, 0), outcome.message
        assert "task.model: got" in outcome.message
    for alias in ("latest", "Latest", "v1", "a b", "a@b"):
        assert "task.alias: got" in cvexp("task=register", f"task.alias='{alias}'").message
    assert "task.model: name the registered model" in cvexp("task=register").message
    assert "run: there is no finished training run" in cvexp("task=register", "task.model=shapes").message


def test_a_network_that_onnx_can_not_express_gets_one_message(
    to_register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*arguments: object) -> None:
        raise RuntimeError("no operator\nand more")

    monkeypatch.setattr(Onnx, "write", write)
    message = to_register("good", code=1)
    assert "can't be registered, because its network can't be exported as ONNX (RuntimeError: no operator)" in message
    assert not versions()


def test_without_the_packages_for_onnx_it_names_them(to_register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert to_register("good", code=1).endswith("needs the packages of pip install 'cvexp[export]'")


def test_a_failure_leaves_no_version(to_register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise UserError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.log_model_artifacts", fail)
        assert "the disk is full" in to_register("good", code=1)
    assert [model.status for model in store().search_logged_models(["1"])] == ["FAILED"]
    assert not versions()
    to_register("good")
    assert len(versions()) == 1


def test_an_alias_that_moves_during_the_comparison_is_compared_again(
    to_register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_register("bad", "task.alias=champion")
    to_register("good")
    seen: list[str] = []

    def slow(*arguments: Any) -> Any:
        seen.append(arguments[1].id)
        contest = promotion.compare(*arguments)
        if len(seen) == 1:
            store().set_registered_model_alias("shapes", "champion", "2")
        return contest

    monkeypatch.setattr(register, "compare", slow)
    message = to_register("equal", "task.alias=champion")
    assert len(seen) == 2
    assert "still version 2" in message
    assert champion() == 2


def test_two_processes_register_at_once(ids: dict[str, str]) -> None:
    words = ["task=register", "task.model=shapes", "task.alias=champion"]
    text = finish(start_at_once([[*words, f"run={ids[name]}"] for name in ("good", "bad")]))
    assert {version.run_id for version in versions()} == {ids["good"], ids["bad"]}
    assert champion() in (1, 2), text


LOADS = """
import sys
sys.modules |= {"cvexp": None, "torch": None}
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/shapes@champion")
print(model.predict(pandas.DataFrame({"image": [open("image.png", "rb").read()]})).width[0])
"""


def test_a_server_keeps_models(cvexp: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = f"sqlite:///{tmp_path / 'server.db'}"
    Image.new("RGB", (37, 20), "navy").save("image.png")
    with mlflow_server("--backend-store-uri", backend, "--artifacts-destination", str(tmp_path / "kept")) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        package.run(*SEGMENTATION, *STEP, "task=multiclass")
        outcome = cvexp("task=register", "task.model=shapes", "task.alias=champion")
        assert outcome.code == 0, outcome.message
        (logged,) = mlflow.MlflowClient(address).search_logged_models(["1"])
        assert "test/miou" in {metric.key for metric in logged.metrics or []}
        monkeypatch.delenv("PYTHONPATH", raising=False)
        ran = subprocess.run([sys.executable, "-c", LOADS, address], capture_output=True, text=True, check=False)
        assert ran.stdout.strip() == "37", ran.stderr
        assert isinstance(package.load("models:/shapes@champion"), Segmenter)
        outcome = cvexp(*SEGMENTATION, *STEP, "task=attention", "backbone.weights=models:/shapes@champion")
        assert outcome.code == 0, outcome.message
        outcome = cvexp("task=predict", "task.images=[image.png]", "task.model=models:/shapes/1", "task.out=predicted")
        assert outcome.code == 0, outcome.message
