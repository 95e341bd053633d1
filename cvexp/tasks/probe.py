"""`task=probe`: how well frozen features tell the classes apart, compared with controls that learned nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from cvexp import progress
from cvexp.config import DatasetConfig, RunConfig, TaskConfig
from cvexp.console import print_line
from cvexp.data.index import Splits
from cvexp.errors import UserError
from cvexp.inference.networks import choose_device
from cvexp.keys import choice, number
from cvexp.metrics.probe_results import Contrast, Probed, ProbeResults, constant_scores, score
from cvexp.metrics.probing import NonFiniteError, Predictions, ProbeSettings, probe
from cvexp.probing.dataset import choose_dataset, load
from cvexp.probing.earlier_use import describe_use, find_use
from cvexp.probing.features import compute_features, estimate_statistics
from cvexp.probing.networks import CONTROLS, Controls, FrozenNetwork, Subject, from_run, from_weights, make_controls
from cvexp.report import probe as report
from cvexp.tracking.data_record import record_data
from cvexp.tracking.description import given_keys
from cvexp.tracking.finished import FinishedRun, all_runs, find_runs
from cvexp.tracking.run import ReadOnlyRun
from cvexp.tracking.store import Store


@dataclass(kw_only=True)
class Config(TaskConfig):
    works_on: ClassVar[str | None] = "runs"

    checkpoint: str = choice("best", "last")
    eval_size: int | None = number(2, unit="pixels")
    knn_k: int = number(1)
    knn_bank: int = number(1)
    tuning_samples: int = number(10)
    controls: list[str] = choice(*CONTROLS)
    samples: int = number(100)
    confidence: float = number(above=0, below=1)


def main(config: RunConfig, run: ReadOnlyRun) -> None:
    """Record scores, intervals, pictures and predictions in `run`.

    Raises:
        UserError: if there is nothing to probe, the weights or the data can't be used, or the data have no labels.
    """
    task = config.task
    assert isinstance(task, Config)
    given = given_keys(run.tags()["command"])
    runs = choose_runs(run, config, given)
    dataset = choose_dataset(config, given, runs)
    splits = load(dataset)
    record_data(run, dataset.name, splits)
    if runs:
        subjects = [from_run(finished, task.checkpoint, task.eval_size) for finished in runs]
    else:
        subjects = [from_weights(config, run, task.eval_size)]
    _link(run, subjects)
    controls = make_controls(subjects, task.controls)
    networks = [*(subject.network for subject in subjects), *controls.networks]
    notes = [*_notes(config, dataset, splits, subjects, run.store), *controls.skipped]
    for note in notes:
        print_line(note, style="bold yellow")
    predictions, num_features = _predict(networks, splits, config)
    probed, contrasts = _evaluate(networks, controls, splits, predictions, num_features, task)
    scored = splits.scored
    results = ProbeResults(
        dataset=dataset.name,
        split=scored.split,
        classes=scored.classes,
        num_images=len(np.unique(scored.image)),
        num_objects=len(scored),
        num_training=len(splits.train),
        confidence=task.confidence,
        constant=constant_scores(splits.train.label.astype(np.int64), scored.label.astype(np.int64)),
        networks=probed,
        contrasts=contrasts,
        notes=notes,
    )
    report.print_results(results)
    report.log_results(run, results)
    report.log_predictions(run, results, scored, predictions)
    print_line(f"table, pictures and predictions: {run.artifacts}/probe")


def choose_runs(run: ReadOnlyRun, config: RunConfig, given: Collection[str]) -> list[FinishedRun]:
    """Return the pretraining runs that `runs` names, or else the newest one; none if `backbone.weights` is given.

    Raises:
        UserError: if there is no such run, or it is unclear what to probe.
    """
    if "backbone.weights" in given or (config.backbone.weights is not None and "experiment" in given):
        if config.runs is not None:
            raise UserError("runs: backbone.weights= is given, too; leave out one of them, as only one can be probed")
        return []
    if backbone := sorted(key for key in given if key.partition(".")[0] == "backbone"):
        raise UserError(
            f"{backbone[0]}: a pretraining run is probed with its own backbone; to probe another network, give its "
            "weights, too, with backbone.weights="
        )
    if config.runs is not None:
        named = {finished.id: finished for finished in find_runs(run.store, config, "role", "pretraining")}
        if not named:
            raise UserError("runs: got an empty list; name at least one run, or leave it out for the newest one")
        return list(named.values())
    newest = next((r for r in all_runs(run.store, config, "role", "pretraining") if r.is_readable()), None)
    if newest is None:
        raise UserError(
            "runs: there is no finished pretraining run; start one with python -m cvexp task=dino, name a store with "
            "tracking.folder= or MLFLOW_TRACKING_URI, or probe other weights with backbone.weights="
        )
    return [newest]


def _link(run: ReadOnlyRun, subjects: Sequence[Subject]) -> None:
    """Record the probed runs as tags: the first one for MLflow's search, and all of them for the report."""
    if ids := [subject.network.origin.run_id for subject in subjects if subject.network.origin.run_id is not None]:
        run.set_tag("of_run", ids[0])
        run.set_tag("of_runs", " ".join(ids))


