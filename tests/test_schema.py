"""The JSON schema of the YAML files."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator
from omegaconf import OmegaConf

from cvexp import options, schema
from cvexp.composition import CONF
from tests.helpers import Outcome, code_blocks

BASES = {
    "base_backbone": "backbone",
    "base_dataset": "dataset",
    "base_optimizer": "optimizer",
    "base_segmentation": "task",
    "base_split": "dataset",
}
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml")) + [
    Path("experiment") / path.name for path in sorted((CONF / "experiment").glob("*.yaml"))
]


@cache
def validator(group: str) -> Draft7Validator:
    made = schema.make(group)
    Draft7Validator.check_schema(made)
    return Draft7Validator(made)


def group_of(file: Path) -> str:
    """Return the group whose schema a file of conf/ must conform to."""
    folder = str(file.parent)
    if folder == ".":
        return BASES.get(file.stem, "")
    return "" if folder in ("experiment", "search") else folder


def mistakes(group: str, content: Any) -> list[str]:
    if isinstance(content, str):
        content = OmegaConf.to_container(OmegaConf.create(content))
    return [error.message for error in validator(group).iter_errors(content)]


@pytest.mark.parametrize("file", dict.fromkeys(map(str, FILES)))
def test_each_file_conforms(file: str) -> None:
    content = OmegaConf.to_container(OmegaConf.load(CONF / file))
    assert not mistakes(group_of(Path(file)), content)


EXPERIMENT = "defaults:\n  - override /task: dino\n"


@pytest.mark.parametrize(
    ("group", "text", "named"),
    [
        ("", "optimizer: {lrr: 1}", "lrr"),
        ("", "optimzer: {lr: 1}", "optimzer"),
        ("", "optimizer: {lr: fast}", "fast"),
        ("", "loader: {batch_size: 0}", "0"),
        ("", "loader: {batch_size: 1.5}", "1.5"),
        ("", "loader: {batch: 1}", "batch"),
        ("", "seed: null", "None"),
        ("", "trainer: {precision: fp16}", "fp16"),
        ("", "dataset: {mean: [0.5, 0.5]}", "0.5, 0.5"),
        ("", "dataset: {fraction: 0}", "0"),
        ("", "dataset: {classes: cat}", "cat"),
        ("", "task: {nothing: 1}", "nothing"),
        ("", "hydra: {sweeper: {n_trial: 3}}", "n_trial"),
        ("", "defaults: [{override /tsk: dino}]", "tsk"),
        ("", "defaults: [{override /task: dinos}]", "dinos"),
        ("", EXPERIMENT + "task: {placement: encoder}", "placement"),
        ("", EXPERIMENT + "task: {monitor: val/miou}", "val/miou"),
        ("", EXPERIMENT + "task: {blur: 0.5}", "0.5"),
        ("task", "name: multiclass\nclass_weights: {cat: much}", "much"),
        ("task", "name: simclr\nglobal_size: 3", "global_size"),
        ("dataset", "name: folder\ntrain_lists: x", "train_lists"),
        ("backbone", "weigths: null", "weigths"),
        ("trainer", "max_epochs: 0", "0"),
        ("hydra/sweeper", "n_trial: 3", "n_trial"),
    ],
)
def test_a_typo_does_not_conform(group: str, text: str, named: str) -> None:
    found = mistakes(group, text)
    assert found
    assert any(named in message for message in found)


@pytest.mark.parametrize(
    ("group", "text"),
    [
        ("", "optimizer: {lr: 1}"),
        ("", "optimizer: {lr: '${oc.env:RATE}'}"),
        ("", "optimizer: {args: {betas: [0.9, 0.99]}}"),
        ("", "name: 2024"),
        ("", "dataset: {mask_values: {'R&D': 1, '<ä>': 2}}"),
        ("", "task: {placement: encoder, size: 96, blur: 0.5}"),
        ("", EXPERIMENT + "task: {blur: [1, 0.1, 0.5], local_size: null}"),
        ("", "defaults: [demo, _self_, {override /hydra/launcher: rq}]"),
        ("", "hydra: {launcher: {comment: mine}, job: {chdir: true}}"),
        ("task", "defaults: [dino, _self_]\nout_dim: 3"),
        ("backbone", "defaults: [resnet18, _self_]\nargs: {drop_rate: 0.1}"),
        ("dataset", "root: '???'"),
    ],
)
def test_what_cvexp_accepts_conforms(group: str, text: str) -> None:
    assert not mistakes(group, text)


def test_keys_are_explained_as_in_the_files() -> None:
    made = schema.make()
    assert made["properties"]["seed"]["description"] == options.resolved("", "config")["seed"].comment
    dino = made["definitions"]["task=dino"]["properties"]
    assert dino["out_dim"]["description"].startswith("prototypes; the paper's 65536")
    assert dino["out_dim"]["anyOf"][0] == {"type": "integer", "minimum": 2}


def test_the_command_prints_it(cvexp: Callable[..., Outcome]) -> None:
    for words, group in (["--schema"], ""), (["--schema=optimizer"], "optimizer"):
        outcome = cvexp(*words)
        assert outcome.code == 0
        assert json.loads(outcome.message) == schema.make(group)
    refused = cvexp("--schema=tsk")
    assert (refused.code, refused.message) == (1, "cvexp: error: --schema: there is no 'tsk'; did you mean task?")
    assert not Path("outputs").exists()


def test_the_examples_of_the_page_conform() -> None:
    experiment, backbone, _ = code_blocks("yaml.md", "yaml")
    assert not mistakes("", experiment)
    assert not mistakes("backbone", backbone)
    (settings,) = code_blocks("yaml.md", "json")
    (commands,) = code_blocks("yaml.md", "bash")
    files = json.loads(settings)["yaml.schemas"]
    assert set(files) == set(re.findall(r"> (\S+)", commands))
