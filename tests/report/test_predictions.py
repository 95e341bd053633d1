import numpy as np
import pytest

from cvexp.report.predictions import SheetRow, contact_sheet, heat, overlay, thumbnail

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
    assert len(figure.axes) == 9
    assert figure.get_figheight() < 15
