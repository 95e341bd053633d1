import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from cvexp.app import CONF
from cvexp.config import check
from cvexp.tracking import flatten
from tests.conftest import TINY, Outcome, runs


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_questions_are_answered_without_importing_pytorch_or_mlflow(arguments: list[str]) -> None:
    code = (
        "import sys, atexit, runpy\n"
        "atexit.register(lambda: print('IMPORTED', [m for m in ('torch', 'mlflow', 'timm') if m in sys.modules]))\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "runpy.run_module('cvexp', run_name='__main__')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "IMPORTED []" in result.stdout
    assert "resnet18" in result.stdout
    assert not Path("outputs").exists()


def test_help_names_every_option_of_every_group() -> None:
    result = subprocess.run([sys.executable, "-m", "cvexp", "--help"], capture_output=True, text=True, check=True)
    for path in CONF.glob("*/*.yaml"):
        assert path.parent.name in result.stdout
        assert path.stem in result.stdout


def test_every_experiment_composes_and_says_its_command_and_result() -> None:
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        header = path.read_text().split("defaults:")[0]
        assert f"+experiment={path.stem}" in header, path
        assert "Expected" in header, path
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("config", overrides=[f"+experiment={path.stem}", "dataset.root=somewhere"])
        check(composed)


@pytest.mark.parametrize(
    "choices",
    [
        ["dataset=shapes", "optimizer=adamw"],
        ["dataset=coco", "optimizer=sgd"],
        ["dataset=voc"],
        ["dataset=folder"],
        ["dataset=course", "task=prepare"],
    ],
)
def test_no_default_hides_in_code(choices: list[str]) -> None:
    """Every key of the schema is in the YAML: what --cfg prints is the whole configuration."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", overrides=[*choices, "dataset.root=x"])
    plain = OmegaConf.to_container(composed, resolve=True)
    assert flatten(asdict(check(composed))).keys() == flatten(plain).keys()


def test_a_task_brings_its_optimiser_and_the_command_line_wins() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "cvexp", "--cfg", "job", "optimizer=sgd"], capture_output=True, text=True, check=True
    )
    assert yaml.safe_load(result.stdout)["optimizer"]["name"] == "SGD"


def test_a_sweep_makes_a_run_and_a_folder_for_each_job(cvexp: Callable[..., Outcome]) -> None:
    assert cvexp("-m", *TINY, "trainer.max_steps=1", "seed=3,4").code == 0
    jobs = [run for run in runs() if run.data.tags["task"] != "sweep"]
    assert sorted(run.data.params["seed"] for run in jobs) == ["3", "4"]
    assert len({run.data.tags["cvexp.folder"] for run in jobs}) == 2


def test_debug_trainer_takes_three_steps(cvexp: Callable[..., Outcome]) -> None:
    tiny = [argument for argument in TINY if not argument.startswith("trainer.")]
    assert cvexp(*tiny, "trainer=debug").code == 0
    assert runs()[0].data.metrics["val/loss"] > 0


@pytest.mark.parametrize("backbone", ["test_convnext", "test_vit", "ghostnet_050"])
def test_other_families_of_backbones_train(cvexp: Callable[..., Outcome], backbone: str) -> None:
    tiny = [argument for argument in TINY if not argument.startswith("backbone.")]
    tiny += ["task.global_size=64", "task.local_size=32"]  # ConvNeXt can't take less
    outcome = cvexp(*tiny, f"backbone.name={backbone}", "trainer.max_steps=2")
    assert outcome.code == 0, outcome.message


def test_a_wheel_carries_the_configuration(tmp_path: Path) -> None:
    """Built, unpacked elsewhere, and asked there, without the repository."""
    repository = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path / "wheel"), str(repository)]
    subprocess.run(command, check=True)
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), "site"], check=True)
    code = (
        "import sys; sys.path.insert(0, 'site'); sys.argv[1:] = ['--cfg', 'job', '+experiment=demo']\n"
        "import cvexp; assert 'site' in cvexp.__file__, cvexp.__file__\n"
        "from cvexp.app import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "test_resnet" in result.stdout
