import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from cvexp.composition import CONF
from tests.helpers import TINY, Outcome, runs


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
    for path in CONF.glob("base_*.yaml"):
        assert path.stem not in result.stdout  # what options share is not an option itself


def test_a_task_brings_its_optimizer_and_the_command_line_wins() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "cvexp", "--cfg", "job", "optimizer=sgd"], capture_output=True, text=True, check=True
    )
    assert yaml.safe_load(result.stdout)["optimizer"]["name"] == "SGD"


def test_keys_of_free_dictionaries_are_given_plainly(cvexp: Callable[..., Outcome]) -> None:
    arguments = ["backbone.args.drop_rate=0.1", "optimizer.args.eps=1e-7", "+optimizer.args.amsgrad=true"]
    assert cvexp(*TINY, "trainer.max_steps=1", *arguments).code == 0
    (run,) = runs()
    assert run.data.params["backbone.args.drop_rate"] == "0.1"
    assert run.data.params["optimizer.args.eps"] == "1e-07"
    assert run.data.params["optimizer.args.betas"] == "[0.9, 0.999]"
    assert run.data.params["optimizer.args.amsgrad"] == "true"


@pytest.mark.parametrize(
    ("key", "node"), [("dataset.mask_values.cat=1", "dataset"), ("task.class_weights.cat=2", "task")]
)
def test_free_dictionaries_that_are_null_take_keys_too(key: str, node: str) -> None:
    arguments = ["task=multiclass", "dataset=folder", "dataset.root=x", key, "--cfg", "job"]
    result = subprocess.run([sys.executable, "-m", "cvexp", *arguments], capture_output=True, text=True, check=True)
    name, _, value = key.partition("=")
    assert yaml.safe_load(result.stdout)[node][name.split(".")[1]] == {"cat": int(value)}


PROGRAMS = [[sys.executable, "-m", "cvexp"], [str(Path(sys.executable).with_name("cvexp"))]]


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_version_is_ours(program: list[str]) -> None:
    result = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"cvexp {version('cvexp')}\n"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs Bash")
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("word", "completed"),
    [
        ("backb", ["backbone.", "backbone="]),
        ("backbone=resnet", ["resnet18", "resnet50", "resnet_mini"]),
        ("loader.b", ["loader.batch_size="]),
    ],
)
def test_bash_completes_it(program: list[str], word: str, completed: list[str]) -> None:
    line = " ".join([*program, "seed=1", word])
    code = f"""
        eval "$({" ".join(program)} -sc install=bash)"
        complete -p cvexp python > /dev/null || exit 1
        COMP_WORDBREAKS=$' \\t\\n"=' COMP_LINE={line!r} COMP_POINT={len(line)} COMP_WORDS=({line})
        _cvexp_complete
        printf '%s\\n' "${{COMPREPLY[@]}}"
        eval "$({" ".join(program)} -sc uninstall=bash)"
        complete -p cvexp 2> /dev/null && exit 1
        exit 0
    """
    result = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == completed


@pytest.mark.slow
def test_debug_trainer_takes_three_steps(cvexp: Callable[..., Outcome]) -> None:
    tiny = [argument for argument in TINY if not argument.startswith("trainer.")]
    assert cvexp(*tiny, "trainer=debug").code == 0
    assert runs()[0].data.metrics["val/loss"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["test_convnext", "test_vit", "ghostnet_050"])
def test_other_families_of_backbones_train(cvexp: Callable[..., Outcome], backbone: str) -> None:
    tiny = [argument for argument in TINY if not argument.startswith("backbone.")]
    tiny += ["task.global_size=64", "task.local_size=32"]  # ConvNeXt can't take less
    outcome = cvexp(*tiny, f"backbone.name={backbone}", "trainer.max_steps=2")
    assert outcome.code == 0, outcome.message


@pytest.mark.slow
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
    assert "resnet_mini" in result.stdout
