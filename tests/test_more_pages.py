"""The commands of the pages on backbones, single tasks, sweeps and studies run, in small, one after another.

The command of joblib.md runs in tests/sweeps/test_launchers.py.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, runs, save_image, save_mask
from tests.test_method_pages import commands, small

pytestmark = pytest.mark.slow

PRETRAINING = ["task=dino", "dataset=shapes", *TINY, "trainer.max_epochs=1"]
SEGMENTATION = ["task=multiclass", "dataset=shapes", *TINY_SEGMENTATION, "trainer.max_steps=1"]
# What each page takes for granted.
BEFORE: dict[str, Sequence[str]] = {
    "backbones.md": (),
    "continuing.md": PRETRAINING,
    "embed.md": PRETRAINING,
    "export.md": SEGMENTATION,
    "features.md": (),
    "optuna.md": (),
    "probe.md": PRETRAINING,
    "speed.md": (),
    "sweeps.md": PRETRAINING,
}
# In place of what takes long.
SMALLER = {
    "backbone=resnet18,convnext_tiny": "backbone=resnet_mini",
    "backbone.name=resnet18,efficientnet_b0": "backbone.name=test_resnet",
    "hydra.sweeper.n_trials=30": "hydra.sweeper.n_trials=2",
    "optimizer.lr=tag(log,interval(1e-4,1e-2))": "optimizer.lr=1e-4,1e-2",
    "seed=0,1": "seed=0",
    "seed=0,1,2": "seed=0",
    "trainer.max_epochs=20": "trainer.max_epochs=2",
}
SMALL_STUDY = [
    "backbone.name=test_resnet",
    "dataset.image_size=64",
    "dataset.limit=16",
    "dataset.min_crop_size=8",
    "loader.batch_size=4",
    "loader.num_workers=0",
    "tracking.system_metrics=false",
    "task.fractions=[1]",
    "task.seeds=[0]",
    "task.steps=1",
    "task.pretraining_steps=1",
    "task.validations=1",
]


def key(word: str) -> str:
    return word.partition("=")[0]


def made_small(command: Sequence[str]) -> list[str]:
    """Return a command whose run or sweep takes seconds."""
    words = small([SMALLER.get(word, word) for word in command])
    kept, added = words[: len(command)], words[len(command) :]
    given = {key(word) for word in kept}
    if "run" in given:
        added = []
    elif "backbone" in given:
        given.add("backbone.name")
    if "task=export" in kept and "task.verify" not in given:
        added.append("task.formats=[onnx]")
    return [*kept, *(word for word in added if key(word) not in given)]


@pytest.mark.parametrize("page", BEFORE)
def test_the_commands_of_a_page_run(cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    monkeypatch.setattr("cvexp.tasks.benchmark.SECONDS", 0.2)
    for i in range(16):
        name = "R&D" if i % 2 else "ü <b>"  # of a class
        for path in (f"PATH/train/{name}/{i}.jpg", f"PATH/val/{name}/{i}.jpg", f"photos/{i}.jpg"):
            save_image(Path(path))
    for path in ("a.jpg", "cover.jpg", "mine.jpg", "scans/2026/a.tif"):
        save_image(Path(path))
    if BEFORE[page]:
        assert cvexp(*BEFORE[page]).code == 0
    run_id = ""
    for command in commands(page):
        if not run_id and Path("outputs").exists():
            run_id = runs()[0].info.run_id  # of the first command that recorded a run
        of_run = [word.replace("RUN_ID", run_id).replace("ID,ID,ID", run_id) for word in command]
        words = made_small(of_run)
        outcome = cvexp(*words)
        assert outcome.code == 0, (words, outcome.message)


def test_the_commands_of_the_page_on_studies_run(cvexp: Callable[..., Outcome], voc_animals: Path) -> None:
    for i in range(16):
        for split in ("train", "val"):
            save_image(Path(f"PATH/{split}/{i}.jpg"))
            save_mask(Path(f"PATH/masks/{split}/{i}.png"), i % 3, 1, 0, 2)
    own_masks, voc = commands("studies.md")
    own = [word for word in own_masks if key(word) != "task.hours"]  # which SMALL_STUDY replaces
    outcome = cvexp(*own, *SMALL_STUDY, "task.methods=[multiclass]")
    assert outcome.code == 0, outcome.message
    outcome = cvexp(*(word.replace("PATH", str(voc_animals)) for word in voc), *SMALL_STUDY, "task.methods=[attention]")
    assert outcome.code == 0, outcome.message
