"""Whether the scored images were used before is found by the files that runs recorded."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cvexp.composition import compose
from cvexp.data import load
from cvexp.data.index import Index, Splits
from cvexp.errors import UserError
from cvexp.probing.earlier_use import describe_use, find_use
from cvexp.probing.networks import RANDOM, TIMM, Origin
from tests.helpers import dataset, save_image


class FakeStore:
    """A store of runs that recorded their data, and from which run they started."""

    def __init__(self) -> None:
        self.runs: dict[str, Any] = {}
        self.files: dict[str, dict[str, dict[str, str]]] = {}

    def add(self, run_id: str, splits: Splits, monitor: str = "last", **tags: str) -> None:
        fingerprints = {f"data.{index.split}.fingerprint": index.fingerprint() for index in splits}
        data = SimpleNamespace(tags=fingerprints | tags, params={"task.monitor": monitor}, metrics={})
        info = SimpleNamespace(run_id=run_id, run_name=run_id, start_time=0)
        self.runs[run_id] = SimpleNamespace(info=info, data=data, inputs=None)
        self.files[run_id] = {index.split: index.file_digests() for index in splits}

    def run(self, run_id: str, _: str) -> Any:
        return get(self.runs, run_id)

    def read(self, run_id: str, *_: object) -> Any:
        return get(self.files, run_id)


def get(items: dict[str, Any], key: str) -> Any:
    if key not in items:
        raise UserError(f"there is no {key}")
    return items[key]


def describe(store: FakeStore, scored: Index, *origins: Origin, checkpoint: str = "best") -> str:
    use = find_use(scored, origins, checkpoint, store, compose("task=probe"))  # type: ignore[arg-type]
    return describe_use(scored, use)


def origin(run_id: str | None, method: str = "dino") -> Origin:
    return Origin(method, "", "resnet18", None, run_id, "")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        for i in range(20):
            save_image(tmp_path / "data" / "all" / name / f"{i}.png")
    return tmp_path / "data"


def splits_of(root: Path, val_fraction: float = 0.3, **keys: object) -> Splits:
    settings = dataset("folder", root, train_images="all", val_images=None, val_fraction=val_fraction, **keys)
    return load(settings, "pretraining")


def names(index: Index) -> set[str]:
    return {index.catalog.file(image) for image in index.images.tolist()}


def test_a_test_split_drawn_after_the_training_is_not_untouched(root: Path) -> None:
    before, after = splits_of(root), splits_of(root, test_fraction=0.4)
    store = FakeStore()
    store.add("1", before)
    trained, validated = (len(names(after.scored) & names(index)) for index in before)
    assert trained
    assert validated
    assert describe(store, after.scored, origin("1")) == (
        f"The test split is scored, but the probed networks were trained on {trained} and validated on {validated} of "
        f"its {trained + validated} images; this may favor them over their controls."
    )
    root.rename(root.with_name("moved"))
    moved = root.with_name("moved")
    assert f"were trained on {trained}" in describe(store, splits_of(moved, test_fraction=0.4).scored, origin("1"))
    larger = splits_of(moved, val_fraction=0.6).scored
    assert "but the probed networks were trained on" in describe(store, larger, origin("1"), origin(None, TIMM))


def test_an_untouched_test_split_is_called_so(root: Path, tmp_path: Path) -> None:
    after = splits_of(root, test_fraction=0.4)
    store = FakeStore()
    store.add("1", after)
    number = len(after.scored.images)
    clean = f"The test split is scored. Nothing was chosen on its {number} images."
    assert describe(store, after.scored, origin("1"), origin(None, RANDOM)) == clean
    limited = splits_of(root, test_fraction=0.4, limit=3).scored
    assert describe(store, limited, origin("1")).endswith("Nothing was chosen on its 3 images.")
    del store.files["1"]  # as in a run of an older version
    assert describe(store, after.scored, origin("1")) == clean
    assert "It is not recorded whether" in describe(store, limited, origin("1"))
    for i in range(20):
        save_image(tmp_path / "other" / "all" / f"{i}.png", seed=i)
    store.add("2", splits_of(tmp_path / "other"))
    assert describe(store, after.scored, origin("2")) == clean


def test_runs_that_a_run_started_from_count_and_unknown_weights_may_count(root: Path) -> None:
    before, after = splits_of(root), splits_of(root, test_fraction=0.4)
    store = FakeStore()
    store.add("1", before)
    store.add("2", after, start="dino", weights_from="1")
    store.add("3", after, start="dino", weights_from="deleted")
    store.add("4", after, start="file")
    assert "were trained on" in describe(store, after.scored, origin("2"))
    for unknown in (origin("3"), origin("4"), origin(None)):
        assert describe(store, after.scored, unknown).startswith(
            "The test split is scored. It is not recorded whether its images were also used to train the probed "
            "networks or to choose the checkpoint"
        )


def test_validation_images_count_only_if_they_chose_the_checkpoint(root: Path) -> None:
    splits = splits_of(root)
    store = FakeStore()
    store.add("last", splits)
    store.add("loss", splits, monitor="val/loss")
    plain = "There is no test split, so the validation split is scored."
    assert describe(store, splits.scored, origin("last")) == plain
    assert describe(store, splits.scored, origin("loss"), checkpoint="last") == plain
    assert "whose images also chose the checkpoint" in describe(store, splits.scored, origin("last"), origin("loss"))
    limited = splits_of(root, limit=3).scored
    assert "whose images also chose the checkpoint" in describe(store, limited, origin("loss"))
