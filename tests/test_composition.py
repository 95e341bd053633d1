"""From overrides to a configuration, in Python as on the command line."""

from dataclasses import asdict

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import cvexp
from cvexp.composition import CONF, check, compose, compose_yaml
from cvexp.config import flatten
from cvexp.errors import UserError


def test_every_experiment_composes_and_says_its_command_and_result() -> None:
    for path in sorted((CONF / "experiment").glob("*.yaml")):
        header = path.read_text().split("defaults:")[0]
        assert f"+experiment={path.stem}" in header, path
        assert "Expected" in header, path
        compose(f"+experiment={path.stem}", "dataset.root=somewhere")


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
    composed = compose_yaml([*choices, "dataset.root=x"])
    plain = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(plain, dict)
    assert flatten(asdict(check(composed))).keys() == flatten({str(key): value for key, value in plain.items()}).keys()


def test_python_composes_what_the_command_line_does() -> None:
    config = cvexp.compose("task=multiclass", "optimizer.lr=0.5", "backbone.args.drop_rate=0.1", "dataset.limit=3")
    assert (config.task.name, config.dataset.limit) == ("multiclass", 3)
    assert (config.optimizer.lr, config.backbone.args) == (0.5, {"drop_rate": 0.1})


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["backbone=resnet19"], "backbone: there is no option 'resnet19'; did you mean resnet18"),
        (["optimizer.lrr=1"], "optimizer.lrr: there is no such key or group; did you mean optimizer.lr"),
        (["optimizer.lr=abc"], "optimizer.lr: .*'abc'"),
        (["dataset=coco"], r"dataset.root: a value is needed; give one with dataset\.root=\.\.\."),
        (
            ["dataset.test_images=test"],
            "dataset.test_images: got 'test': .* .* dataset=shapes, is another",
        ),
        (
            ["dataset.classes=[R&D]"],
            r"dataset.classes=\[R&D\]: this can.t be read .* needs quotes of its own",
        ),
        (["loader.batch_size=0"], "loader.batch_size: got 0, but it must be at least 1"),
    ],
)
def test_mistakes_in_python_are_those_of_the_command_line(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=f"^{words}") as raised:
        cvexp.compose(*overrides)
    assert "\n" not in str(raised.value)


def test_composing_leaves_another_application_of_hydra_alone() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        cvexp.compose("seed=3")
        assert GlobalHydra.instance().hydra is outer
