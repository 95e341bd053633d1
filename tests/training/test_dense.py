"""Pictures of feature maps: in runs of several methods and backbones, after an interruption, and read back."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from cvexp.errors import UserError
from cvexp.report.dense import DenseRecord, read_record
from cvexp.tracking.store import Store
from tests.helpers import TINY, Outcome, assert_equal_runs, checkpoint, histories, interrupted_at, runs, store

pytestmark = pytest.mark.slow  # these tests train

VIT = ["backbone.name=test_vit"]
FIXED = [*VIT, "+backbone.args.img_size=32", "+backbone.args.dynamic_img_size=false", "task.local_size=32"]
SIMCLR = [
    "task=simclr",
    *[setting for setting in TINY if not setting.startswith("task.")],
    "task.size=32",
    "task.hidden_dim=32",
    "task.out_dim=16",
]


def artifacts(folder: Path = Path("outputs")) -> Path:
    return Path(urlparse(runs(folder)[0].info.artifact_uri).path)


def pictures(folder: Path, key: str) -> dict[int, NDArray[np.uint8]]:
    """Return the pictures of a run by step."""
    paths = [path for path in (artifacts(folder) / "images").glob(f"{key}+*.png") if "compressed" not in path.name]
    return {int(path.name.split("+")[2]): np.asarray(Image.open(path)) for path in paths}


def record(epoch: int) -> DenseRecord:
    return read_record(Store(store(), "cvexp"), runs()[0].info.run_id, epoch)


@pytest.mark.parametrize(
    ("settings", "positions", "channels", "num_heads"),
    [
        (TINY, 14, 48, 0),
        ([*TINY, *VIT], 10, 64, 2),
        ([*TINY, *FIXED], 2, 64, 2),
        ([*SIMCLR, *VIT], 10, 64, 2),
    ],
)
def test_maps_of_each_epoch_are_pictured_and_recorded(
    cvexp: Callable[..., Outcome], settings: list[str], positions: int, channels: int, num_heads: int
) -> None:
    outcome = cvexp(*settings, "task.dense_images=3")
    assert outcome.code == 0, outcome.message
    assert len(pictures(Path("outputs"), "dense")) == 3
    assert len(pictures(Path("outputs"), "class_attention")) == (3 if num_heads else 0)
    for epoch in (0, 1, 2):
        recorded = record(epoch)
        assert recorded.scores.shape == (3, positions, positions, 32)
        assert recorded.components.shape == (32, channels)
        assert recorded.attention.shape == (3, num_heads, positions, positions)
        assert recorded.maps().std() == pytest.approx(1, abs=0.1)
    assert cvexp("task=report").code == 0
    page = Path("outputs/report.html").read_text()
    assert "fitted once to the images of all these epochs" in page
    assert ("Attention of the class token" in page) == bool(num_heads)


def test_none_are_drawn_if_none_are_wanted(cvexp: Callable[..., Outcome]) -> None:
    assert cvexp(*TINY, "trainer.max_steps=1", "task.dense_images=0").code == 0
    assert not (artifacts() / "dense").exists()
    assert cvexp("task=report").code == 0
    assert "feature maps of" not in Path("outputs/report.html").read_text().lower()
    assert "task.dense_images: got 25" in cvexp(*TINY, "task.dense_images=25").message


def test_training_is_the_same_with_and_without_pictures(cvexp: Callable[..., Outcome]) -> None:
    for folder, number in (("with", 2), ("without", 0)):
        arguments = [f"tracking.folder={folder}", f"task.dense_images={number}", "dataset.root=data"]
        assert cvexp(*TINY, *arguments).code == 0
    first, second = runs(Path("with"))[0], runs(Path("without"))[0]
    assert histories(Path("with"), first) == histories(Path("without"), second)
    assert all((value == checkpoint(second)[key]).all() for key, value in checkpoint(first).items())


def test_a_resumed_run_has_the_same_pictures(cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    from cvexp.tasks.dino import DINO

    arguments = [*TINY, "dataset.root=data", "task.dense_images=2"]
    assert cvexp(*arguments, "tracking.folder=undisturbed").code == 0
    interrupted_at(6, signal.SIGTERM, DINO, cvexp, monkeypatch, arguments)
    assert cvexp("tracking.folder=interrupted", f"resume={runs(Path('interrupted'))[0].info.run_id}").code == 0
    assert_equal_runs(Path("undisturbed"), Path("interrupted"))
    expected, got = (pictures(Path(folder), "dense") for folder in ("undisturbed", "interrupted"))
    assert sorted(expected) == sorted(got) == [0, 4, 8]
    assert all(np.array_equal(expected[step], got[step]) for step in expected)


def test_a_damaged_record_is_refused(cvexp: Callable[..., Outcome]) -> None:
    assert cvexp(*TINY, "trainer.max_steps=1", "task.dense_images=2").code == 0
    path = artifacts() / "dense/epoch-0000.npz"
    arrays = record(0)._asdict()
    for changes, words in (
        ({"scores": arrays["scores"][:1]}, "do not fit together"),
        ({"components": arrays["components"][:2]}, "do not fit together"),
        ({"images": arrays["images"][:, :0]}, "do not fit together"),
        ({"scores": arrays["scores"].astype(np.float32)}, "unexpected types"),
        ({"scores": np.full_like(arrays["scores"], np.inf)}, "not finite"),
        ({"scores": np.array([print], dtype=object)}, "allow_pickle=False"),
        ({"scores": np.zeros((2, 1000, 1000, 32), np.float16)}, "the limit is"),
    ):
        np.savez_compressed(path, **{**arrays, **changes})
        with pytest.raises(UserError, match=f"epoch-0000.npz is damaged.*{words}"):
            record(0)


def test_a_picture_that_can_not_be_drawn_does_not_end_a_run(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Figure:
        raise ValueError("it returns no feature maps")

    monkeypatch.setattr("cvexp.training.dense.choose_view", refuse)
    outcome = cvexp(*TINY, "trainer.max_steps=1")
    assert outcome.code == 0
    assert outcome.message.count("no pictures of dense features") == 1
