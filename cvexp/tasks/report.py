"""`task=report`: what finished runs found, written up as an HTML page and a PDF, from what MLflow has of them."""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from omegaconf import MISSING

from cvexp import config, finished
from cvexp.finished import FinishedRun, RecordedData
from cvexp.metrics.bootstrap import Interval
from cvexp.metrics.knn import worse_than_untrained
from cvexp.report import comparison as compared
from cvexp.report import curves, embedding
from cvexp.report.comparison import Comparison
from cvexp.report.console import print_line
from cvexp.report.document import Document, Paragraph, Picture, Section, Table, html, pdf, png, read_png
from cvexp.report.style import shorten
from cvexp.tasks import dino as dino_task
from cvexp.tracking import Run

SEGMENTERS = ["multiclass", "attention"]
SHOWN = 8  # segmentation runs, where no comparison names them
MEASURES = {  # of pretraining, and what they mean
    "loss": "validation loss, nats",
    "knn_top1": "kNN accuracy of the features",
    "teacher_entropy": "entropy of the teacher's output, nats",
    "teacher_kl": "its mean's KL from uniform, nats",
    "feature_std": "standard deviation of unit features",
    "feature_rank": "effective rank of the features",
}
CLASSES_NAMED = 8  # in the table of the data
Blocks = list[Paragraph | Table | Picture]


@dataclass(kw_only=True)
class Config(config.Task):
    works_on: ClassVar[str | None] = "run"
    title: str = MISSING


@dataclass(frozen=True)
class Found:
    """The runs that are written up; what is missing is None or empty."""

    comparison_run: FinishedRun | None
    comparison: Comparison | None
    segmenters: list[FinishedRun]
    pretrainings: list[FinishedRun]
    neighbors: FinishedRun | None

    @property
    def dino(self) -> FinishedRun | None:
        return self.pretrainings[0] if self.pretrainings else None


def run(config: config.Config, run: Run) -> None:
    """Leave `report/report.html` and `report/report.pdf` in `run`, and copies of them in the tracking folder.

    Raises:
        UserError: when there is no finished run to write of.
    """
    task = config.task
    assert isinstance(task, Config)
    found = find(run, config)
    document = write(task.title, found, run)
    folder = Path(config.tracking.folder)
    for name, content in (("report.html", html(document).encode()), ("report.pdf", pdf(document))):
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / name
            path.write_bytes(content)
            run.log_file(path, "report")
        (folder / name).write_bytes(content)
        print_line(f"open {(folder / name).absolute().as_uri()}")


def find(run: Run, config: config.Config) -> Found:
    """The newest comparison, or the one that `run` names; its runs; and the pretrainings that they start from."""
    client = run.client
    comparison_run = finished.newest_run(client, config, ["compare"])
    comparison = None
    every = replace(config, runs=None)
    segmenters = finished.find_runs(client, every, SEGMENTERS)
    if comparison_run is not None:
        comparison = compared.read_comparison(client, comparison_run.id)
        ids = [one.run_id for one in comparison.evaluated]
        segmenters = sorted((one for one in segmenters if one.id in ids), key=lambda one: ids.index(one.id))
    else:
        segmenters = segmenters[:SHOWN]
    pretrainings = finished.find_runs(client, every, ["dino"])
    uses = Counter(one.tags.get("weights_from") for one in segmenters)
    used = sorted((one for one in pretrainings if one.id in uses), key=lambda one: -uses[one.id])
    pretrainings = used or pretrainings[:1]
    neighbors = [
        one
        for one in finished.find_runs(client, every, ["neighbors"])
        if pretrainings and one.tags.get("of_run") == pretrainings[0].id
    ]
    return Found(comparison_run, comparison, segmenters, pretrainings, neighbors[0] if neighbors else None)


def write(title: str, found: Found, run: Run) -> Document:
    """All that the runs tell, in order: data, pretraining, segmentation, comparison, and how to repeat it."""
    runs = [*found.pretrainings, *found.segmenters]
    sections = [
        Section("Data", _data(runs)),
        Section("Pretraining", _pretraining(found, run)),
        Section("Segmentation", _segmentation(found, run)),
        Section("Comparison", _comparison(found, run)),
        Section("To repeat it", _repeat(found)),
    ]
    return Document(title, _summary(found, run), sections)


