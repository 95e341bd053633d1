"""Which share of the labels is probed on, and which runs differ only in the seed."""

from types import SimpleNamespace
from typing import Any

from cvexp.composition import compose
from cvexp.probing.dataset import choose_dataset
from cvexp.probing.networks import BESIDES_SEED
from cvexp.tracking.description import digest, given_keys


def pretrained(*overrides: str) -> Any:
    return SimpleNamespace(id="1", config=compose("task=dino", *overrides))


def test_the_share_of_the_labels_follows_the_probe_and_not_the_order_of_the_runs() -> None:
    runs = [pretrained(f"seed={seed}", "dataset.fraction=0.5") for seed in (1, 2)]

    def seed(*overrides: str, order: int = 1) -> int:
        given = given_keys(" ".join(overrides))
        return choose_dataset(compose("task=probe", *overrides), given, runs[::order]).fraction_seed

    for order in (1, -1):
        assert seed("seed=7", order=order) == 7
        assert seed("dataset.fraction=0.2", order=order) == 0
        assert seed("dataset.fraction=0.2", "dataset.fraction_seed=4", order=order) == 4
    assert seed() == 1


def test_runs_with_other_settings_are_no_seeds() -> None:
    first = digest(compose("task=dino", "seed=0", "name=a"), BESIDES_SEED)
    other_folders = ["tracking.folder=elsewhere", "dataset.cache=there"]
    assert digest(compose("task=dino", "seed=1", "name=b", *other_folders), BESIDES_SEED) == first
    assert digest(compose("task=dino", "seed=1", "optimizer.lr=0.1"), BESIDES_SEED) != first
    assert digest(compose("task=dino", "seed=1", "trainer.max_epochs=3"), BESIDES_SEED) != first
