"""The pages that teach the methods: their commands run, in small, and record what the pages name."""

import importlib.util
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import cvexp
from cvexp.composition import CONF
from cvexp.training.pretraining import PretrainingConfig
from cvexp.training.segmentation_config import SegmentationConfig
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, runs, save_image, save_mask, store

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ("first_steps.md", "pretraining.md", "segmenting.md", "course.md")
METRIC = re.compile(r"`((?:train|val|best|test)/\w+)")
ARTIFACT = re.compile(r"`((?:checkpoints|comparison|curves|neighbors|pictures)/[\w.-]+\.\w+)`")
KEY = re.compile(r"(?<![\w/.])((?:task|dataset|loader|trainer|optimizer|backbone|hydra\.sweeper)\.[a-z_]+)")

# In place of what a page leaves open, and of what can't be fetched here.
REPLACED = {
    "seed=0,1,2": "seed=0",
    "backbone.weights=timm": "backbone.weights=null",
    "dataset.password=...": "dataset.password=dl_lab",
}
SIMCLR = ["task.size=32", "task.hidden_dim=32"]
SHAPES = ["dataset.train_images=12", "dataset.val_images=10", "dataset.test_images=4"]


def commands(page: str) -> list[list[str]]:
    """Return the words of each command of a page, without `python -m cvexp`."""
    lines = (DOCS / page).read_text().replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[3:] for line in lines if re.match(" +python -m cvexp ", line)]


def single(words: list[str]) -> list[str]:
    """Return the first job of a sweep, or the command itself."""
    firsts = [word if "[" in word or "{" in word else word.partition(",")[0] for word in words]
    return [word for word in firsts if word != "-m"] if "-m" in words else words


def small(words: list[str]) -> list[str]:
    """Return a command with a small network, few images and a single step, if it trains."""
    words = [REPLACED.get(word, word) for word in words]
    config = cvexp.compose(*single(words))
    if isinstance(config.task, PretrainingConfig):
        tiny = TINY if config.task.name == "dino" else [*TINY, *SIMCLR]
        of_other_task = "" if config.task.name == "dino" else tuple(word for word in TINY if word.startswith("task."))
    elif isinstance(config.task, SegmentationConfig):
        tiny, of_other_task = TINY_SEGMENTATION, ""
    else:
        return words
    of_data = {"shapes": SHAPES, "course": ["dataset.limit=12"]}.get(config.dataset.name, [])
    # The weights that the course gives are not in its small copy; tests/weights/test_start.py makes such a file.
    own = ["backbone.weights=null"] if str(config.backbone.weights).endswith(".pth") else []
    left_out = (*of_other_task, "dataset.train", "dataset.val", "dataset.test", "trainer.max_epochs")
    return [*words, *(w for w in tiny if not w.startswith(left_out)), *of_data, *own, "trainer.max_steps=1"]


def pretraining() -> str:
    """Return the id of the newest pretraining run."""
    return next(str(run.info.run_id) for run in runs() if run.data.tags.get("role") == "pretraining")


def check_page(cvexp: Callable[..., Outcome], page: str) -> None:
    """Run the commands of a page, and see that they record the metrics and files that it names."""
    for command in commands(page):
        words = [word.replace("RUN_ID", pretraining()) if "RUN_ID" in word else word for word in command]
        outcome = cvexp(*small(words))
        assert outcome.code == 0, (words, outcome.message)
    text = (DOCS / page).read_text()
    recorded = [f"{name}/" for run in runs() for name in run.data.metrics]
    assert [name for name in METRIC.findall(text) if not any(r.startswith(f"{name}/") for r in recorded)] == []
    named = set(ARTIFACT.findall(text))
    folders = {path.partition("/")[0] for path in named}
    files = {file.path for run in runs() for f in folders for file in store().list_artifacts(run.info.run_id, f)}
    assert named - files == set()


def make_photographs(has_masks: bool) -> None:
    """Save pictures, and masks if there are to be some, in the places that the pages name."""
    for split in ("train", "val"):
        for i in range(16):
            save_image(Path(f"PATH/{split}/ä & {i}.jpg"), size=(48, 40))
            if has_masks:
                save_mask(Path(f"PATH/masks/{split}/ä & {i}.png"), i % 3, 1, 0, 2)
    for i in range(24):
        save_image(Path(f"photos/{'cat' if i % 2 else 'a <dog>'}/{i}.jpg"), size=(64, 48))
    save_image(Path("mine.jpg"))


@pytest.mark.slow
@pytest.mark.parametrize("page", ["first_steps.md", "pretraining.md", "segmenting.md"])
def test_the_commands_run_and_record_what_the_page_names(cvexp: Callable[..., Outcome], page: str) -> None:
    make_photographs(has_masks=page != "pretraining.md")  # which pretrains on all files of a folder
    check_page(cvexp, page)


@pytest.mark.slow
def test_the_commands_of_the_course_run(cvexp: Callable[..., Outcome], course: Path) -> None:
    Path("PATH").symlink_to(course)
    check_page(cvexp, "course.md")


@pytest.mark.parametrize("page", PAGES)
def test_the_keys_of_a_page_exist(page: str) -> None:
    known = {key for path in CONF.rglob("*.yaml") for key in yaml.safe_load(path.read_text()) or {}}
    named = set(KEY.findall((DOCS / page).read_text()))
    assert len(named) > 5
    assert {key for key in named if key.rpartition(".")[2] not in known} == set()


def test_the_pictures_of_the_pages_are_made_by_the_script_and_small() -> None:
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "experiments" / "pictures.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    shown = {name for page in PAGES for name in re.findall(r"\]\((\w+)\.png\)", (DOCS / page).read_text())}
    assert len(shown) > 6
    assert shown - set(script.PICTURES) == set()
    for name in script.PICTURES:
        assert 5_000 < (DOCS / f"{name}.png").stat().st_size <= script.LARGEST
