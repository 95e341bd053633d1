import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cvexp.composition import compose
from cvexp.errors import UserError
from cvexp.models.arguments import Needs
from cvexp.models.backbone import create_backbone
from cvexp.tasks.dino import DINO
from cvexp.weights.backbone import choose_arguments
from cvexp.weights.start import Start
from tests.helpers import TINY, Outcome, assert_equal_runs, histories, interrupted_at, runs

LONGER = ["dataset.train_images=24", "trainer.max_epochs=3"]
COLLAPSES = {
    "nothing centers": (
        ["task.center_momentum=1", "task.teacher_momentum=0.9", "optimizer.lr=0.01"],  # soon
        "gives all images the same output",
    ),
    "nothing sharpens": (["task.warmup_teacher_temperature=1", "task.teacher_temperature=1"], "output is uniform"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COLLAPSES)
def test_a_run_that_collapses_warns(name: str, cvexp: Callable[..., Outcome]) -> None:
    overrides, words = COLLAPSES[name]
    outcome = cvexp(*TINY, *LONGER, *overrides)
    assert outcome.code == 0
    assert "warning, step" in outcome.message
    assert words in " ".join(outcome.message.split())  # of lines that may be wrapped
    assert words in runs()[0].data.tags["warning"]


@pytest.mark.slow
def test_the_warning_of_a_run_that_recovers_does_not_stay(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    remaining = iter([["all is one"], []])
    monkeypatch.setattr("cvexp.metrics.collapse.feature_warnings", lambda *_: next(remaining))
    monkeypatch.setattr("cvexp.metrics.collapse.teacher_warnings", lambda *_: [])
    outcome = cvexp(*TINY)
    assert outcome.code == 0
    assert outcome.message.count("all is one") == 1
    assert runs()[0].data.tags["warning"] == ""


@pytest.mark.slow
def test_a_run_that_does_not_collapse_does_not_warn(cvexp: Callable[..., Outcome]) -> None:
    outcome = cvexp(*TINY, *LONGER)
    assert outcome.code == 0
    assert "collapse" not in outcome.message
    assert "warning" not in runs()[0].data.tags


ONE_SIZE = ["backbone.name=convit_tiny", *(f"+backbone.args.{a}" for a in ("embed_dim=24", "depth=2", "num_heads=2"))]
FITTED = [argument for argument in TINY if not argument.startswith(("backbone.", "task.local_size"))]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["backbone=resnet18"], 48),
        (["backbone=resnet_mini", "task.global_size=64"], 32),
        (["backbone=resnet_mini", "task.global_size=64", "task.local_size=40"], 40),
        (["backbone=resnet_mini", "task.global_size=3"], 2),
        (ONE_SIZE, 96),
        ([*ONE_SIZE, "task.global_size=64"], 64),
        ([*ONE_SIZE, "task.local_crops=0"], None),
    ],
)
def test_local_views_have_half_the_size_of_global_ones_where_the_backbone_takes_both(
    overrides: list[str], expected: int | None
) -> None:
    """And trying them changes no random number: the weights are those of the seed."""
    config = compose(*overrides)
    torch.manual_seed(0)
    backbone, sizes = DINO.build_backbone(config, Start())
    assert sizes.get("task.local_size") == expected
    arguments = choose_arguments(config.backbone, Needs(sizes))
    torch.manual_seed(0)
    plain = create_backbone(config.backbone.name, **arguments).state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize(
    ("override", "sizes"), [("task.local_size=48", "96 and 48"), ("task.eval_size=112", "96 and 112 and 48")]
)
def test_sizes_that_are_set_are_refused_where_the_backbone_can_not_take_them(override: str, sizes: str) -> None:
    words = rf"can't take images of {sizes} px .*it can with task.global_size=\d+ task"
    with pytest.raises(UserError, match=words):
        DINO.build_backbone(compose(*ONE_SIZE, override), Start())


@pytest.mark.slow
def test_a_backbone_of_two_sizes_trains_as_with_the_half_size_set(cvexp: Callable[..., Outcome]) -> None:
    for overrides in ([], ["task.local_size=16"]):
        outcome = cvexp(*FITTED, "backbone.name=test_resnet", *overrides, "trainer.max_epochs=1")
        assert outcome.code == 0, outcome.message
        assert "local views" not in outcome.message
    default, explicit = (histories(Path("outputs"), run) for run in runs())
    assert default == explicit


@pytest.mark.slow
def test_a_backbone_of_one_size_trains_goes_on_and_is_used_with_equal_views(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*FITTED, *ONE_SIZE, "dataset.root=data"]
    outcome = cvexp(*arguments, "tracking.folder=undisturbed")
    assert outcome.code == 0, outcome.message
    assert outcome.message.count("local views: 32 px, as convit_tiny can't take 16 px") == 1
    interrupted_at(2, signal.SIGTERM, DINO, cvexp, monkeypatch, arguments)
    outcome = cvexp("tracking.folder=interrupted", f"resume={runs(Path('interrupted'))[0].info.run_id}")
    assert outcome.code == 0, outcome.message
    assert_equal_runs(Path("undisturbed"), Path("interrupted"))
    Image.fromarray(np.zeros((40, 40, 3), dtype=np.uint8)).save("mine.png")
    mine = ["tracking.folder=undisturbed", "task.images=[mine.png]", "trainer.accelerator=cpu"]
    outcome = cvexp("task=neighbors", *mine)
    assert outcome.code == 0, outcome.message
    assert "local views" not in outcome.message
