"""The section on segmentation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cvexp.report import curves
from cvexp.report.document import Paragraph, Picture, Table, png, read_png
from cvexp.report.sections.material import Blocks, Material, epochs
from cvexp.report.style import shorten
from cvexp.tracking.finished import FinishedRun

COMMAND = "python -m cvexp -m task=multiclass,attention backbone.weights=null,latest:{method}"

SCORES = {
    "miou": "mIoU",
    "miou_all": "with background",
    "pixel_accuracy": "pixel accuracy",
    "presence_f1": "presence F1",
}

TABLE = (
    "Scores of each run on the validation images at its best epoch. mIoU is the mean over the classes of the IoU over "
    "the pixels of all images. Presence F1 measures how well a run predicts which classes an image contains."
)

CURVES = (
    "Loss and mIoU of the runs in the table, by epoch, on the validation images (dots) and on the training images "
    "(thin: raw, dashed: smoothed). Runs that differ only in the seed share a color. The losses of different methods "
    "can't be compared. A method that trains on a few classes at a time measures its training mIoU on these."
)

PICTURES = {  # alternative text and caption of the figures that methods with attention record
    "one_after_another": (
        "One image, with an attention map, probabilities and a mask for each class",
        "One validation image, queried for each class; p is the predicted probability that the class is present",
    ),
    "heads": (
        "Attention maps of each head for a class in the image and for one that is not",
        "Attention of each head for a class that is present in the image and for an absent one",
    ),
}


def segmentation_section(material: Material, methods: Sequence[str]) -> Blocks:
    """Describe the segmentation runs.

    Args:
        material: The runs.
        methods: All segmentation methods.
    """
    runs = material.segmentations
    if not runs:
        method = material.pretrainings[0].task if material.pretrainings else "dino"
        return material.missing("There is no finished segmentation run.", COMMAND.format(method=method))
    has_background = any(run.config.dataset.has_background for run in runs)
    scores = {key: name for key, name in SCORES.items() if has_background or key != "miou_all"}
    columns = ["run", "method", "initial weights", "seed", "best epoch", *scores.values()]
    blocks: Blocks = [
        Paragraph(_describe(runs)),
        Table(columns, [_row(run, scores) for run in runs], TABLE, wide=True),
        *_curves(runs),
        *_attention(runs),
    ]
    for method in methods:
        if method not in {run.task for run in runs}:
            blocks += material.missing(
                f"There is no finished run of the method {method}.", f"python -m cvexp task={method}"
            )
    return blocks


def _describe(runs: Sequence[FinishedRun]) -> str:
    descriptions = {}
    for run in runs:
        task: Any = run.config.task
        of_background = task.description_of_background if run.config.dataset.has_background else ""
        descriptions[run.task] = f"{task.description}{of_background}"
    return " ".join(f"The method {name} {description}." for name, description in descriptions.items() if description)


def _row(run: FinishedRun, scores: Iterable[str]) -> list[str]:
    _, num_epochs = epochs(run.history("val/loss"))
    best = f"{run.metrics['best/epoch'] + 1:.0f} of {num_epochs}" if num_epochs else "none"
    keys = [f"best/{name}" for name in scores]
    values = [f"{run.metrics[key]:.3f}" if key in run.metrics else "none" for key in keys]
    return [run.id[:8], run.task, shorten(run.start), f"{run.seed}", best, *values]


def _curves(runs: Sequence[FinishedRun]) -> Blocks:
    losses, mious = [], []
    for run in runs:
        validation = run.history("val/loss")
        steps, num_epochs = epochs(validation)
        if not num_epochs:  # without a validation, the length of an epoch is unknown
            continue
        label = f"{run.task}, {run.start}"
        losses.append(curves.Curve(label, run.history("train/loss"), validation, steps))
        train = curves.training_metric(run.metrics, "val/miou")
        mious.append(curves.Curve(label, run.history(train) if train else [], run.history("val/miou"), steps))
    if not losses:
        return []
    alt = "Curves of loss and mIoU by epoch, with a line for each run"
    return [Picture(png(curves.compare({"loss (nats)": losses, "mIoU": mious})), alt, CURVES, wide=True)]


def _attention(runs: Sequence[FinishedRun]) -> Blocks:
    """Show the attention figures of the run with the best mIoU among those that recorded any."""
    blocks: Blocks = []
    for run in sorted(runs, key=lambda run: -run.metrics.get("best/miou", 0)):
        for name, (alt, words) in PICTURES.items():
            picture = run.read(f"pictures/{name}.png", read_png)
            if picture is not None:
                caption = f"{words} (run {run.id[:8]}, best checkpoint)."
                blocks.append(Picture(picture, alt, caption, wide=True, screen_only=name == "heads"))
        if blocks:
            break
    return blocks
