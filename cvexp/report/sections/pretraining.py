"""The section on pretraining."""

from __future__ import annotations

import json

from cvexp.metrics import selection
from cvexp.report import curves, embedding
from cvexp.report.document import Paragraph, Picture, Table, png, read_png
from cvexp.report.sections.dense import dense_blocks
from cvexp.report.sections.material import Blocks, Material, count, epochs, worse_features
from cvexp.report.style import shorten, state_of
from cvexp.tracking.finished import FinishedRun, embedded_epochs

MEASURES = {  # descriptions; other measures appear under their own names
    "loss": "validation loss (nats)",
    "knn_top1": "kNN accuracy, from training crops",
    "teacher_entropy": "entropy of the teacher's output (nats)",
    "teacher_kl": "KL of its mean from uniform (nats)",
    "feature_std": "std. deviation of normalized features",
    "feature_rank": "effective rank of the features",
}


def pretraining_section(material: Material) -> Blocks:
    """Describe the pretraining run that most segmentation runs start from, or the newest one."""
    if not material.pretrainings:
        return material.missing("There is no finished pretraining run.", "python -m cvexp task=dino")
    run = material.pretrainings[0]
    losses = run.history("val/loss")
    steps, num_epochs = epochs(losses)
    if not num_epochs:
        return [Paragraph(f"The run {run.id[:8]} ended before its first epoch was validated, so it has no results.")]
    worse = worse_features(run)
    blocks: Blocks = [Paragraph(worse)] if worse else []
    blocks.append(Paragraph(_text(material, run, num_epochs)))
    if warning := run.tags.get("warning", "").removesuffix(worse or "").removesuffix("; "):
        blocks.append(Paragraph(f"The run warned: {warning}."))
    blocks.append(_measures(run, num_epochs))
    blocks += _precision(run, material)
    blocks.append(_curves(run, losses, steps, num_epochs))
    return [*blocks, *_embeddings(run), *dense_blocks(run), *_neighbors(material.neighbors)]


def _text(material: Material, run: FinishedRun, num_epochs: int) -> str:
    max_steps = run.config.trainer.max_steps
    length = count(num_epochs, "epoch") if max_steps is None else f"at most {count(max_steps, 'step')}"
    monitor = run.params["task.monitor"]
    text = (
        f"The method {run.task} pretrained {run.config.backbone.name} for {length} with batch size "
        f"{run.config.loader.batch_size} (run {run.id[:8]}, seed {run.seed}). The checkpoint from which other runs "
        f"start, best.ckpt, is from {selection.describe(monitor, run.metrics['best/epoch'], num_epochs)}. It has a "
        f"validation loss of {run.metrics['best/loss']:.3f}. {_reason(monitor)}"
    )
    if len(material.pretrainings) > 1:
        text += f" The run is one of {len(material.pretrainings)} from which the segmentation runs start."
    elif material.segmentations and not any("weights_from" in other.tags for other in material.segmentations):
        text += " None of the segmentation runs below starts from it."
    return f"{text} A low loss alone proves little, so the table also shows measures that would reveal a collapse."


def _reason(monitor: str) -> str:
    """Say why this epoch is selected."""
    measured = "experiments/start_checkpoint.md"
    if monitor == selection.LAST:
        return f"The last epoch is the default because no metric reliably selected a better start ({measured})."
    return f"The setting task.monitor={monitor} selected it; the default is the last epoch ({measured})."


