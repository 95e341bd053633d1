"""`task=compare`: finished segmentation runs, evaluated with the same code on the same images."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any, ClassVar

from matplotlib.figure import Figure

from cvexp import data, progress
from cvexp.config import RunConfig, TaskConfig, flatten
from cvexp.console import print_line
from cvexp.data.disjoint import NAMES
from cvexp.data.index import Index
from cvexp.data.masks import LabeledSquares, evaluated_areas
from cvexp.errors import UserError
from cvexp.inference.networks import choose_device, load_segmenter
from cvexp.inference.segmenter import Segmenter
from cvexp.keys import number
from cvexp.metrics import iou
from cvexp.metrics.comparison import Comparison, Evaluated, differences
from cvexp.metrics.ranking import best_median_worst
from cvexp.report import comparison as report
from cvexp.report import segmentation as pictures
from cvexp.report.style import drawable
from cvexp.tracking.data_record import record_data
from cvexp.tracking.finished import FinishedRun, all_runs, find_runs, newest_runs
from cvexp.tracking.run import ReadOnlyRun
from cvexp.tracking.store import Store

MAX_CANDIDATES = 100  # runs from which the compared ones are chosen by default; fetching one takes a few milliseconds
NUM_WARM_UP = 3  # images that are not timed

# Runs may differ in these settings without a warning: they are compared, or do not affect the measurements.
MAY_DIFFER = (
    *("task.name", "backbone.weights", "seed", "name", "resume", "run", "tracking.", "loader.num"),
    *(f"dataset.{key}" for key in ("root", "cache", "download", "password", "fraction_seed")),
)


@dataclass(kw_only=True)
class Config(TaskConfig):
    works_on: ClassVar[str | None] = "runs"

    samples: int = number(100)
    confidence: float = number(above=0, below=1)
    timed_images: int = number(1)
    pictured_images: int = number(1)


def main(config: RunConfig, run: ReadOnlyRun) -> None:
    """Record tables, intervals, the underlying counts, and pictures in `run`.

    Raises:
        UserError: if there are fewer than two runs to compare, or they can't be compared.
    """
    task = config.task
    assert isinstance(task, Config)
    runs = choose(run, config)
    for warning in differing_settings(runs):
        print_line(f"warning: the runs differ in {warning}", style="bold yellow")
    settings = runs[0].config
    splits = data.load(settings.dataset, "segmentation", needs_training=False)
    scored = splits.scored
    if scored.fingerprint() != runs[0].tags[f"data.{scored.split}.fingerprint"]:
        raise UserError(
            f"dataset: the {NAMES[scored.split]} images or labels in {scored.place} have changed since the run "
            f"{runs[0].id}; restore the old ones, or train again"
        )
    record_data(run, settings.dataset.name, splits)
    on = choose_device(config.trainer)
    segmenters = {finished.id: load_segmenter(finished, on) for finished in runs}
    times = time_images(segmenters, scored, settings.dataset.image_size, task.timed_images)
    evaluated = [_evaluate(finished, segmenters[finished.id], scored, times[finished.id]) for finished in runs]
    with progress.step("intervals from resampled images"):
        compared = differences(evaluated, task.samples, task.confidence)
    comparison = Comparison(
        classes=scored.classes,
        images=[scored.catalog.file(int(image)) for image in scored.images],
        evaluated=evaluated,
        differences=compared,
        confidence=task.confidence,
        split=scored.split,
        has_background=settings.dataset.has_background,
    )
    report.print_comparison(comparison)
    report.log_comparison(run, comparison)
    size = settings.dataset.image_size
    with progress.step("drawing the pictures"):
        for name, figure in draw(segmenters, comparison, scored, size, task.pictured_images).items():
            run.log_figure(figure, f"comparison/{name}.png")
    print_line(f"tables, counts and pictures: {run.artifacts}/comparison")


def _evaluate(finished: FinishedRun, segmenter: Segmenter, scored: Index, times: list[float]) -> Evaluated:
    """Score a run on the images of a split, and print its mIoU."""
    evaluated = Evaluated(
        run_id=finished.id,
        method=finished.task,
        start=finished.start,
        seed=finished.seed,
        counts=segmenter.evaluate(scored),
        times=times,
        num_parameters=sum(parameter.numel() for parameter in segmenter.model.parameters()),
    )
    miou, trained = evaluated.miou, finished.metrics["best/miou"]  # on the validation images
    print_line(f"{finished.id}  {finished.name}  from {finished.start}  seed {finished.seed}  mIoU {miou:.4f}")
    if scored.split == "val" and abs(trained - miou) > 1e-3:
        print_line(
            f"warning: training measured {trained:.4f}, perhaps on another device, or with other versions",
            style="bold yellow",
        )
    return evaluated


def choose(run: ReadOnlyRun, config: RunConfig) -> list[FinishedRun]:
    """Return the runs that `runs` names, or else the newest run and all that can be compared with it.

    These are chosen from the newest runs on the same images, see `MAX_CANDIDATES`. Of several runs with the same
    method, start and seed, the newest is used. Baselines come first.

    Raises:
        UserError: if there are fewer than two, or the named ones can't be compared.
    """
    candidates = _candidates(run.store, config)
    if len(candidates) < 2:
        raise UserError(
            f"runs: there are {len(candidates)} finished runs to compare, but two are needed; train them with python "
            "-m cvexp -m task=multiclass,attention"
        )
    newest: dict[tuple[str, str, int], FinishedRun] = {}
    for candidate in candidates:
        method, start, seed = key = (candidate.task, candidate.start, candidate.seed)
        other, reason = candidates[0], obstacle(candidates[0], candidate)
        if config.runs is None and reason is None:
            reason = _other_share(candidates[0], candidate)
        if reason is None and key in newest:
            other = newest[key]
            reason = f"both are {method} from {start} with seed {seed}; MLflow's UI can compare other settings"
        if reason is None and (config.runs is not None or candidate.is_readable()):
            newest[key] = candidate
        elif config.runs is not None:
            raise UserError(f"runs: {other.id} and {candidate.id} can't be compared: {reason}")
    if len(newest) < 2:
        reason = obstacle(*candidates[:2]) or _other_share(*candidates[:2]) or "it has the same task, start and seed"
        raise UserError(
            f"runs: no other finished run can be compared with the newest one, {candidates[0].id}; for example, "
            f"{candidates[1].id} can't, because {reason}; name others with runs=[...]"
        )
    if left_out := len(candidates) - len(newest):
        print_line(f"{left_out} other runs on these images are left out: other labels, or replaced by newer ones")
    if config.runs is None and len(candidates) == MAX_CANDIDATES:
        print_line(f"only the newest {MAX_CANDIDATES} runs on these images were considered; runs=[...] names others")
    return sorted(newest.values(), key=_order)


def _candidates(store: Store, config: RunConfig) -> list[FinishedRun]:
    """Return the runs that `runs` names, or else the newest usable run, followed by others on the same images.

    If there are no others, the next run follows, whose images differ.
    """
    if config.runs is not None:
        return find_runs(store, config, "role", "segmentation")
    by_age = all_runs(store, config, "role", "segmentation")
    newest = next((run for run in by_age if run.is_readable()), None)
    if newest is None:
        return []
    names = [f"data.{split}.fingerprint" for split in ("val", "test")]
    same_images = [f"tags.`{name}` = '{newest.tags[name]}'" for name in names if newest.tags.get(name, "").isalnum()]
    considered = newest_runs(store, config, MAX_CANDIDATES, "tags.role = 'segmentation'", *same_images)
    others = [run for run in considered if run.id != newest.id and run.started <= newest.started]
    return [newest, *(others or islice(by_age, 1))]


def _order(run: FinishedRun) -> tuple[bool, str, str, int]:
    return (not run.config.task.is_baseline, run.task, run.start, run.seed)  # type: ignore[attr-defined]


def _other_share(first: FinishedRun, second: FinishedRun) -> str | None:
    """Return why two runs are not compared unless they are named, or None: they had different shares of the labels."""
    shares = [run.params.get("dataset.fraction", "1.0") for run in (first, second)]
    if shares[0] == shares[1]:
        return None
    return (
        f"they were trained on different shares of the labels, {shares[0]} and {shares[1]}, which task=study compares"
    )


def obstacle(first: FinishedRun, second: FinishedRun) -> str | None:
    """Return why two runs can't be compared, or None if they can."""
    for run in (first, second):
        if not run.data:
            return f"{run.id} did not record its data"
    classes, size = "dataset.classes", "dataset.image_size"
    if first.params[classes] != second.params[classes]:
        return f"they have different classes, {first.params[classes]} and {second.params[classes]}"
    if first.params[size] != second.params[size]:
        return f"their images have different sizes, {first.params[size]} and {second.params[size]} px"
    places = [f"dataset={run.params['dataset.name']} in {run.params['dataset.root']}" for run in (first, second)]
    for split in ("val", "test"):
        if first.tags.get(f"data.{split}.fingerprint") != second.tags.get(f"data.{split}.fingerprint"):
            return f"they have different {NAMES[split]} images or labels, from {' and '.join(places)}"
    return None


