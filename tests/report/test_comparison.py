"""The comparison's tables and sentences, from counts."""

import io
import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from markdown_it import MarkdownIt

from cvexp.console import console
from cvexp.metrics import iou
from cvexp.metrics.bootstrap import Interval
from cvexp.metrics.comparison import Comparison, Difference, Evaluated, Group
from cvexp.report import comparison as report

ODD = ["car [parked]", "a|b", "[red]x[/red]", "R&D", "_a_", "$x$", "<b>x</b>", ":cat:", "🚗", 'q"\\', "n" * 300]


class Recorder:
    """Keeps what a run would record."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self.values: dict[str, Any] = {}

    def log_metrics(self, metrics: object, step: int) -> None: ...

    def log_file(self, source: object, folder: str) -> None: ...

    def log_text(self, text: str, path: str) -> None:
        self.texts[path] = text

    def log_json(self, values: dict[str, Any], path: str) -> None:
        self.values[path] = json.loads(json.dumps(values))


def evaluated(method: str, counts: iou.Counts, seed: int = 0, times: tuple[float, ...] = (1, 2, 3, 4, 5)) -> Evaluated:
    return Evaluated(f"{method}{seed}", method, "random", seed, counts, times, 1_000_000)


def mostly_background(classes: int, images: int = 4) -> iou.Counts:
    """875 of 1000 pixels are background, the others of the classes in turn; the prediction finds the wrong ones."""
    counts = np.zeros((images, 1 + classes, 3), dtype=np.int64)
    for image, own in enumerate(counts):
        label = 1 + image % classes
        own[0] = (872, 1000, 875)
        own[label] = (0, 0, 125)
    return counts


def compare(*runs: Evaluated, classes: list[str], differences: tuple[Difference, ...] = ()) -> Comparison:
    return Comparison(classes, [f"{i}.jpg" for i in range(len(runs[0].counts))], runs, differences, 0.95)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What the terminal shows, 300 characters wide."""
    shown = io.StringIO()
    monkeypatch.setattr(console, "_file", shown)
    monkeypatch.setattr(console, "_width", 300)
    monkeypatch.setattr(console, "_height", 40)
    return shown


def test_constant_predictions_have_every_score_and_what_they_beat_is_stated(terminal: io.StringIO) -> None:
    comparison = compare(evaluated("multiclass", mostly_background(2)), classes=["cat", "dog"])
    columns, rows = report.rows(comparison)
    of_class, of_background = (dict(zip(columns, row, strict=True)) for row in rows[-2:])
    assert (of_class["initial weights"], of_background["initial weights"]) == ("always cat", "always background")
    assert of_background["pixel accuracy"] == "0.875"
    assert [of_background[key] for key in ("mIoU", "cat", "dog", "presence F1", "mIoU per image")] == ["0.000"] * 5
    assert of_class["cat"] == "0.062"  # 2 x 125 of 4 x 1000 pixels
    assert of_class["mIoU"] == "0.031"
    assert of_class["presence F1"] == "0.500"
    sentence = "Always predicting background has pixel accuracy 0.875, no less than multiclass from random (0.872)."
    report.print_comparison(comparison)
    assert sentence in terminal.getvalue()
    assert "always background" in terminal.getvalue()
    assert f"* {sentence}" in report.markdown(comparison)
    recorder = Recorder()
    report.log_comparison(recorder, comparison)  # type: ignore[arg-type]
    said = recorder.values["comparison/comparison.json"]
    assert sentence in said["warnings"]
    assert [one["label"] for one in said["constants"]] == ["cat", "background"]
    assert said["constants"][1]["pixel_accuracy"] == 0.875
    assert said["constants"][1]["iou/background"] == 0.875
    scores = {"miou", "miou_all", "pixel_accuracy", "miou_image", "presence_f1", "iou/background", "iou/cat", "iou/dog"}
    assert set(said["constants"][0]) == scores | {"label"}


@pytest.mark.parametrize("split", ["val", "test"])
def test_scores_on_the_validation_images_are_called_optimistic(
    split: str, terminal: io.StringIO, tmp_path: Path
) -> None:
    comparison = replace(compare(evaluated("multiclass", mostly_background(1)), classes=["cat"]), split=split)
    recorder = Recorder()
    report.log_comparison(recorder, comparison)  # type: ignore[arg-type]
    report.print_comparison(comparison)
    values = recorder.values["comparison/comparison.json"]
    texts = (terminal.getvalue(), recorder.texts["comparison/comparison.md"])
    assert all(f"4 {'validation' if split == 'val' else 'test'} images" in text for text in texts)
    for text in (*texts, " ".join(values["warnings"])):
        assert (report.OPTIMISTIC in text) == (split == "val")
    path = tmp_path / "comparison.json"
    counts = {run.run_id: run.counts for run in comparison.evaluated}
    path.write_text(json.dumps(values))
    assert report._read_comparison([], counts, path).split == split
    path.write_text(json.dumps({key: value for key, value in values.items() if key != "split"}))
    assert report._read_comparison([], counts, path).split == "val"  # as recorded before there were test splits


def test_a_method_above_both_constants_is_not_warned_of() -> None:
    counts = mostly_background(2)
    counts[..., 0] = counts[..., 1] = counts[..., 2]
    assert report.constant_warnings(compare(evaluated("attention", counts), classes=["cat", "dog"])) == []


def test_times_are_shown_with_their_quartiles_over_all_runs_of_a_group() -> None:
    counts = mostly_background(1)
    runs = [evaluated("multiclass", counts, 0, (10, 20, 30)), evaluated("multiclass", counts, 1, (40, 50, 60))]
    columns, (row, *_) = report.rows(compare(*runs, classes=["cat"]))
    assert row[columns.index("ms/image (quartiles)")] == "35.0 (22.5 to 47.5)"
    assert row[columns.index("seeds")] == "0, 1"


def test_where_nothing_can_be_paired_that_is_stated(terminal: io.StringIO) -> None:
    comparison = compare(*(evaluated("multiclass", mostly_background(1), seed) for seed in (0, 1)), classes=["cat"])
    report.print_comparison(comparison)
    assert report.NO_PAIRS in terminal.getvalue()
    assert "differences in mIoU" not in terminal.getvalue()
    assert report.NO_PAIRS in report.markdown(comparison)


def test_odd_names_are_shown_as_they_are(terminal: io.StringIO) -> None:
    start = "my|model [1].pth"
    run = Evaluated("0123", "multiclass", start, 0, mostly_background(len(ODD)), (1.0, 2.0), 1_000_000)
    difference = Difference(Group("multiclass", start), Group("multiclass", "random"), 1, Interval(0.1, 0.05, 0.2))
    comparison = compare(run, classes=ODD, differences=(difference,))
    report.print_comparison(comparison)
    for name in ODD[:-1]:
        assert name in terminal.getvalue()
    assert start in terminal.getvalue()
    assert "n" * 41 not in terminal.getvalue()
    page = report.markdown(comparison)
    html = MarkdownIt().enable("table").render(page)
    cells = [unescape(cell) for cell in re.findall(r"<th>(.*?)</th>", html)]
    assert cells[4 : 4 + len(ODD) - 1] == ODD[:-1]
    assert len(cells) == 4 + len(ODD) + 5
    assert f"<li>{start} - random, multiclass: +0.100 [+0.050, +0.200]" in html
