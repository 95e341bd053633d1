"""`task=compare`: finished segmentation runs, evaluated with the same code on the same images."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure
from omegaconf import MISSING
from torch import nn

from cvexp import checkpoints, config, data, tracking
from cvexp.config import require
from cvexp.data import augment
from cvexp.data.index import Index, Splits
from cvexp.data.masks import Masks
from cvexp.errors import UserError
from cvexp.finished import FinishedRun, find_runs
from cvexp.metrics import iou
from cvexp.metrics.bootstrap import paired_difference
from cvexp.report import comparison as report
from cvexp.report import segmentation as pictures
from cvexp.report.comparison import Evaluated
from cvexp.report.console import print_line
from cvexp.report.style import NARROW, drawable
from cvexp.tasks import training
from cvexp.tasks.attention import Attention
from cvexp.tasks.multiclass import Multiclass
from cvexp.tasks.segmentation import Predictor, Segmentation, best_median_worst, evaluate, evaluated_areas
from cvexp.tracking import Run

METHODS: dict[str, type[Segmentation]] = {"multiclass": Multiclass, "attention": Attention}
WARM_UP = 3  # images that are not timed

# What runs may differ in without a word: it is what is compared, or it changes nothing that is measured.
MAY_DIFFER = (
    *("task.name", "backbone.weights", "seed", "name", "resume", "runs", "tracking.", "loader.num"),
    *(f"dataset.{key}" for key in ("root", "cache", "download", "password")),
)


@dataclass(kw_only=True)
class Config(config.Task):
    works_on: ClassVar[str | None] = "runs"
    samples: int = MISSING
    confidence: float = MISSING
    timed_images: int = MISSING
    pictured_images: int = MISSING

    def __post_init__(self) -> None:
        require(self.samples >= 100, "task.samples", self.samples, "at least 100")
        require(0 < self.confidence < 1, "task.confidence", self.confidence, "between 0 and 1")
        require(self.timed_images >= 1, "task.timed_images", self.timed_images, "at least 1")
        require(self.pictured_images >= 1, "task.pictured_images", self.pictured_images, "at least 1")


def run(config: config.Config, run: Run) -> None:
    """Leave tables, intervals, the counts that they are made of, and pictures in `run`.

    Raises:
        UserError: when there are no two runs to compare, or they can't be compared.
    """
    task = config.task
    assert isinstance(task, Config)
    chosen = choose(run, config)
    for warning in differing_settings(chosen):
        print_line(f"warning: the runs differ in {warning}", style="bold yellow")
    settings = chosen[0].config
    splits = data.load(settings.dataset, "segmentation", needs_training=False)
    if splits.val.fingerprint() != chosen[0].tags["data.val.fingerprint"]:
        raise UserError(
            f"dataset: the validation images or labels in {splits.val.root} have changed since the run {chosen[0].id}; "
            "put the old ones back, or train again"
        )
    run.log_data(settings.dataset.name, splits)
    device = training.device(config.trainer)
    predictors = {
        finished.id: Predictor(
            load_model(finished, len(splits.val.classes), run).to(device).eval(), finished.config, device
        )
        for finished in chosen
    }
    times = time_images(predictors, settings, splits.val, task.timed_images)
    evaluated = [_evaluate(finished, predictors[finished.id], splits, times[finished.id]) for finished in chosen]
    comparison = report.Comparison(
        classes=splits.val.classes,
        images=[splits.val.catalog.file(int(image)) for image in splits.val.images],
        evaluated=evaluated,
        differences=differences(evaluated, task),
        confidence=task.confidence,
    )
    report.print_comparison(comparison)
    report.log_comparison(run, comparison)
    for name, figure in draw(predictors, comparison, settings, splits.val, task.pictured_images).items():
        run.log_figure(figure, f"comparison/{name}.png")
    print_line(f"tables, counts and pictures: {run.client.get_run(run.id).info.artifact_uri}/comparison")


def _evaluate(finished: FinishedRun, predictor: Predictor, splits: Splits, times: list[float]) -> Evaluated:
    """Score a run on the validation images, and print its mIoU."""
    evaluated = Evaluated(
        run_id=finished.id,
        method=finished.task,
        start=finished.start,
        seed=finished.seed,
        counts=evaluate(predictor, finished.config, splits),
        times=times,
        parameters=sum(parameter.numel() for parameter in predictor.model.parameters()),
    )
    miou, trained = evaluated.miou, finished.metrics["best/miou"]
    print_line(f"{finished.id}  {finished.name}  from {finished.start}  seed {finished.seed}  mIoU {miou:.4f}")
    if abs(trained - miou) > 1e-3:
        print_line(
            f"warning: its training measured {trained:.4f}; on another device, or with other versions?",
            style="bold yellow",
        )
    return evaluated


def choose(run: Run, config: config.Config) -> list[FinishedRun]:
    """The runs that `runs` names, or the newest one and all that can be compared with it, the newest of each kind.

    Raises:
        UserError: when there are no two, or those named can't be compared.
    """
    found = find_runs(run.client, config, list(METHODS))
    while config.runs is None and found and not found[0].is_readable():
        del found[0]
    if len(found) < 2:
        raise UserError(
            f"runs: there are {len(found)} finished runs to compare, and two are needed; train them with python -m "
            "cvexp -m task=multiclass,attention"
        )
    newest: dict[tuple[str, str, int], FinishedRun] = {}
    for other in found:
        method, start, seed = key = (other.task, other.start, other.seed)
        one, reason = found[0], obstacle(found[0], other)
        if reason is None and key in newest:
            one, reason = newest[key], f"both are {method} from {start} with seed {seed}; MLflow's UI compares the rest"
        if reason is None and (config.runs is not None or other.is_readable()):
            newest[key] = other
        elif config.runs is not None:
            raise UserError(f"runs: {one.id} and {other.id} can't be compared: {reason}")
    if len(newest) < 2:
        reason = obstacle(found[0], found[1]) or "it is of the same task, start and seed"
        raise UserError(
            f"runs: no other finished run can be compared with the newest, {found[0].id}; of {found[1].id}: {reason}; "
            "name others with runs=[...]"
        )
    if left_out := len(found) - len(newest):
        print_line(f"{left_out} other finished runs are left out: of other data, or older ones of a like run")
    return [newest[key] for key in sorted(newest, key=lambda key: (list(METHODS).index(key[0]), *key[1:]))]


def obstacle(one: FinishedRun, other: FinishedRun) -> str | None:
    """Why two runs can't be compared; None when they can."""
    first, second = one.params, other.params
    for run in (one, other):
        if not run.data:
            return f"{run.id} did not record its data"
    classes, size = "dataset.classes", "dataset.image_size"
    if first[classes] != second[classes]:
        return f"they have other classes, {first[classes]} and {second[classes]}"
    if first[size] != second[size]:
        return f"they see images of another size, {first[size]} and {second[size]} px"
    if one.tags.get("data.val.fingerprint") != other.tags.get("data.val.fingerprint"):
        places = [f"dataset={params['dataset.name']} in {params['dataset.root']}" for params in (first, second)]
        return f"they have other validation images or labels, of {' and '.join(places)}"
    return None


