"""The commands of README.md, in its order, on small pictures."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import TINY_SEGMENTATION, Outcome, runs, save_image, save_mask
from tests.tasks.test_simclr import TINY as TINY_SIMCLR

ROOT = Path(__file__).parents[1]


def commands() -> list[str]:
    """Return the lines of the indented blocks, without comments, and with continued lines joined."""
    text = (ROOT / "README.md").read_text().replace("\\\n", "")
    return [line.partition(" #")[0].strip() for line in text.splitlines() if line.startswith("    ")]


def small(words: list[str]) -> list[str]:
    """Return settings that make a run of one epoch small, except for those that the command itself gives."""
    segments = any(word.startswith("task=multiclass") for word in words)
    keys = TINY_SEGMENTATION if segments else TINY_SIMCLR
    given = {word.partition("=")[0] for word in words} - {"trainer.max_epochs"}
    left_out = ("dataset.train", "dataset.val", "dataset.test", "backbone.name")
    own = [word for word in keys if not word.startswith(left_out)]
    return [*(word for word in own if word.partition("=")[0] not in given), "trainer.max_epochs=1"]


def test_it_is_short_and_its_pictures_and_targets_exist() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
        assert (ROOT / picture).is_file(), picture
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    called = re.findall(r"\bmake ([a-z]+)\b", " ".join(command for command in commands()))
    assert called
    assert set(called) <= set(targets)


@pytest.mark.slow
def test_its_commands_run_one_after_another(cvexp: Callable[..., Outcome]) -> None:
    for i in range(40):
        save_image(Path(f"PHOTOS/trip/{i}.jpg"))
    for split, count in (("train", 8), ("val", 4)):
        for i in range(count):
            save_image(Path(f"MASKED/{split}/{i}.jpg"))
            save_mask(Path(f"MASKED/masks/{split}/{i}.png"), 0, 1, 2, 1)
    pretrained = ""
    trained = []
    for command in commands():
        if not command.startswith("python -m cvexp"):
            continue
        words = shlex.split(command.replace("RUN_ID", pretrained))[3:]
        trains = not any(word in words for word in ("--help", "job")) and "dataset=folder" in words
        outcome = cvexp(*words, *(small(words) if trains else []))
        assert outcome.code == 0, f"{command}: {outcome.message}"
        pretrained = pretrained or runs()[0].info.run_id
        trained += [word for word in words if word.startswith("task=")]
    assert trained == ["task=simclr", "task=neighbors", "task=multiclass,attention", "task=compare", "task=report"]
    assert Path("outputs/report.html").exists()
    starts = {run.data.tags["weights_from"] for run in runs() if run.data.tags["task"] in ("multiclass", "attention")}
    assert starts == {pretrained}