def _measures(run: FinishedRun, num_epochs: int) -> Table:
    recorded = [name.removeprefix("val/") for name in run.metrics if name.startswith("val/")]
    names = [*(name for name in MEASURES if name in recorded), *sorted(set(recorded) - set(MEASURES))]
    rows = []
    is_last = run.metrics["best/epoch"] + 1 == num_epochs
    columns = ["measure", "untrained", *([] if is_last else ["selected"]), "last"]
    for name in names:
        history = run.history(f"val/{name}")
        values = (history[0][1], *([] if is_last else [run.metrics[f"best/{name}"]]), history[-1][1])
        rows.append([MEASURES.get(name, name), *(f"{value:.3f}" for value in values)])
    when = "before training and at the last epoch" if is_last else "before training, at the selected and the last epoch"
    caption = f"Measures on the validation crops {when} (run {run.id[:8]})."
    if collapse := run.tags.get("collapse"):
        caption += f" Loss after a collapse: {collapse}."
    return Table(columns, rows, caption)


def _curves(run: FinishedRun, losses: curves.Series, steps: int, num_epochs: int) -> Picture:
    panels = {"loss (nats)": [curves.Curve(run.task, run.history("train/loss"), losses, steps)]}
    if accuracies := run.history("val/knn_top1"):
        panels["kNN accuracy"] = [curves.Curve(run.task, [], accuracies, steps)]
    change = f"the validation loss goes from {losses[0][1]:.2f} to {losses[-1][1]:.2f}"
    alt = f"Curves over {count(num_epochs, 'epoch')}: {change}"
    caption = "Loss on the training crops (thin: raw, dashed: smoothed) and on the validation crops (dots)"
    caption += f"{', and kNN accuracy on the latter' if accuracies else ''}, by epoch (run {run.id[:8]})."
    return Picture(png(curves.compare(panels, stacked=True)), alt, caption)


def _embeddings(run: FinishedRun) -> Blocks:
    all_epochs = embedded_epochs(run.store, run.id)
    chosen = sorted({all_epochs[0], all_epochs[len(all_epochs) // 2], all_epochs[-1]})
    embeddings = {epoch: embedding.read_embedding(run.store, run.id, epoch) for epoch in chosen}
    if not all(len(recorded.layout) for recorded in embeddings.values()):
        return [
            Paragraph(
                f"The run {run.id[:8]} has no t-SNE, as it has too few validation crops or is from an older version."
            )
        ]
    alt = f"t-SNE of the validation crops at epochs {', '.join(map(str, chosen))}"
    caption = (
        f"t-SNE of the features of {len(embeddings[chosen[0]].labels)} validation crops (run {run.id[:8]}). "
        + ("Colors and markers show classes, which pretraining did not use. " if run.classes else "")
        + "The run's artifact explorer.html shows the crops."
    )
    return [Picture(png(embedding.draw_epochs(embeddings, run.classes)), alt, caption, wide=True)]


def _precision(run: FinishedRun, material: Material) -> Blocks:
    neighbors = material.neighbors
    if neighbors is None:
        return material.missing(
            "The nearest neighbors were not computed.", f"python -m cvexp task=neighbors run={run.id}"
        )
    precision = neighbors.read("neighbors/precision.json", lambda path: json.loads(path.read_text()))
    if precision is None:  # the data have no labels
        return []
    rows = [
        [shorten(name), f"{row['crops']}", *(f"{row[key]:.3f}" for key in ("precision", "untrained", "chance"))]
        for name, row in [*precision["classes"].items(), ("all", precision["all"])]
    ]
    caption = (
        f"Mean share of the {precision['k']} nearest validation crops that have a crop's own class: "
        f"{state_of(precision['epoch'])}, untrained, and by chance (run {neighbors.id[:8]})."
    )
    return [Table(["class", "crops", "trained", "untrained", "chance"], rows, caption)]


def _neighbors(neighbors: FinishedRun | None) -> Blocks:
    picture = None if neighbors is None else neighbors.read("neighbors/grid.png", read_png)
    if neighbors is None or picture is None:
        return []
    alt = "Grid of crops: each row has a query and its nearest neighbors, with classes and cosine distances"
    caption = "Queries and their nearest neighbors among the validation crops, with cosine distances of the features"
    return [Picture(picture, alt, f"{caption} (run {neighbors.id[:8]}).", wide=True)]
