import json
from collections.abc import Callable

import pytest

import cvexp as package
from cvexp.tasks import benchmark
from cvexp.tasks.benchmark import advise
from cvexp.training import speed
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, runs, store

FIGURES = {
    "images_per_second",
    "step_images_per_second",
    "fit_over_step",
    "data_wait",
    "read_images_per_second",
    "view_images_per_second",
    "peak_memory_bytes",
    "model_flops",
    "matmul_flops",
}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "SECONDS", 0.02)
    monkeypatch.setattr(speed, "NUM_ROUNDS", 1)
    monkeypatch.setattr(speed, "NUM_STEPS", 2)
    monkeypatch.setattr(speed, "MATRIX_SIDE", {"cpu": 64})


@pytest.mark.parametrize("task", ["dino", "simclr", "multiclass", "attention"])
def test_every_task_that_trains_is_measured(cvexp: Callable[..., Outcome], task: str) -> None:
    settings = TINY_SEGMENTATION if task in ("multiclass", "attention") else TINY
    if task == "simclr":
        settings = [word for word in TINY if not word.startswith(("task.local", "task.global", "task.bottleneck"))]
    outcome = cvexp("task=benchmark", f"task.of={task}", *settings)
    assert outcome.code == 0, outcome.message
    figures = json.loads(outcome.message.splitlines()[-1])
    assert figures.keys() >= FIGURES
    assert figures["task"] == task
    assert all(figures[name] > 0 for name in FIGURES - {"data_wait"})
    assert figures["fit_over_step"] == pytest.approx(figures["images_per_second"] / figures["step_images_per_second"])
    assert "whole training / bare step" in outcome.message
    (run,) = runs()
    assert (run.data.tags["task"], run.data.tags["role"]) == ("benchmark", "job")  # so that nothing starts from it
    assert run.data.tags["benchmark"] == figures["advice"]
    assert {f"benchmark/{name}" for name in FIGURES} <= set(run.data.metrics)
    assert "benchmark.json" in {item.path for item in store().list_artifacts(run.info.run_id)}


def test_the_configuration_is_that_of_the_run() -> None:
    run = package.compose("+experiment=demo_segmentation", "task=attention", "task.heads=2", "optimizer.lr=1e-2")
    measured = package.compose(
        "+experiment=demo_segmentation", "task=benchmark", "task.of=attention", "task.heads=2", "optimizer.lr=1e-2"
    )
    assert measured.benchmark
    measured.benchmark = False
    assert measured == run


def test_an_experiment_is_measured_with_its_own_task() -> None:
    assert package.compose("+experiment=demo_segmentation", "task=benchmark").task.name == "multiclass"
    assert package.compose("task=benchmark").task.name == "dino"


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ("compare", "task.of: got 'compare', but only tasks that train"),
        ("dinno", "there is no option 'dinno'; did you"),
    ],
)
def test_only_tasks_that_train_are_measured(cvexp: Callable[..., Outcome], of: str, message: str) -> None:
    outcome = cvexp("task=benchmark", f"task.of={of}")
    assert outcome.code == 1
    assert message in outcome.message


@pytest.mark.parametrize(
    ("speeds", "kept", "on_device", "advice"),
    [
        ({"fit_over_step": 0.95}, "ram (1 MB)", False, "the model is the limit; try trainer.precision=bf16-mixed"),
        ({}, "ram (1 MB)", False, "loader.num_workers=2"),
        ({"read_images_per_second": 10}, "none (they would take 1 MB)", False, "reading the images is the limit"),
        ({"view_images_per_second": 2}, "ram (1 MB)", False, "loader.num_workers=8"),
        ({"view_images_per_second": 10}, "ram (1 MB)", True, "dataset.keep=device"),
    ],
)
def test_the_advice_names_the_limit(
    monkeypatch: pytest.MonkeyPatch, speeds: dict[str, float], kept: str, on_device: bool, advice: str
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    measured = {
        "fit_over_step": 0.5,
        "data_wait": 0.4,
        "read_images_per_second": 1000.0,
        "view_images_per_second": 100.0,
        "step_images_per_second": 150.0,
    }
    assert advice in advise({**measured, **speeds}, package.compose(), on_device, kept)


def test_a_model_that_uses_all_cores_leaves_none_for_the_views(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    speeds = {"fit_over_step": 0.5, "read_images_per_second": 1000.0, "view_images_per_second": 100.0}
    advice = advise(speeds, package.compose(), draws_on_device=False, kept="ram (1 MB)")
    assert advice.endswith("loader.num_workers=0")
    advice = advise(speeds, package.compose("loader.num_workers=0"), draws_on_device=False, kept="ram (1 MB)")
    assert advice.endswith("loader.num_workers=1")
