"""The section on segmentation."""

from __future__ import annotations

from collections.abc import Sequence

from cvexp.report import curves
from cvexp.report.document import Paragraph, Picture, Table, png, read_png
from cvexp.report.sections.material import Blocks, Material, epochs, missing
from cvexp.report.style import shorten
from cvexp.tracking.finished import FinishedRun

COMMAND = "python -m cvexp -m task=multiclass,attention backbone.weights=null,latest:dino"

SCORES = {
    "miou": "mIoU",
    "miou_all": "with background",
    "pixel_accuracy": "pixel accuracy",
    "presence_f1": "presence F1",
}

TABLE = (
    "Each run at its best epoch, as recorded in MLflow. mIoU is the mean over the classes of the IoU of all validation "
    "pixels; presence F1 measures how well the classes that occur in each image are found."
)

CURVES = (
    "Loss and mIoU: validation with dots, training dashed (thin: raw values). There is a line for each run of the "
    "table; runs that differ only in the seed have the same color. Losses of different methods can't be compared, and "
    "a method that is trained on some classes at a time measures its training mIoU on these."
)

PICTURES = {  # recorded by methods that attend to one class at a time, and what they show
    "one_after_another": "One image, queried for every class, one after another",
    "heads": "Attention of each head for a class that is in the image and for one that is not",
}


def segmentation_section(material: Material, methods: Sequence[str]) -> Blocks:
    """Describe the segmentation runs.

    Args:
        material: The runs.
        methods: The segmentation tasks that there are.
    """
    runs = material.segmentations
    if not runs:
        return missing("There is no finished segmentation.", COMMAND)
    columns = ["run", "method", "start", "seed", "best epoch", *SCORES.values()]
    blocks: Blocks = [
        Paragraph(_describe(runs)),
        Table(columns, [_row(run) for run in runs], TABLE, wide=True),
        *_curves(runs),
        *_attention(runs),
    ]
    for method in methods:
        if method not in {run.task for run in runs}:
            blocks += missing(f"There is no finished run of {method}.", f"python -m cvexp task={method}")
    return blocks


def _describe(runs: Sequence[FinishedRun]) -> str:
    descriptions = {run.task: run.config.task.description for run in runs}  # type: ignore[attr-defined]
    return " ".join(f"The method {name} {words}." for name, words in descriptions.items() if words)


def _row(run: FinishedRun) -> list[str]:
    _, num_epochs = epochs(run.history("val/loss"))
    best = f"{run.metrics['best/epoch'] + 1:.0f} of {num_epochs}" if num_epochs else "none"
    keys = [f"best/{name}" for name in SCORES]
    scores = [f"{run.metrics[key]:.3f}" if key in run.metrics else "none" for key in keys]
    return [run.id[:8], run.task, shorten(run.start), f"{run.seed}", best, *scores]


def _curves(runs: Sequence[FinishedRun]) -> Blocks:
    losses, mious = [], []
    for run in runs:
        validation = run.history("val/loss")
        steps, num_epochs = epochs(validation)
        if not num_epochs:  # without a validation, the length of its epochs is unknown
            continue
        label = f"{run.task}, {run.start}"
        losses.append(curves.Curve(label, run.history("train/loss"), validation, steps))
        train = curves.training_metric(run.metrics, "val/miou")
        mious.append(curves.Curve(label, run.history(train) if train else [], run.history("val/miou"), steps))
    if not losses:
        return []
    alt = "Curves of loss and mIoU over the epochs, a line for each run"
    return [Picture(png(curves.compare({"loss (nats)": losses, "mIoU": mious})), alt, CURVES, wide=True)]


def _attention(runs: Sequence[FinishedRun]) -> Blocks:
    """Show pictures of the attention of the best run that recorded any."""
    blocks: Blocks = []
    for run in sorted(runs, key=lambda run: -run.metrics.get("best/miou", 0)):
        for name, words in PICTURES.items():
            picture = run.read(f"pictures/{name}.png", read_png)
            if picture is not None:
                caption = f"{words} (run {run.id[:8]}, best checkpoint)."
                blocks.append(Picture(picture, words, caption, wide=True, screen_only=name == "heads"))
        if blocks:
            break
    return blocks