def _notes(
    config: RunConfig, dataset: DatasetConfig, splits: Splits, subjects: Sequence[Subject], store: Store
) -> list[str]:
    """Say what the reader of the scores must know about the data."""
    task, scored = config.task, splits.scored
    assert isinstance(task, Config)
    origins = [subject.network.origin for subject in subjects]
    notes = [describe_use(scored, find_use(scored, origins, task.checkpoint, store, config))]
    if dataset.fraction < 1:
        notes.append(
            f"The probes are trained on a share of {dataset.fraction:g} of the training images, drawn with "
            f"dataset.fraction_seed={dataset.fraction_seed}."
        )
    if scored.catalog.members is not None:
        notes.append(
            "Shards do not record which crops come from the same image. Each crop counts as an image of its own, so "
            "the intervals may be too narrow."
        )
    return notes


def _predict(
    networks: Sequence[FrozenNetwork], splits: Splits, config: RunConfig
) -> tuple[list[Predictions], list[int]]:
    """Compute the features of both splits with all networks, and probe them.

    Returns:
        The predictions for the scored objects, and the lengths of the feature vectors.

    Raises:
        UserError: if features are not finite.
    """
    task, device, scored = config.task, choose_device(config.trainer), splits.scored
    assert isinstance(task, Config)
    for network in networks:
        network.module.to(device).to(memory_format=torch.channels_last).eval()
        if network.normalize is not None:
            network.normalize.to(device)
    print_line(
        f"{len(splits.train)} training and {len(scored)} {scored.split} crops, "
        f"{' and '.join(sorted({f'{network.eval_size} px' for network in networks}))}, {len(networks)} networks"
    )
    estimate_statistics(networks, splits.train, config.loader, device)
    features = [compute_features(networks, index, config.loader, device) for index in (splits.train, scored)]
    labels = torch.from_numpy(splits.train.label).long().to(device)
    settings = ProbeSettings(task.knn_k, task.knn_bank, task.tuning_samples)
    predictions = []
    images = splits.train.image.astype(np.int64)
    pairs = zip(networks, *features, strict=True)
    for network, train, test in progress.track(pairs, "training the classifiers", len(networks), "networks"):
        try:
            predictions.append(probe(train.to(device), labels, images, test.to(device), len(scored.classes), settings))
        except NonFiniteError as error:
            raise UserError(
                f"{network.name}: {error}, so the network can't be probed; its training has probably diverged"
            ) from error
    return predictions, [parts.shape[1] for parts in features[0]]


def _evaluate(
    networks: Sequence[FrozenNetwork],
    controls: Controls,
    splits: Splits,
    predictions: Sequence[Predictions],
    num_features: Sequence[int],
    task: Config,
) -> tuple[list[Probed], list[Contrast]]:
    """Score all networks, and compare the probed ones with their controls."""
    scored, names = splits.scored, [network.name for network in networks]
    pairs = [(name, control) for name, of_network in controls.names.items() for control in of_network]
    with progress.step("intervals from resampled images"):
        scores = score(
            predictions,
            scored.label.astype(np.int64),
            scored.image.astype(np.int64),
            [(names.index(name), names.index(control)) for name, control in pairs],
            task.samples,
            task.confidence,
        )
    probed = [
        Probed(
            name=network.name,
            is_control=network.name not in controls.names,
            **network.origin._asdict(),
            eval_size=network.eval_size,
            num_features=length,
            inverse_strength=predicted.inverse_strength,
            scores=estimates,
        )
        for network, length, predicted, estimates in zip(
            networks, num_features, predictions, scores.estimates, strict=True
        )
    ]
    contrasts = [
        Contrast(name, control, key, interval)
        for (name, control), intervals in zip(pairs, scores.contrasts, strict=True)
        for key, interval in intervals.items()
    ]
    return probed, contrasts
