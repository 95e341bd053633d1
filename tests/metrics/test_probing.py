"""Probes find what is in the features, and nothing in noise; the bootstrap draws whole images."""

import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from cvexp.metrics.probe_results import SCORES, Estimate, Probed, ProbeResults, constant_scores, score
from cvexp.metrics.probing import NonFiniteError, Predictions, ProbeSettings, bootstrap, probe, stratified_subset
from tests.metrics.test_logistic import blobs


def test_separable_classes_are_recognized_also_those_with_one_sample() -> None:
    features, labels = blobs(200, 16, 4, spread=3)
    train = torch.cat([torch.arange(120)[labels[:120] < 3], torch.tensor([123])])  # one sample of class 3
    predictions = probe(features[train], labels[train], np.arange(len(train)), features[160:], 4)
    is_common = labels[160:].numpy() < 3
    assert (predictions.linear == labels[160:].numpy())[is_common].mean() > 0.9
    assert predictions.knn.shape == (40,)
    # One sample of each class, and none of the last.
    single = probe(features[:4], labels[:4], np.arange(4), features[160:], 5)
    assert single.inverse_strength == 1.0
    assert accuracy_score(labels[160:], single.linear) > 0.5


def test_noise_gives_chance() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(900, 30, generator=random)
    labels = torch.randint(3, (900,), generator=random)
    predictions = probe(features[:600], labels[:600], np.arange(600), features[600:], 3)
    found = score([predictions], labels[600:].numpy(), np.arange(300), [], 500, 0.95)
    for name in SCORES:
        estimate = found.estimates[0][name]
        assert estimate.low <= 1 / 3 <= estimate.high, name


def test_features_that_are_not_finite_are_refused() -> None:
    features, labels = blobs(20, 3, 2, spread=1)
    features[3, 1] = torch.nan
    with pytest.raises(NonFiniteError):
        probe(features, labels, np.arange(20), features[:2], 2)


def test_copies_of_a_crop_in_its_image_do_not_weaken_the_penalty() -> None:
    """With random labels, only copies of a training crop can be recognized, and that with a weak penalty."""
    random = torch.Generator().manual_seed(0)
    features = torch.randn(60, 100, generator=random).repeat_interleave(4, 0)
    labels = (torch.rand(60, generator=random) < 0.3).long().repeat_interleave(4)
    together = probe(features, labels, np.repeat(np.arange(60), 4), features, 2)
    apart = probe(features, labels, np.arange(240), features, 2)
    assert together.inverse_strength < apart.inverse_strength


def test_a_subset_is_stratified_and_keeps_rare_classes() -> None:
    labels = np.repeat([0, 3, 1], [600, 399, 1])
    np.random.default_rng(0).shuffle(labels)
    chosen = stratified_subset(labels, 100)
    assert np.bincount(labels[chosen]).tolist() in ([60, 1, 0, 39], [59, 1, 0, 40])
    assert np.array_equal(chosen, np.unique(chosen))
    assert stratified_subset(labels, 5000).tolist() == list(range(1000))
    features, settings = torch.randn(1000, 4), ProbeSettings(tuning_samples=10)
    probe(features, torch.from_numpy(labels), np.arange(1000), features[:3], 4, settings)


