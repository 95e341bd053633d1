"""The examples of docs/models.md, on photographs."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, code_blocks, runs

pytestmark = pytest.mark.slow  # these tests train

PAGE = Path(__file__).parents[1] / "docs" / "models.md"


@pytest.fixture
def trained(cvexp: Callable[..., Outcome], coco_mini: Path) -> dict[str, str]:
    """Photographs, two of them with a longer side of 3000 px, and the id of a run of each method by its name."""
    photographs = sorted((coco_mini / "val2017").glob("*.jpg"))[:5]
    for name, photograph in zip(("photo", "a", "b", "photos/deep/c", "more/1"), photographs, strict=True):
        path = Path(f"{name}.jpg" if name != "more/1" else "more/1.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(photograph) as image:
            scale = 3000 / max(image.size) if name in ("photo", "photos/deep/c") else 1
            image.resize((round(image.width * scale), round(image.height * scale))).save(path)
    Path("scenes").mkdir()
    Path("scenes/c.jpg").write_bytes(Path("photos/deep/c.jpg").read_bytes())
    ids = {}
    for task, settings in (
        ("dino", TINY),
        ("multiclass", [*TINY_SEGMENTATION, "task=multiclass"]),
        ("attention", [*TINY_SEGMENTATION, "task=attention", "dataset.classes=[star,disk,square]"]),
    ):
        quick = ["trainer.max_epochs=1", "trainer.max_steps=1"]
        own = [setting for setting in settings if not setting.startswith("trainer.max_epochs")]
        outcome = cvexp(*own, *quick)
        assert outcome.code == 0, outcome.message
        ids[task] = str(runs()[0].info.run_id)
    return ids


def test_the_python_examples_run(trained: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    segmenting, embedding = code_blocks("models.md", "python")
    assert max(map(len, (segmenting.splitlines(), embedding.splitlines()))) <= 10
    exec(segmenting.replace('"RUN_ID"', repr(trained["multiclass"])), {})
    with Image.open("photo.jpg") as photo, Image.open("mask.png") as mask:
        assert mask.size == photo.size
        assert max(photo.size) == 3000
        assert str((photo.height, photo.width)) in capsys.readouterr().out
    exec(embedding.replace("PRETRAINING_RUN_ID", trained["dino"]), {})
    assert "cosine similarity: " in capsys.readouterr().out


def test_the_commands_of_task_predict_run(cvexp: Callable[..., Outcome], trained: dict[str, str]) -> None:
    commands = [line.partition(" #")[0] for line in PAGE.read_text().splitlines() if line.startswith("    python -m")]
    assert len(commands) == 4
    for number, command in enumerate(commands):
        changed = command.replace("RUN_ID", trained["multiclass"]).replace("[cat]", "[star]")
        words = shlex.split(changed)[3:]
        if not any(word.startswith("task.out") for word in words):
            words.append(f"task.out=results-{number}")
        outcome = cvexp(*words)
        assert outcome.code == 0, outcome.message
    written = {path.parent.name: json.loads(path.read_text()) for path in Path().glob("results*/predictions.json")}
    sizes = {name: [(image["width"], image["height"]) for image in out["images"]] for name, out in written.items()}
    assert [len(sizes[name]) for name in ("results-0", "results", "results-2", "results-3")] == [1, 2, 1, 1]
    assert max(sizes["results-3"][0]) == 3000
    (scene,) = written["results-3"]["images"]
    assert scene["num_tiles"] > 100
    assert np.array(Image.open(f"results-3/{scene['mask']}")).shape == sizes["results-3"][0][::-1]
