"""Figures and pages of classes with any name: nothing is lost, nothing is interpreted, nothing sticks out."""

import io
import re
import warnings
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from cvexp import console
from cvexp.metrics.neighbors import nearest_neighbors
from cvexp.report import embedding, neighbors
from cvexp.report import segmentation as pictures
from cvexp.report.embedding import Embedding
from cvexp.report.explorer import page
from cvexp.report.neighbors import SIDE, Query
from cvexp.report.segmentation import Example
from cvexp.report.style import PAGE, fitting
from cvexp.report.tiles import GAP

ODD = ["car [parked]", "a|b", "[red]x[/]", "_a_", "$x$", "R&D", "<b>x</b>", ":cat:", "🚗 漢", "n" * 300]
COUNT = 40


@pytest.fixture(autouse=True)
def _warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def examples() -> list[Example]:
    random = np.random.default_rng(0)
    found = []
    for _ in range(3):
        labels = random.integers(0, len(ODD), (48, 64)).astype(np.uint8)  # the last class is absent
        labels[:5] = 255
        found.append(
            Example(
                image=random.random((48, 64, 3)).astype(np.float32),
                labels=labels,
                predicted=labels,
                presence=random.random(len(ODD)).astype(np.float32),
                probability=random.random((len(ODD), 48, 64)).astype(np.float16),
                attention=torch.rand(len(ODD), 2, 4, 4),
                padded_size=(64, 64),
            )
        )
    return found


def embedded() -> Embedding:
    random = np.random.default_rng(0)
    labels = (np.arange(COUNT) % len(ODD)).astype(np.int16)
    features, layout = random.normal(size=(COUNT, 8)), random.normal(size=(COUNT, 2))
    return Embedding(
        features.astype(np.float32),
        labels,
        np.array(["a.jpg"] * COUNT),
        np.zeros((COUNT, 4), np.float32),
        layout.astype(np.float32),
    )


def texts(figure: Figure) -> set[str]:
    """All words, once they are drawn; the legend lies within the figure, and its entries are all there."""
    FigureCanvasAgg(figure).draw()
    for legend in figure.legends:
        box = legend.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.x1
    in_axes = {text.get_text() for at in figure.axes for text in (at.title, at.xaxis.label, *at.texts)}
    return in_axes | {text.get_text() for legend in figure.legends for text in legend.get_texts()}


def test_pictures_of_segmentations() -> None:
    shown = examples()
    legend = {*ODD[:-2], "□ □", f"{'n' * 16}…{'n' * 7}", "ignored"}
    assert legend <= texts(pictures.predictions(shown, ODD, "untrained"))
    fitted = {fitting(name, PAGE / (1 + len(ODD)) - GAP) for name in ODD}
    assert len(fitted) == len(ODD)
    assert fitted <= texts(pictures.attention(shown, ODD, "untrained"))
    assert legend < texts(pictures.heads([("best", shown[0])], ODD, "heads"))
    texts(pictures.one_after_another(shown[0], ODD, "queries"))


def test_pictures_of_embeddings() -> None:
    one = embedded()
    index = SimpleNamespace(label=one.labels, classes=tuple(ODD))
    for figure in (
        embedding.draw(one.layout, index, list(range(COUNT)), 3),  # type: ignore[arg-type]
        embedding.draw_epochs({0: one, 1: one}, ODD),
    ):
        assert {*ODD[:-2], "□ □"} <= texts(figure)


def test_pictures_of_neighbors() -> None:
    one, crops = embedded(), {i: Image.new("RGB", (30, 30), "teal") for i in range(COUNT)}
    queries = [Query(f"{i}{'q' * 90}.jpg", i, crops[0]) for i in range(len(ODD))]
    found = nearest_neighbors(one.features, one.features[: len(ODD)], 3, np.arange(len(ODD)))
    captions = texts(neighbors.draw(queries, found, crops, one.labels, ODD, 2))
    name, file = next(caption for caption in captions if "\n0q" in caption).split("\n")
    assert name == fitting(ODD[0], SIDE[1] - 0.04)
    assert re.fullmatch("0q+….*pg", file)
    assert "🚗 漢" not in " ".join(captions)


def test_the_table_of_neighbors_shows_names_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(console.console, "_file", shown)
    monkeypatch.setattr(console.console, "_width", 120)
    monkeypatch.setattr(console.console, "_height", 40)
    recorder = SimpleNamespace(log_json=lambda *_: None, log_metrics=lambda *_, **__: None)
    share = np.full(COUNT, 0.5)
    labels = embedded().labels
    neighbors.log_precision(recorder, ODD, labels, share, share, 3, 1, None)  # type: ignore[arg-type]
    for name in [*ODD[:-1], f"{'n' * 26}…{'n' * 13}"]:
        assert f" {name} " in shown.getvalue()


def test_the_explorer_has_no_long_names() -> None:
    html = page({0: embedded()}, [Image.new("RGB", (30, 30))] * COUNT, ODD)
    assert "n" * 41 not in html
    assert "<b>x</b>" not in html
    assert '"car [parked]"' in html