def test_the_bootstrap_needs_memory_for_the_objects_alone() -> None:
    labels = np.arange(5000)  # a matrix of images and classes would have 25 million entries
    tracemalloc.start()
    scores = bootstrap(labels[None], labels, labels, 10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert scores.values.tolist() == [[1.0, 1.0]]
    assert peak < 50e6


def test_scores_equal_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    labels = random.choice([0, 1, 4], 200)  # classes 2 and 3 are absent
    predicted = np.where(random.random(200) < 0.6, labels, random.integers(0, 5, 200))
    values = bootstrap(predicted[None], labels, np.arange(200), 100).values[0]
    recalls = [(predicted[labels == label] == label).mean() for label in (0, 1, 4)]
    assert values == pytest.approx([accuracy_score(labels, predicted), np.mean(recalls)])
    present = np.where(np.isin(predicted, labels), predicted, 0)
    values = bootstrap(present[None], labels, np.arange(200), 100).values[0]
    assert values[1] == pytest.approx(balanced_accuracy_score(labels, present))


def test_the_bootstrap_draws_images_and_not_objects() -> None:
    """Copies of an object within its image do not narrow the interval; copies as images of their own do."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 60)
    predicted = np.where(random.random(60) < 0.7, labels, 1 - labels)
    copies = np.repeat(np.arange(60), 9)
    few = bootstrap(predicted[None], labels, np.arange(60), 500).samples[:, 0, 0]
    same = bootstrap(predicted[copies][None], labels[copies], copies, 500).samples[:, 0, 0]
    more = bootstrap(predicted[copies][None], labels[copies], np.arange(540), 500).samples[:, 0, 0]
    assert same == pytest.approx(few)
    assert more.std() == pytest.approx(few.std() / 3, rel=0.15)


def test_a_network_does_not_differ_from_itself_and_differences_are_paired() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 100)
    worse = np.where(np.arange(100) < 50, labels, (labels + 1) % 3)
    better = np.where(np.arange(100) < 60, labels, (labels + 1) % 3)
    networks = [Predictions(better, better, 1.0), Predictions(worse, worse, 1.0)]
    found = score(networks, labels, np.arange(100), [(0, 0), (0, 1)], 500, 0.95)
    same, other = (contrast["linear_top1"] for contrast in found.contrasts)
    assert same == (0, 0, 0)
    assert other.difference == pytest.approx(0.1)
    assert 0.03 < other.low < 0.1 < other.high < 0.17  # narrower than the intervals of the accuracies, 0.4 to 0.7
    assert found.estimates[0]["linear_top1"].low < 0.55


def test_constant_scores() -> None:
    train, labels = np.array([2, 2, 1]), np.array([0, 1, 2, 2])
    assert constant_scores(train, labels) == {"top1": 0.5, "mean_recall": pytest.approx(1 / 3)}
    assert constant_scores(train, labels[:2]) == {"top1": 0.0, "mean_recall": 0.0}


def test_networks_that_differ_only_in_the_seed_are_groups() -> None:
    def network(method: str, seed: int | None, value: float, is_control: bool = False, settings: str = "") -> Probed:
        scores, name = dict.fromkeys(SCORES, Estimate(value, value, value)), f"{method} {seed}{settings}"
        return Probed(name, is_control, method, "random", "resnet18", 96, seed, None, 4, 1.0, scores, settings)

    networks = [network("dino", 0, 0.5), network("dino", 1, 0.7), network("simclr", 0, 0.9)]
    networks += [network("untrained", 0, 0.1, True), network("untrained", 1, 0.3, True), network("timm", None, 1, True)]
    results = ProbeResults("shapes", "val", ["a"], 1, 1, 1, 0.95, {}, networks, [], [])
    dino, untrained = results.groups()
    assert (dino.members, untrained.members) == (["dino 0", "dino 1"], ["untrained 0", "untrained 1"])
    assert dino.means["knn_top1"] == pytest.approx(0.6)
    assert dino.deviations["knn_top1"] == pytest.approx(np.std([0.5, 0.7], ddof=1))

    networks += [network("simclr", 1, 0.8, settings="lr"), network("dino", 2, 0.1, settings="lr")]
    assert ProbeResults("shapes", "val", ["a"], 1, 1, 1, 0.95, {}, networks, [], []).groups() == [dino, untrained]
    networks += [network("dino", 3, 0.1, settings="lr")]
    groups = ProbeResults("shapes", "val", ["a"], 1, 1, 1, 0.95, {}, networks, [], []).groups()
    assert [group.name for group in groups] == [
        "dino from random, 2 seeds (with dino 0)",
        "untrained from random, 2 seeds",
        "dino from random, 2 seeds (with dino 2lr)",
    ]