def differing_settings(runs: list[FinishedRun]) -> list[str]:
    """Describe differences in training data, and in the settings that all of these runs have."""
    flat = [flatten(asdict(run.config)) for run in runs]
    shared = set.intersection(*(set(settings) for settings in flat))
    values = {key: {settings[key] for settings in flat} for key in shared if not key.startswith(MAY_DIFFER)}
    values["the fingerprint of the training data"] = _differing_data(runs)
    return [f"{key}: " + ", ".join(sorted(values[key])) for key in sorted(values) if len(values[key]) > 1]


def _differing_data(runs: list[FinishedRun]) -> set[str]:
    """Return the fingerprints of training data that should be equal, but are not.

    Runs that draw different images with `dataset.fraction_seed` have different training data by design.
    """
    fingerprints: dict[str, set[str]] = {}
    for run in runs:
        settings = run.config.dataset
        draw = "" if settings.fraction == 1 else f"{settings.fraction} {settings.fraction_seed}"
        fingerprints.setdefault(draw, set()).add(run.tags.get("data.train.fingerprint", "unknown")[:8])
    return set().union(*(same for same in fingerprints.values() if len(same) > 1))


def time_images(
    segmenters: Mapping[str, Segmenter], index: Index, size: int, num_images: int
) -> dict[str, list[float]]:
    """Measure the milliseconds to label each of several images, by run. Reading them is not included.

    The networks take turns at each image, in an order that changes from image to image, so other work on the machine
    affects all of them alike.
    """
    squares = LabeledSquares(index, size)
    ids = list(segmenters)
    times: dict[str, list[float]] = {run_id: [] for run_id in ids}
    for i in progress.track(range(NUM_WARM_UP + num_images), "measuring the speed", unit="images"):
        images = squares.pair(i % len(index.images))[0][None]
        first = i % len(ids)
        for run_id in ids[first:] + ids[:first]:
            started = time.perf_counter()
            segmenters[run_id].label_squares(images)
            times[run_id].append((time.perf_counter() - started) * 1000)
    return {run_id: values[NUM_WARM_UP:] for run_id, values in times.items()}