def _summary(found: Found, run: Run) -> list[str]:
    worse = [(one, _worse_features(one, run)) for one in found.pretrainings]
    warnings = [f"{warning.removesuffix('.')} (run {one.id[:8]})." for one, warning in worse if warning]
    if found.comparison is None or found.comparison_run is None:
        return [*warnings, "No methods have been compared yet."]
    groups = {key: sum(one.miou for one in ones) / len(ones) for key, ones in found.comparison.groups().items()}
    (method, start), miou = max(groups.items(), key=lambda item: item[1])
    constant = max(found.comparison.constants(), key=lambda one: one.scores["miou"])
    images = f"the {len(found.comparison.images)} validation images"
    if len(groups) > 1:
        first = (
            f"Of {len(groups)} combinations of method and start, {method} from {shorten(start)} has the largest mean "
            f"mIoU on {images}, {miou:.3f}"
        )
    else:
        first = f"On {images}, {method} from {shorten(start)} has a mean mIoU of {miou:.3f} over its seeds"
    first += (
        f"; the best constant prediction, {shorten(constant.label)} everywhere, has {constant.scores['miou']:.3f} "
        f"(run {found.comparison_run.id[:8]})."
    )
    constants = compared.constant_warnings(found.comparison)
    return [*warnings, first, *constants, *plain_sentences(found.comparison)]


def _worse_features(dino: FinishedRun, run: Run) -> str | None:
    """A warning where a pretraining lowered the kNN accuracy."""
    accuracies = run.history_of(dino.id, "val/knn_top1")
    if not accuracies:
        return None
    trained = {"at the best epoch": dino.metrics["best/knn_top1"], "at the last epoch": accuracies[-1][1]}
    return worse_than_untrained(dict(accuracies).get(0), trained)


def plain_sentences(comparison: Comparison) -> list[str]:
    """Each difference in words; one that lies within its interval is not called one."""
    said = []
    for name, pairs, interval in comparison.differences:
        if name.startswith("attention - multiclass, from "):
            first, second, start = "attention", "multiclass", name.removeprefix("attention - multiclass, from ")
            words = {"all": "Over all starts", "random": "From random weights"}
            side = words.get(start, f"From {shorten(start)}")
        else:
            start, _, method = name.rpartition(" - random, ")
            side, first, second = f"With {method}", f"the start from {shorten(start)}", "the start from random weights"
        low_high = f"{comparison.confidence:.0%} interval {interval.low:+.3f} to {interval.high:+.3f}"
        of = f"{low_high}, {_count(pairs, 'pair')} of runs"
        word = "more" if interval.difference > 0 else "less"
        if len(comparison.images) < compared.ENOUGH_IMAGES:
            said.append(
                f"{side}, {first} and {second} differ by {interval.difference:+.3f} mIoU, on too few images to judge."
            )
        elif interval.is_clear:
            said.append(f"{side}, {first} has {abs(interval.difference):.3f} {word} mIoU than {second} ({of}).")
        else:
            said.append(
                f"{side}, these images show no clear difference between {first} and {second}: "
                f"{interval.difference:+.3f} mIoU ({of})."
            )
    return said


def _missing(what: str, command: str) -> Blocks:
    return [Paragraph(f"{what} This makes it:"), Paragraph(command, code=True)]


def _data(runs: Sequence[FinishedRun]) -> Blocks:
    if not runs:
        return _missing("There is no finished run.", "python -m cvexp task=dino")
    uses: dict[tuple[str, str, str], list[str]] = {}
    recorded: dict[str, RecordedData] = {}
    for one in runs:
        use = "pretraining" if one.config.task.name == "dino" else "segmentation"
        for split, data in one.data.items():
            recorded[data.fingerprint] = data
            used = uses.setdefault((one.config.dataset.name, split, data.fingerprint), [])
            if use not in used:
                used.append(use)
    unrecorded = [one.id[:8] for one in runs if not one.data]
    absent: Blocks = []
    if unrecorded:
        absent.append(Paragraph(f"{_count(len(unrecorded), 'run')} did not record the data: {', '.join(unrecorded)}."))
    if not uses:
        return absent
    rows = []
    for (source, split, digest), used in uses.items():
        data = recorded[digest]
        named = [f"{shorten(name)} {count}" for name, count in data.classes.items()]
        more = f" and {len(named) - CLASSES_NAMED} more" if len(named) > CLASSES_NAMED else ""
        classes = ", ".join(named[:CLASSES_NAMED]) + more or "no labels"
        rows.append([source, split, " and ".join(used), f"{data.images}", f"{data.objects}", classes, digest[:8]])
    sizes = sorted({one.config.dataset.image_size for one in runs if one.config.task.name != "dino"})
    caption = "Images and objects. The fingerprint is of file contents, boxes and labels."
    if sizes:
        caption += f" Segmentation sees whole images, the longer side scaled to {' or '.join(map(str, sizes))} pixels."
    columns = ["data set", "split", "used for", "images", "objects", "objects of each class", "fingerprint"]
    return [Table(columns, rows, caption, wide=True), *absent]


