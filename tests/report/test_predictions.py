import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from cvexp.report.overlays import heat, label_colors, overlay
from cvexp.report.predictions import SheetRow, contact_sheet, thumbnail
from cvexp.report.tiles import Tile, draw_tiles

IMAGE = np.random.RandomState(0).randint(0, 256, (40, 60, 3), dtype=np.uint8)


def test_the_overlay_changes_only_pixels_of_classes_and_towards_their_color() -> None:
    labels = np.zeros((40, 60), np.uint8)
    labels[5:20, 10:30] = 2
    mixed = np.array(overlay(IMAGE, labels))
    np.testing.assert_array_equal(mixed[labels == 0], IMAGE[labels == 0])
    expected = 0.45 * IMAGE[labels == 2] + 0.55 * np.array([0xE6, 0x9F, 0x00])
    np.testing.assert_allclose(mixed[labels == 2], expected, atol=1)


def test_the_heat_map_is_brightest_where_the_weights_are_largest() -> None:
    weights = np.zeros((40, 60), np.float32)
    weights[:20] = 0.01
    colored = np.array(heat(np.full((40, 60, 3), 128, np.uint8), weights)).astype(int)
    assert colored[:20].sum(axis=-1).min() > colored[20:].sum(axis=-1).max() + 100


@pytest.mark.parametrize("shape", [(40, 60), (3, 500), (500, 1), (1, 1)])
def test_thumbnails_keep_the_aspect_ratio_and_never_invent_labels(shape: tuple[int, int]) -> None:
    labels = np.random.RandomState(0).choice([0, 7, 200], shape).astype(np.uint8)
    small = thumbnail(labels, 32)
    assert max(small.shape) == min(32, max(shape))
    assert set(np.unique(small)) <= {0, 7, 200}
    assert thumbnail(np.zeros((*shape, 3), np.uint8), 32).shape[:2] == small.shape


def test_the_sheet_shows_images_of_any_shape_and_any_class_names() -> None:
    rows = [
        SheetRow("a $x$ & <b>.jpg", np.zeros((*shape, 3), np.uint8), np.ones(shape, np.uint8), weights, "R&D")
        for shape in ((256, 200), (3, 256), (256, 2))
        for weights in (np.ones(shape, np.float32),)
    ]
    figure = contact_sheet(rows, ["R&D", "it's <b>"], "predictions")
    figure.canvas.draw()
    (ax,) = figure.axes
    assert {"a $x$ & <b>.jpg", "query:\nR&D"} <= {text.get_text() for text in ax.texts}
    assert figure.get_figheight() < 15


def test_a_label_map_has_the_colors_of_its_classes_and_lines_where_it_is_ignored() -> None:
    labels = np.repeat(np.array([[0, 1, 2, 255]], np.uint8), 3, axis=0)
    colors = label_colors(labels)
    columns = np.split(colors, 4, axis=1)
    assert colors.shape == (144, 192, 3)
    for column, color in zip(columns[:3], ("#E8E8E8", "#0072B2", "#E69F00"), strict=True):
        assert {tuple(pixel) for pixel in column.reshape(-1, 3)} == {tuple(bytes.fromhex(color[1:]))}
    is_black = (columns[3] == 0).all(axis=-1)
    assert (columns[3][~is_black] == 255).all()
    assert 0.2 < is_black.mean() < 0.3
    assert label_colors(np.zeros((300, 200), np.uint8)).shape == (300, 200, 3)


def test_the_names_of_flat_rows_do_not_overlap() -> None:
    panorama = Tile(np.zeros((3, 60, 3), np.uint8))
    figure = draw_tiles([[panorama]] * 2, ["image"], "title", names=["worst\nmIoU 0.12"] * 2)
    FigureCanvasAgg(figure).draw()
    first, second = (text.get_window_extent() for text in figure.axes[0].texts if "mIoU" in text.get_text())
    assert second.y1 < first.y0
