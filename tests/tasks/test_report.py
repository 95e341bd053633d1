"""The report of finished runs, end to end on small data."""

import io
import json
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import ConsoleMessage, Request, sync_playwright
from pypdf import PdfReader

from cvexp.metrics import iou
from cvexp.report.comparison import NO_PAIRS
from cvexp.report.document import Document, Paragraph, Picture, Section, Table, html
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, runs, store

pytestmark = pytest.mark.slow  # most of these tests train, or start servers or processes


QUICK = ["trainer.max_epochs=1", "trainer.max_steps=1"]
SMALL = [setting for setting in TINY_SEGMENTATION if not setting.startswith(("trainer.max", "dataset.val"))]
SMALL += ["dataset.val_images=6"]


def page() -> str:
    return Path(store().download_artifacts(runs()[0].info.run_id, "report/report.html")).read_text()


def text(page: str) -> str:
    """The words of a page, without its markup and style."""
    return unescape(re.sub(r"\s+", " ", re.sub(r"<style.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)))


def cells(html: str) -> list[list[str]]:
    """The rows of all tables."""
    rows = re.findall(r"<tr>(.*?)</tr>", html, flags=re.DOTALL)
    return [[unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, flags=re.DOTALL)] for row in rows]


def test_the_whole_story(cvexp: Callable[..., Outcome]) -> None:
    """A pretraining, both segmenters from it, neighbors, the comparison, and the report of them."""
    same_data = [setting for setting in SMALL if not setting.startswith("task.")]
    dino = [setting for setting in TINY if setting.startswith("task.")]
    assert cvexp("task=dino", *same_data, *dino, "trainer.max_epochs=1").code == 0
    for task in ("multiclass", "attention"):
        assert cvexp(f"task={task}", *SMALL, *QUICK, "backbone.weights=latest:dino").code == 0
    assert cvexp("task=neighbors", "task.k=2").code == 0
    outcome = cvexp("task=compare", "task.samples=200", "task.timed_images=2", "task.pictured_images=1")
    assert outcome.code == 0, outcome.message
    outcome = cvexp("task=report", "task.title='One * title # of $ mine'")
    assert outcome.code == 0, outcome.message
    check_numbers()
    check_pdf()
    attention = next(run for run in runs() if run.data.tags["task"] == "attention")
    store().log_metric(attention.info.run_id, "best/miou", 0.777, step=99)
    assert cvexp("task=report").code == 0
    (row,) = (row for row in cells(page()) if row and row[0] == attention.info.run_id[:8])
    assert row[-4] == "0.777"
    if shutil.which("chromium"):  # else the next test tells
        assert check_in_browser(Path("outputs/report.html")) == 0


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium: apt install chromium")
def test_nothing_sticks_out_of_a_page(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (1500, 800), "teal").save(content, "PNG")
    picture = Picture(content.getvalue(), "what is shown", "What it is.", wide=True)
    table = Table([f"a column's name {i}" for i in range(12)], [["0.123 ± 0.001"] * 12], "Numbers.", wide=True)
    commands = Table(["runs", "command"], [["a-run (01234567)", f"python -m cvexp run={'0' * 500}"]], "", code=True)
    blocks: list[Paragraph | Table | Picture] = [
        picture,
        table,
        commands,
        Paragraph("x" * 500),
        Paragraph("python -m cvexp " * 20, code=True),
    ]
    path = tmp_path / "page.html"
    path.write_text(html(Document("A title", ["In short."], [Section("Section", blocks)])))
    assert check_in_browser(path) == 1  # the table of twelve columns


def check_numbers() -> None:
    """They are those of MLflow, and of the counts."""
    _, comparison, neighbors, attention, multiclass, dino = runs()
    html = page()
    rows = cells(html)
    for run in (attention, multiclass):
        (row,) = (row for row in rows if row and row[0] == run.info.run_id[:8])
        names = ("miou", "miou_all", "pixel_accuracy", "presence_f1")
        assert row[-4:] == [f"{run.data.metrics[f'best/{name}']:.3f}" for name in names]
    saved = np.load(store().download_artifacts(comparison.info.run_id, "comparison/counts.npz"))
    methods = [store().get_run(run_id).data.tags["task"] for run_id in saved["run_ids"]]
    assert re.findall(r'<th [^>]*class="number">(\w+) from dino</th>', html) == methods
    (row,) = (row for row in rows if row and row[0] == "mIoU")
    assert row[1:3] == [f"{iou.mean_iou(counts[:, 1:].sum(axis=0)):.3f}" for counts in saved["counts"]]
    (loss,) = next(row for row in rows if row and row[0].startswith("validation loss"))[2:]
    assert loss == f"{dino.data.metrics['best/loss']:.3f}"
    said = text(html)
    for run in (comparison, neighbors, attention, multiclass, dino):
        assert run.info.run_id[:8] in said
        assert run.data.tags["command"] in said
    assert dino.data.tags["data.val.fingerprint"][:8] in said
    assert f"torch {dino.data.tags['version.torch']}" in said
    assert "too few images to judge" in said  # of six
    images = re.findall(r'<img src="data:image/png;base64,[^"]+" alt="([^"]+)"', html)
    assert len(images) == 8
    assert all(len(words) > 20 for words in images)


def check_pdf() -> None:
    """It says the same, and is short."""
    content = Path("outputs/report.pdf").read_bytes()
    assert content == Path(store().download_artifacts(runs()[0].info.run_id, "report/report.pdf")).read_bytes()
    pages = PdfReader(io.BytesIO(content)).pages
    assert 2 <= len(pages) <= 3
    words = re.sub(r"\s+", "", "".join(page.extract_text() for page in pages))
    assert "One*title#of$mine" in words
    numbers = {cell for row in cells(page()) for cell in row if re.fullmatch(r"[01]\.\d{3}", cell)}
    assert len(numbers) > 10
    assert all(number in words for number in numbers)


def test_what_is_missing_is_named_with_its_command(cvexp: Callable[..., Outcome]) -> None:
    assert cvexp("task=report").code == 0
    said = text(page())
    for command in ("task=dino", "task=multiclass,attention backbone.weights=null,latest:dino", "task=compare"):
        assert f"python -m cvexp {'-m ' if ',' in command else ''}{command}" in said
    assert cvexp(*TINY, "trainer.max_steps=1").code == 0
    run_id = runs()[0].info.run_id
    assert cvexp("task=report").code == 0
    assert f"python -m cvexp task=neighbors run={run_id}" in text(page())


def test_commands_name_the_store(cvexp: Callable[..., Outcome]) -> None:
    assert cvexp("task=report", 'tracking.folder="my runs"', "tracking.experiment=mine").code == 0
    page = Path("my runs/report.html").read_text()
    assert "python -m cvexp task=compare 'tracking.folder=\"my runs\"' tracking.experiment=mine" in text(page)


def test_a_segmenter_may_start_from_another(cvexp: Callable[..., Outcome]) -> None:
    """Which is no pretraining to report of; and of the other method there is no run."""
    start: list[str] = []
    for _ in range(2):
        assert cvexp("task=multiclass", *SMALL, *QUICK, *start).code == 0
        start = [f"backbone.weights=runs:/{runs()[0].info.run_id}/checkpoints/best.ckpt"]
    outcome = cvexp("task=report")
    assert outcome.code == 0, outcome.message
    said = text(page())
    for command in ("python -m cvexp task=dino", "python -m cvexp task=attention", "python -m cvexp task=compare"):
        assert command in said


def check_in_browser(path: Path) -> int:
    """Nothing is missing, nothing sticks out, and nothing is asked of a network.

    Returns:
        How many tables and figures must be scrolled in a window of 1300 px.
    """
    wrong: list[str] = []

    def check_request(request: Request) -> None:
        if not request.url.startswith(("file:", "data:")):
            wrong.append(request.url)

    def check_message(message: ConsoleMessage) -> None:
        if message.type == "error":
            wrong.append(message.text)

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width in (360, 1300):
            tab = browser.new_page(viewport={"width": width, "height": 800})
            tab.on("request", check_request)
            tab.on("console", check_message)
            tab.on("pageerror", lambda error: wrong.append(str(error)))
            tab.goto(path.absolute().as_uri())
            assert tab.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 100)")
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            num_cut = sum(bool(whole > visible) for visible, whole in tab.evaluate(BOXES))
            assert num_cut or width > 360
            assert {tuple(pair) for pair in tab.evaluate(SCROLLED)} == {(0, 0)}
        browser.close()
    assert wrong == []
    return num_cut


# The visible and the whole width of each table and figure.
BOXES = "[...document.querySelectorAll('.scroll')].map(box => [box.clientWidth, box.scrollWidth])"
# After each table has been scrolled to its end: by how much it misses the end, and its first column the left edge.
SCROLLED = """[...document.querySelectorAll('.scroll:has(table)')].map(box => {
    box.scrollLeft = 10000;
    const first = box.querySelector('td').getBoundingClientRect().left - box.getBoundingClientRect().left;
    return [Math.round(box.scrollWidth - box.clientWidth - box.scrollLeft), Math.round(first)];
})"""


def in_turn(values: list[float]) -> Callable[..., float]:
    """Gives the values one after another, whatever it is called with."""
    remaining = iter(values)
    return lambda *_: next(remaining)


WORSE = "Pretraining made the features worse: kNN accuracy"


@pytest.mark.parametrize(
    ("accuracies", "said"),
    [
        ([1.0, 0.25, 0.125], f"{WORSE} 0.250 at the selected epoch and 0.125 at the last epoch, 1.000 untrained."),
        ([0.614, 0.614, 0.614], ""),
    ],
)
def test_worse_features_are_stated_first_by_the_run_neighbors_and_the_report(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, accuracies: list[float], said: str
) -> None:
    monkeypatch.setattr("cvexp.training.pretraining.knn_top1", in_turn(accuracies))
    outcome = cvexp(*TINY, "task.monitor=val/knn_top1")
    assert outcome.code == 0, outcome.message
    pretraining = runs()[0]
    above, _, _ = outcome.message.partition(f"run {pretraining.info.run_id}")  # the title of the closing table
    assert above.endswith(f"{said}\n") if said else WORSE not in outcome.message
    assert pretraining.data.tags.get("warning", "") == said
    outcome = cvexp("task=neighbors", "task.k=2")
    assert outcome.code == 0, outcome.message
    assert outcome.message.startswith(f"{said}\n") if said else WORSE not in outcome.message
    path = store().download_artifacts(runs()[0].info.run_id, "neighbors/precision.json")
    assert json.loads(Path(path).read_text())["warning"] == (said or None)
    assert cvexp("task=report").code == 0
    header, _, body = page().partition("<nav")
    assert ": the highest val/knn_top1. It has" in text(body)
    assert "The setting task.monitor=val/knn_top1 selected it" in text(body)
    assert "measure untrained selected last" in text(body)
    with_run = f"{said.removesuffix('.')} (run {pretraining.info.run_id[:8]})."
    assert (with_run in text(header)) == bool(said)
    assert text(body).count(WORSE) == bool(said)  # once, not again as the run's warning
    assert (WORSE in text(body).partition("The method dino pretrained")[0]) == bool(said)


def test_worse_features_are_stated_beside_a_collapse(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cvexp.training.pretraining.knn_top1", in_turn([1.0, 0.25]))
    monkeypatch.setattr("cvexp.metrics.collapse.teacher_warnings", lambda *_: [])
    monkeypatch.setattr("cvexp.metrics.collapse.feature_warnings", lambda *_: ["all is one"])
    outcome = cvexp(*TINY, "trainer.max_steps=2")
    worse = f"{WORSE} 0.250 at the last epoch, 1.000 untrained."
    warning = runs()[0].data.tags["warning"]
    assert warning == f"step 2: collapse: all is one; {worse}"
    assert f"{warning}\nrun {runs()[0].info.run_id}\n" in outcome.message  # at the end, too
    outcome = cvexp("task=multiclass", *SMALL, *QUICK, "backbone.weights=latest:dino")
    assert f"from whose weights this one starts, warned: {warning}\n" in outcome.message
    assert cvexp("task=report").code == 0
    assert "The run warned: step 2: collapse: all is one." in text(page())
    assert text(page()).count(worse.removesuffix(".")) == 2  # in the summary and in its section
    assert "best.ckpt, is from epoch 1 of 1: the last one. It has" in text(page())
    assert "The last epoch is the default because" in text(page())


@pytest.mark.parametrize(
    ("trained", "first"),
    [
        (
            [("multiclass", 0), ("multiclass", 1)],
            "On the 6 validation images, multiclass from random weights has a mean mIoU",
        ),
        ([("multiclass", 0), ("attention", 1)], "Of 2 combinations of method and initial weights,"),
    ],
)
def test_seeds_of_one_method_and_seeds_that_differ_between_methods(
    cvexp: Callable[..., Outcome], trained: list[tuple[str, int]], first: str
) -> None:
    for task, seed in trained:
        assert cvexp(f"task={task}", *SMALL, *QUICK, f"seed={seed}").code == 0
    assert cvexp("task=report").code == 0  # the comparison is missing
    outcome = cvexp("task=compare", "task.samples=200", "task.timed_images=2", "task.pictured_images=1")
    assert outcome.code == 0, outcome.message
    assert NO_PAIRS in " ".join(outcome.message.split())
    outcome = cvexp("task=report")
    assert outcome.code == 0, outcome.message
    said = text(page())
    assert first in said
    assert NO_PAIRS in said
    assert "Always predicting" in said.partition("Data")[0]
    assert "always background" in said
    (row,) = (row for row in cells(page()) if row and row[0].startswith("ms/image"))
    assert re.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\)", row[1])


def test_runs_that_did_not_record_their_data_are_named(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cvexp(*TINY, "trainer.max_steps=1").code == 0
    run_id = runs()[0].info.run_id
    for task in ("multiclass", "attention"):
        assert cvexp(f"task={task}", *SMALL, *QUICK).code == 0
    monkeypatch.setattr("cvexp.tracking.finished._recorded_data", lambda run: {})
    monkeypatch.setattr("cvexp.tracking.finished.FinishedRun.classes", [])
    outcome = cvexp("task=report")
    assert outcome.code == 0, outcome.message
    assert f"3 runs did not record the data: {run_id[:8]}" in text(page())
    assert "did not record its data" in cvexp("task=compare").message
    store().delete_tag(run_id, "data.val.fingerprint")
    assert f"run: {run_id} did not record its data" in cvexp("task=neighbors").message