def _pretraining(found: Found, run: Run) -> Blocks:
    dino = found.dino
    if dino is None:
        return _missing("There is no finished pretraining.", "python -m cvexp task=dino")
    assert isinstance(dino.config.task, dino_task.Config)
    history = {name: run.history_of(dino.id, f"val/{name}") for name in MEASURES}
    steps, epochs = _epochs(history["loss"])
    if not epochs:
        return [Paragraph(f"The run {dino.id[:8]} has no validation after an epoch, so nothing is known of it.")]
    backbone, batch_size = dino.config.backbone.name, dino.config.loader.batch_size
    limit = dino.config.trainer.max_steps
    length = _count(epochs, "epoch") if limit is None else f"at most {_count(limit, 'step')}"
    text = (
        f"DINO trained {backbone} for {length} at batch size {batch_size} (run {dino.id[:8]}, seed "
        f"{dino.config.seed}). best.ckpt is of epoch {dino.metrics['best/epoch'] + 1:.0f}, chosen by "
        f"{dino.config.task.monitor}; its validation loss is {dino.metrics['best/loss']:.3f}. The loss alone proves "
        "nothing, so the table has the measures that would show a collapse."
    )
    if len(found.pretrainings) > 1:
        text += f" It is one of {len(found.pretrainings)} pretrainings that the segmenters start from."
    elif found.segmenters and not any("weights_from" in one.tags for one in found.segmenters):
        text += " No segmenter below starts from it."
    worse = _worse_features(dino, run)
    blocks: Blocks = [Paragraph(worse)] if worse else []
    blocks.append(Paragraph(text))
    if warning := dino.tags.get("warning", "").removesuffix(worse or "").removesuffix("; "):
        blocks.append(Paragraph(f"The run warned: {warning}."))
    rows = [
        [words, f"{history[name][0][1]:.3f}", f"{dino.metrics[f'best/{name}']:.3f}", f"{history[name][-1][1]:.3f}"]
        for name, words in MEASURES.items()
        if history[name]
    ]
    caption = (
        f"Pretraining, run {dino.id[:8]}. Losses of the two kinds of collapse: "
        f"{math.log(dino.config.task.out_dim):.3f} where all outputs are uniform, 0 where all are one and the same."
    )
    blocks.append(Table(["validation", "untrained", "best", "last"], rows, caption))
    loss, knn = history["loss"], history["knn_top1"]
    panels = {"loss (nats)": [curves.Curve("DINO", run.history_of(dino.id, "train/loss"), loss, steps)]}
    if knn:
        panels["kNN accuracy"] = [curves.Curve("DINO", [], knn, steps)]
    alt = f"Curves over {_count(epochs, 'epoch')}: validation loss from {loss[0][1]:.2f} to {loss[-1][1]:.2f}"
    caption = "Loss of training (thin: raw; dashed: smoothed) and validation (dots)"
    caption += f"{', and kNN accuracy' if knn else ''} (run {dino.id[:8]})."
    picture = Picture(png(curves.compare(panels, stacked=True)), alt, caption)
    return [*blocks, *_precision(dino, found.neighbors, run), picture, *_embeddings(dino, run), *_neighbors(found, run)]


