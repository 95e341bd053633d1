"""The last line suggests what to do next, with all that the user has set."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from cvexp.arguments import setting
from cvexp.composition import compose
from cvexp.suggestions.words import SAME_START, TRAINING, Command, repeating
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, runs, store, write_coco

ODD = 'R&D <b>\'s "ü" $HOME'

SETTINGS = [
    [],
    ["+experiment=demo"],
    ["+experiment=voc6_dino", "dataset.root=/photos"],
    ["dataset=coco", "dataset.root='my photos & more'", "dataset.classes=[cat,'<b>','it''s']".replace("''s", "\\'s")],
    ["dataset=folder", "dataset.root=x", "dataset.mask_values={lake: 1, road: 2}", "dataset.val_images=null"],
    ["tracking.folder='/tmp/my runs'", "tracking.experiment='a & b'", "seed=7", "trainer.accelerator=cpu"],
    ["backbone=vit_small", "backbone.args.drop_rate=0.1", "loader.num_workers=3", "dataset.limit=10"],
    ["backbone.name=efficientnet_b0", "dataset=voc", "dataset.root=a b", "dataset.mean=[0,0,1e-3]"],
]


@pytest.mark.parametrize("words", SETTINGS)
def test_a_command_composes_to_the_settings_of_the_run(words: Sequence[str]) -> None:
    config = compose(*words)
    repeated = repeating(config, ["task=attention", "backbone.weights=latest:dino"], TRAINING)
    assert repeated is not None
    shell = shlex.split(str(Command(repeated)))
    assert shell[:3] == ["python", "-m", "cvexp"]
    again = compose(*shell[3:])
    assert again.task.name == "attention"
    assert again.dataset == config.dataset
    assert (again.backbone.name, again.backbone.args) == (config.backbone.name, config.backbone.args)
    for key in ("seed", "tracking.folder", "tracking.experiment", "trainer.accelerator", "loader.num_workers"):
        assert _value(again, key) == _value(config, key)


def _value(config: object, key: str) -> object:
    for part in key.split("."):
        config = getattr(config, part)
    return config


def test_nothing_is_repeated_that_is_the_default() -> None:
    assert repeating(compose("loader.batch_size=8"), ["task=neighbors"]) == ["task=neighbors"]
    assert repeating(compose(), ["task=multiclass"], SAME_START) == ["task=multiclass"]


def test_passwords_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CVEXP_PASSWORD", "")
    config = compose("dataset=course", "dataset.root=x", "dataset.password=secret")
    repeated = repeating(config, ["task=multiclass"], TRAINING)
    assert repeated is not None
    assert "secret" not in str(Command(repeated))


def test_what_no_command_line_can_say_is_not_suggested() -> None:
    config = compose("dataset=folder", "dataset.root=x", "dataset.mask_values={lake: 1}")
    config.dataset.mask_values = {"R&D <b>": 1}  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="mask_values"):
        repeating(config, ["task=multiclass"], TRAINING)


@pytest.mark.parametrize("value", [ODD, "", "null", "a\\", [ODD, None, True, 1e-5, [1]], {"a": "b c", "d": [1.5]}])
def test_settings_survive_hydra(value: object) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(setting("key", value)).value() == value


def next_of(outcome: Outcome) -> list[str]:
    """Return the words of the command in the last line."""
    assert outcome.code == 0, outcome.message
    last = outcome.message.strip().splitlines()[-1]
    assert last.startswith("next: python -m cvexp "), outcome.message
    return shlex.split(last)[4:]


PRETRAINING = [*TINY, "trainer.max_steps=1"]
SEGMENTATION = [*TINY_SEGMENTATION, "trainer.max_steps=1"]


@pytest.mark.slow
def test_each_step_leads_to_the_next_one(cvexp: Callable[..., Outcome]) -> None:
    own = ["tracking.folder=my runs & more", "tracking.experiment='<b>'", "seed=3"]
    given = [setting(*word.split("=")) if " " in word else word for word in own]
    words = next_of(cvexp(*PRETRAINING, *given))
    folder = Path("my runs & more")
    assert words[0] == "task=neighbors"
    assert {"trainer.accelerator=cpu", 'tracking.folder="my runs & more"', 'tracking.experiment="<b>"'} <= set(words)
    words = next_of(cvexp(*words, "task.k=2"))
    assert words[:2] == ["-m", "task=multiclass,attention"]
    assert {"seed=3", "backbone.name=test_resnet", "dataset.train_images=12"} <= set(words)
    (weights,) = (word for word in words if word.startswith("backbone.weights=runs:/"))

    # The first method alone, then the other one with all that was set.
    alone = [*(word for word in words[2:]), *SEGMENTATION, "task=multiclass", "optimizer.lr=0.002"]
    words = next_of(cvexp(*alone))
    assert {"task=attention", weights, "optimizer.lr=0.002", "task.decoder_channels=8", "seed=3"} <= set(words)
    words = next_of(cvexp(*words))
    assert words[0] == "task=compare"
    words = next_of(cvexp(*words, "task.samples=100"))
    assert words[0] == "task=report"
    outcome = cvexp(*words)
    assert outcome.code == 0, outcome.message
    assert "report.pdf" in outcome.message.splitlines()[-1]
    assert (folder / "report.html").exists()


@pytest.mark.slow
def test_a_sweep_over_seeds_leads_to_one_over_the_same_seeds(cvexp: Callable[..., Outcome]) -> None:
    outcome = cvexp("-m", *PRETRAINING, "seed=0,1")
    words = next_of(outcome)
    assert outcome.message.count("next: ") == 1
    assert {"-m", "task=multiclass,attention", "backbone.weights=latest:dino", "seed=0,1"} <= set(words)
    words = next_of(cvexp(*words, *SEGMENTATION))
    assert words == ["task=compare", "trainer.accelerator=cpu"]
    outcome = cvexp("-m", *PRETRAINING, "optimizer.lr=0.003,0.002")
    words = next_of(outcome)
    assert_view(outcome.message)
    newest = [run.info.run_id for run in runs() if run.data.tags["task"] == "dino"][:2]
    assert words[:2] == ["task=probe", f"runs=[{','.join(reversed(newest))}]"]


def assert_view(printed: str) -> None:
    """Fail unless the last link of a sweep leads to a view of its jobs with their settings and their metric."""
    link = r"in MLflow's UI: http://127\.0\.0\.1:5000/#/experiments/1/runs\?viewStateShareKey=(\w+)"
    key = re.findall(link, printed)[-1]
    experiment = store().get_experiment_by_name("cvexp")
    assert experiment is not None
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])
    assert view["selectedColumns"] == ["params.`optimizer.lr`", "metrics.`best/loss`"]
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`best/loss`", True)
    assert view["searchFilter"] == f"tags.`mlflow.parentRunId` = '{key}'"
    assert len(store().search_runs(["1"], view["searchFilter"])) == 2


@pytest.mark.slow
def test_a_method_with_several_seeds_leads_to_the_other_one(cvexp: Callable[..., Outcome]) -> None:
    words = next_of(cvexp("-m", *SEGMENTATION, "task=attention", "seed=1,2", "name=mine"))
    assert {"-m", "task=multiclass", "seed=1,2", "task.decoder_channels=8", "loader.batch_size=4"} <= set(words)
    assert not any(word.startswith("name=") for word in words)


def test_prepared_data_lead_to_pretraining(cvexp: Callable[..., Outcome], tmp_path: Path) -> None:
    root = write_coco(tmp_path / "my photos")
    given = ["dataset=coco", f'dataset.root="{root}"', "dataset.classes=[cat,dog]", "tracking.system_metrics=false"]
    words = next_of(cvexp("task=prepare", *given))
    assert words == ["task=dino", "dataset=coco", f'dataset.root="{root}"', "dataset.classes=[cat,dog]"]