def draw(
    segmenters: Mapping[str, Segmenter], comparison: Comparison, index: Index, size: int, num_images: int
) -> dict[str, Figure]:
    """Draw the best, median and worst images of one run of each method.

    Returns:
        `grid` with all images, and `examples` with one of each kind.
    """
    runs = comparison.representatives()
    chosen = best_median_worst([run.counts for run in runs], evaluated_areas(index, size), num_images)
    squares = LabeledSquares(index, size)
    rows = [
        (kind, _row(segmenters, runs, squares, position))
        for kind, positions in chosen.items()
        for position in positions
    ]
    title = ", ".join(f"{run.method} from {drawable(run.start)}, seed {run.seed}" for run in runs)
    kinds = [kind for kind, _ in rows]
    examples = [rows[kinds.index(kind)] for kind in chosen]
    return {
        "grid": pictures.grid(rows, comparison.classes, title),
        "examples": pictures.grid(examples, comparison.classes, title),
    }


def _row(
    segmenters: Mapping[str, Segmenter], runs: list[Evaluated], squares: LabeledSquares, position: int
) -> dict[str, Any]:
    image, labels = squares.pair(position)
    row: dict[str, Any] = {}
    for run in runs:
        prediction = segmenters[run.run_id].predict_squares(image[None])
        example = pictures.make_example(squares.whole.index, position, image, labels, prediction, 0)
        miou = float(iou.mean_iou(run.counts[position, 1:]))
        row |= {
            "image": example.image,
            "label": example.labels,
            run.method: pictures.Captioned(example.predicted, f"mIoU {miou:.2f}"),
        }
        if example.attention is not None:
            query = squares.whole.index.classes[example.main_class]
            overlay = (example.image, example.attention_of(example.main_class))
            row["attention map"] = pictures.Captioned(overlay, f"query:\n{query}")
    return row