def _embeddings(dino: FinishedRun, run: Run) -> Blocks:
    epochs = finished.embedded_epochs(run.client, dino.id)
    chosen = sorted({epochs[0], epochs[len(epochs) // 2], epochs[-1]})
    embeddings = {epoch: embedding.read_embedding(run.client, dino.id, epoch) for epoch in chosen}
    if not all(len(one.layout) for one in embeddings.values()):
        return [Paragraph(f"The run {dino.id[:8]} has no t-SNE: it has too few validation crops, or is an older one.")]
    alt = f"t-SNE of the validation crops at epochs {', '.join(map(str, chosen))}"
    caption = (
        f"t-SNE of {len(embeddings[chosen[0]].labels)} validation crops over the epochs (run {dino.id[:8]})"
        + ("; colours are classes, which the training never saw" if dino.classes else "")
        + ". The page explorer.html among the run's artifacts shows each crop."
    )
    return [Picture(png(embedding.draw_epochs(embeddings, dino.classes)), alt, caption, wide=True)]


def _precision(dino: FinishedRun, neighbors: FinishedRun | None, run: Run) -> Blocks:
    if neighbors is None:
        return _missing("Nearest neighbours were not looked for.", f"python -m cvexp task=neighbors run={dino.id}")
    precision = run.artifact_of(neighbors.id, "neighbors/precision.json", lambda path: json.loads(path.read_text()))
    if precision is None:
        return []
    rows = [
        [shorten(name), f"{row['crops']}", *(f"{row[key]:.3f}" for key in ("precision", "untrained", "chance"))]
        for name, row in [*precision["classes"].items(), ("all", precision["all"])]
    ]
    caption = (
        f"The share of the {precision['k']} nearest neighbours that are of a crop's own class, with the features "
        f"after epoch {precision['epoch']} and of the untrained backbone (run {neighbors.id[:8]})."
    )
    return [Table(["class", "crops", "trained", "untrained", "chance"], rows, caption)]


def _neighbors(found: Found, run: Run) -> Blocks:
    if found.neighbors is None:
        return []
    picture = run.artifact_of(found.neighbors.id, "neighbors/grid.png", read_png)
    if picture is None:  # it was asked for none
        return []
    alt = "A grid: in each row a query, then its nearest neighbours with classes and cosine distances"
    caption = "Some queries and their nearest neighbours among the validation crops, by cosine distance"
    return [Picture(picture, alt, f"{caption} (run {found.neighbors.id[:8]}).", wide=True)]


def _segmentation(found: Found, run: Run) -> Blocks:
    if not found.segmenters:
        command = "python -m cvexp -m task=multiclass,attention backbone.weights=null,latest:dino"
        return _missing("There is no finished segmentation.", command)
    rows, losses, mious = [], [], []
    for one in found.segmenters:
        method = one.config.task.name
        train, val = run.history_of(one.id, "train/loss"), run.history_of(one.id, "val/loss")
        steps, epochs = _epochs(val)
        names = ("miou", "miou_all", "pixel_accuracy", "presence_f1")
        scores = [f"{one.metrics[f'best/{name}']:.3f}" if f"best/{name}" in one.metrics else "none" for name in names]
        best = f"{one.metrics['best/epoch'] + 1:.0f} of {epochs}" if epochs else "none"
        rows.append([one.id[:8], method, shorten(one.start), f"{one.config.seed}", best, *scores])
        if not epochs:  # without validation nobody knows where its epochs end
            continue
        label = f"{method}, {one.start}"
        trained = run.history_of(one.id, "train/miou" if method == "multiclass" else "train/miou_asked")
        losses.append(curves.Curve(label, train, val, steps))
        mious.append(curves.Curve(label, trained, run.history_of(one.id, "val/miou"), steps))
    text = (
        "The method multiclass classifies every pixel at once; attention is asked for one class at a time, and its "
        "masks are joined by score, with background where none reaches one half."
    )
    columns = ["run", "method", "start", "seed", "best epoch", "mIoU"]
    columns += ["with background", "pixel accuracy", "presence F1"]
    of_table = (
        "Each run at its best epoch, as MLflow has it. mIoU is the mean over the classes of the IoU of all validation "
        "pixels; presence F1 tells how well it is said which classes are in an image."
    )
    of_curves = (
        "Loss and mIoU: validation with dots, training dashed (thin: raw values); a line for each run, runs that "
        "differ only in the seed in one colour. The losses of the two methods are not of one kind, and attention's "
        "training mIoU is of the masks that were asked for. The runs are those of the table."
    )
    alt = "Curves of loss and mIoU over the epochs, a line for each run"
    blocks: Blocks = [Paragraph(text), Table(columns, rows, of_table, wide=True)]
    if losses:
        drawn = png(curves.compare({"loss (nats)": losses, "mIoU": mious}))
        blocks.append(Picture(drawn, alt, of_curves, wide=True))
    blocks += _attention(found.segmenters, run)
    for absent in (task for task in SEGMENTERS if task not in {one.config.task.name for one in found.segmenters}):
        blocks += _missing(f"There is no finished run of {absent}.", f"python -m cvexp task={absent}")
    return blocks


def _attention(segmenters: Sequence[FinishedRun], run: Run) -> Blocks:
    """Pictures of the best run of the attention."""
    every = [one for one in segmenters if one.config.task.name == "attention"]
    blocks: Blocks = []
    for best in sorted(every, key=lambda one: -one.metrics.get("best/miou", 0))[:1]:
        for name, words in (
            ("one_after_another", "One image, of which every class is asked, one after another"),
            ("heads", "Attention of each head for a class that is there and for one that is not"),
        ):
            picture = run.artifact_of(best.id, f"pictures/{name}.png", read_png)
            if picture is not None:
                caption = f"{words} (run {best.id[:8]}, best checkpoint)."
                blocks.append(Picture(picture, words, caption, wide=True, screen_only=name == "heads"))
    return blocks


def _comparison(found: Found, run: Run) -> Blocks:
    if found.comparison is None or found.comparison_run is None:
        return _missing("The methods have not been compared, which takes two runs.", "python -m cvexp task=compare")
    names, rows = compared.rows(found.comparison)
    turned = [[name, *cells] for name, *cells in zip(names, *rows, strict=True)]
    method, start, *turned = turned
    columns = [
        "",
        *(
            f"{a} {b}" if b.startswith("always") else f"{a} from {b}"
            for a, b in zip(method[1:], start[1:], strict=True)
        ),
    ]
    caption = (
        f"{len(found.comparison.images)} validation images, evaluated with one code in the run "
        f"{found.comparison_run.id[:8]}: IoU of each class and their mean, mean ± standard deviation over the seeds, "
        "whose runs the table of the segmenters names. Times are medians with the first and third quartile. Always "
        "means that one label is predicted everywhere."
    )
    blocks: Blocks = [Table(columns, turned, caption, wide=len(columns) > 4)]
    level = f"{found.comparison.confidence:.0%} interval"
    differences = [
        [
            shorten(name, 60),
            f"{pairs}",
            f"{one.difference:+.3f}",
            f"{one.low:+.3f} to {one.high:+.3f}",
            _verdict(found.comparison, one),
        ]
        for name, pairs, one in found.comparison.differences
    ]
    caption = (
        f"Differences of mIoU (run {found.comparison_run.id[:8]}). The intervals are of a paired bootstrap over the "
        "images: they tell what other images would change. What other seeds would change, only the standard deviations "
        "tell."
    )
    if differences:
        blocks.append(Table(["difference", "pairs", "mIoU", level, "zero is"], differences, caption))
    else:
        blocks.append(Paragraph(compared.NO_PAIRS))
    picture = run.artifact_of(found.comparison_run.id, "comparison/examples.png", read_png)
    if picture is not None:
        alt = "The best, median and worst validation image: image, label, predictions, attention"
        caption = "Best, median and worst image, by the mean mIoU of the runs shown"
        blocks.append(Picture(picture, alt, f"{caption} (run {found.comparison_run.id[:8]}).", wide=True))
    return blocks


def _verdict(comparison: Comparison, interval: Interval) -> str:
    if len(comparison.images) < compared.ENOUGH_IMAGES:
        return "not judged: too few images"
    return "outside" if interval.is_clear else "within"


def _epochs(val: curves.Series) -> tuple[int, int]:
    """How many steps an epoch has, and how many epochs were trained: validation comes after each."""
    after = [step for step, _ in val if step > 0]
    return (after[0], len(after)) if after else (0, 0)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _exact(run: FinishedRun, found: Found) -> str:
    """A run's command, in which "the newest runs" are those that it took."""
    command = run.tags["command"]
    if run.config.task.name == "neighbors" and run.config.run is None:
        command += f" run={run.tags['of_run']}"
    if run.config.task.name == "compare" and run.config.runs is None and found.comparison is not None:
        command += f" 'runs=[{', '.join(one.run_id for one in found.comparison.evaluated)}]'"
    return command


def _repeat(found: Found) -> Blocks:
    every = [*found.pretrainings, found.neighbors, *found.segmenters, found.comparison_run]
    runs = [one for one in every if one is not None]
    by_command: dict[str, list[FinishedRun]] = {}
    for one in runs:
        by_command.setdefault(_exact(one, found), []).append(one)
    rows = [[", ".join(f"{one.name} ({one.id[:8]})" for one in made), cmd] for cmd, made in by_command.items()]
    tags = [item for one in runs for item in one.tags.items()]
    versions = sorted({(key.removeprefix("version."), value) for key, value in tags if key.startswith("version.")})
    said = "Versions: " + ", ".join(f"{name} {value}" for name, value in versions)
    commits = sorted({value[:12] for key, value in tags if key == "mlflow.source.git.commit"}) or ["unknown"]
    changed = " (of some runs with changes that were not committed)" if ("git.dirty", "true") in tags else ""
    said += f". Commit: {', '.join(commits)}{changed}."
    caption = (
        "The commands, given at the repository's root, and the runs that they made. MLflow has all settings of each."
    )
    return [Table(["runs", "command"], rows, caption, wide=True, code=True), Paragraph(said)]