def differing_settings(chosen: list[FinishedRun]) -> list[str]:
    """Settings that all of these runs have, but not with the same value; and what they were trained on."""
    trained_on = "training data's fingerprint"
    flat = [
        {**tracking.flatten(asdict(one.config)), trained_on: one.tags.get("data.train.fingerprint", "unknown")[:8]}
        for one in chosen
    ]
    shared = set.intersection(*(set(settings) for settings in flat))
    return [
        f"{key} is " + ", ".join(sorted({settings[key] for settings in flat}))
        for key in sorted(shared)
        if not key.startswith(MAY_DIFFER) and len({settings[key] for settings in flat}) > 1
    ]


def load_model(finished: FinishedRun, classes: int, run: Run) -> nn.Module:
    """The segmenter of a run's best checkpoint."""
    method = METHODS[finished.config.task.name]
    model = method.make_model(finished.config, classes, checkpoints.StartingPoint(finished.config, None))
    with tempfile.TemporaryDirectory() as temporary:
        uri = f"runs:/{finished.id}/checkpoints/best.ckpt"
        state = checkpoints.read_checkpoint(checkpoints.download(uri, run.client, Path(temporary), key="runs")).tensors
    model.load_state_dict({key.removeprefix("model."): value for key, value in state.items()})
    return model


def time_images(
    predictors: Mapping[str, Predictor], settings: config.Config, val: Index, count: int
) -> dict[str, list[float]]:
    """Milliseconds for the label map of one image, of several images, by run; reading an image is not counted.

    The models take turns at each image, and start it in turn, so that whatever else the machine does meets all alike.
    """
    masks = Masks(val, augment.PlainLabelledView(settings.dataset.image_size), seed=0)
    ids = list(predictors)
    times: dict[str, list[float]] = {run_id: [] for run_id in ids}
    for i in range(WARM_UP + count):
        images = masks[0, i % len(masks)][0][None]
        first = i % len(ids)
        for run_id in ids[first:] + ids[:first]:
            started = time.perf_counter()
            predictors[run_id].label(images)
            times[run_id].append((time.perf_counter() - started) * 1000)
    return {run_id: values[WARM_UP:] for run_id, values in times.items()}


def differences(evaluated: Sequence[Evaluated], task: Config) -> list[report.Difference]:
    """Attention against multi-class for each start and for all, and each start against random for each method.

    Only what both sides have is compared: the same seeds, and the same starts.
    """
    starts = list(dict.fromkeys(one.start for one in evaluated))
    of = {(one.method, one.start, one.seed): one.counts[:, 1:] for one in evaluated}
    seeds = sorted({one.seed for one in evaluated})
    methods = {start: [(("attention", start, seed), ("multiclass", start, seed)) for seed in seeds] for start in starts}
    pairs = {f"attention - multiclass, from {start}": keys for start, keys in methods.items()}
    if len(starts) > 1:
        pairs["attention - multiclass, from all"] = [key for keys in methods.values() for key in keys]
    for method in METHODS:
        for start in starts:
            if start != "random":
                keys = [((method, start, seed), (method, "random", seed)) for seed in seeds]
                pairs[f"{start} - random, {method}"] = keys
    found = []
    for name, keys in pairs.items():
        both = [(of[first], of[second]) for first, second in keys if first in of and second in of]
        if both:
            first, second = (np.stack(side) for side in zip(*both, strict=True))
            interval = paired_difference(first, second, task.samples, task.confidence)
            found.append(report.Difference(name, len(both), interval))
    return found


def draw(
    predictors: dict[str, Predictor], comparison: report.Comparison, settings: config.Config, val: Index, number: int
) -> dict[str, Figure]:
    """The best, median and worst images of one run of each method: of the best start that both have, its first seed.

    `grid` has all that are asked for, `examples` one of each kind.
    """
    shown = comparison.shown_runs()
    areas = evaluated_areas(val, settings.dataset.image_size)
    parts = best_median_worst([one.counts for one in shown], areas, number)
    masks = Masks(val, augment.PlainLabelledView(settings.dataset.image_size), seed=0)
    rows = []
    for part, positions in parts.items():
        for position in positions:
            rows.append((part, _row(predictors, shown, masks, position)))
    runs = ", ".join(f"{one.method} from {drawable(one.start)}, seed {one.seed}" for one in shown)
    kinds = [part for part, _ in rows]
    examples = [rows[kinds.index(part)] for part in parts]
    return {
        "grid": pictures.grid(rows, comparison.classes, runs),
        "examples": pictures.grid(examples, comparison.classes, runs),
    }


def _row(predictors: dict[str, Predictor], shown: Sequence[Evaluated], masks: Masks, position: int) -> dict[str, Any]:
    image, labels = masks[0, position]
    row: dict[str, Any] = {}
    for one in shown:
        prediction = predictors[one.run_id].predict(image[None])
        seen = pictures.example(masks.index, position, image, labels, prediction, 0)
        miou = float(iou.mean_iou(one.counts[position, 1:]))
        row |= {
            "image": seen.image,
            "label": seen.labels,
            one.method: pictures.Captioned(seen.predicted, f"mIoU {miou:.2f}"),
        }
        if seen.attention is not None:
            asked = masks.index.classes[seen.shown_class]
            overlay = (seen.image, seen.attention_of(seen.shown_class))
            row["attention map"] = pictures.Captioned(overlay, f"asked: {drawable(asked, NARROW)}")
    return row
