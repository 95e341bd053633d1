"""Segmentation of images of any size, with networks that are not trained."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from cvexp.composition import compose
from cvexp.data.augment.labeled import fit, fit_image
from cvexp.errors import UserError
from cvexp.inference.segmenter import Segmenter
from cvexp.models.segmenters import Scores, SegmentationNetwork
from tests.models.test_models import make_attention_segmenter, make_multiclass_segmenter

CLASSES = ["R&D", "it's <b>", "car (parked)", "d", "e"]
SIZE = 64


def make(method: str, **settings: Any) -> Segmenter:
    torch.manual_seed(0)
    model: SegmentationNetwork = (
        make_attention_segmenter("decoder") if method == "attention" else make_multiclass_segmenter("deeplabv3plus")
    )
    with torch.no_grad():  # all classes occur
        torch.nn.init.normal_(model.classifier.weight, std=2.0)  # type: ignore[union-attr, arg-type]
        model.train()(
            torch.randn(4, 3, SIZE, SIZE), *([torch.arange(5).expand(4, -1)] if method == "attention" else [])
        )
    return Segmenter(model, compose(f"task={method}", f"dataset.image_size={SIZE}"), CLASSES, torch.device("cpu"))


@pytest.fixture(params=["multiclass", "attention"])
def segmenter(request: pytest.FixtureRequest) -> Segmenter:
    return make(request.param)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image with large patches of color."""
    small = np.random.RandomState(seed).randint(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


SHAPES = [(64, 64), (64, 40), (30, 64), (200, 90), (7, 31), (500, 1), (1, 1)]


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_results_have_the_size_of_the_image_and_follow_from_its_square(
    segmenter: Segmenter, width: int, height: int
) -> None:
    image = photo(width, height)
    got = segmenter.predict(image)
    assert got.labels.shape == (height, width)
    assert got.labels.dtype == np.uint8
    assert got.probability().shape == (5, height, width)
    square = fit_image(torch.from_numpy(np.array(image)), SIZE)[None]
    with torch.inference_mode():
        scores, attention = segmenter.model.scores(segmenter.normalize(square))
    rows, columns = fit((height, width), SIZE)
    scores = F.interpolate(scores[:, :, :rows, :columns], (height, width), mode="bilinear", align_corners=False)
    probability = segmenter.model.probability(scores)[0]
    np.testing.assert_allclose(got.probability(), probability.numpy(), atol=1e-4)
    top = scores[0].topk(2, dim=0).values
    is_clear = (top[0] - top[1] > 1e-3).numpy()
    assert (got.labels == scores[0].argmax(0).numpy())[is_clear].all()
    np.testing.assert_array_equal(got.probability("car (parked)"), got.probability()[2])
    assert got.has_attention == (attention is not None)
    if attention is not None:
        weights = F.interpolate(attention[0].mean(1)[None], (SIZE, SIZE), mode="bilinear", align_corners=False)
        weights = F.interpolate(weights[:, :, :rows, :columns], (height, width), mode="bilinear", align_corners=False)
        np.testing.assert_allclose(got.attention(), weights[0].numpy(), atol=1e-5)


def test_at_the_size_of_the_network_labels_are_those_of_its_squares(segmenter: Segmenter) -> None:
    images = [photo(width, height, seed) for seed, (width, height) in enumerate(SHAPES)]
    squares = torch.stack([fit_image(torch.from_numpy(np.array(image)), SIZE) for image in images])
    labels = segmenter.label_squares(squares)
    assert len(labels.unique()) > 1
    for image, expected, got in zip(images, labels, segmenter.predict(images, own_size=False), strict=True):
        rows, columns = fit((image.height, image.width), SIZE)
        np.testing.assert_array_equal(got.labels, expected[:rows, :columns].numpy())


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("tiles", [None, 1.0])
def test_results_do_not_depend_on_the_batch(segmenter: Segmenter, batch_size: int, tiles: float | None) -> None:
    images = [photo(width, height) for width, height in SHAPES]
    together = segmenter.predict(images, batch_size=batch_size, tiles=tiles)
    for image, got in zip(images, together, strict=True):
        alone = segmenter.predict(image, tiles=tiles)
        np.testing.assert_allclose(got.probability(), alone.probability(), atol=1e-4)
        assert got.num_tiles == alone.num_tiles == (1 if tiles is None or max(image.size) <= SIZE else got.num_tiles)
        assert got.presence == pytest.approx(alone.presence, abs=1e-4)


def test_presence_is_the_largest_probability(segmenter: Segmenter) -> None:
    for tiles in (None, 1.0):
        got = segmenter.predict(photo(150, 100), own_size=False, tiles=tiles)
        assert list(got.presence) == CLASSES == list(got.classes)
        assert list(got.presence.values()) == pytest.approx(got.probability().max(axis=(1, 2)).tolist(), abs=1e-5)


class Pointwise(SegmentationNetwork):
    """A network that looks at each pixel alone, so that tiles can't matter."""

    def scores(self, images: Tensor) -> Scores:
        return Scores(F.pad(4 * images, (0, 0, 0, 0, 1, 2)), None)


def test_tiles_of_a_network_without_context_give_what_the_whole_image_gives() -> None:
    config = compose("task=multiclass", f"dataset.image_size={SIZE}")
    segmenter = Segmenter(Pointwise(), config, CLASSES, torch.device("cpu"))
    image = photo(333, 150)
    got = segmenter.predict(image, tiles=1.0)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    expected = segmenter.model.scores(segmenter.normalize(pixels)).scores
    assert got.num_tiles == 7 * 3
    np.testing.assert_array_equal(got.labels, expected.argmax(1)[0].numpy())
    np.testing.assert_allclose(got.probability(), segmenter.model.probability(expected)[0].numpy(), atol=1e-5)


def test_tiles_at_another_scale_give_labels_of_the_size_of_the_image(segmenter: Segmenter) -> None:
    image = photo(300, 170)
    got = segmenter.predict(image, tiles=0.5)
    assert got.labels.shape == (170, 300)
    assert got.probability().shape == (5, 170, 300)
    assert got.num_tiles == 3 * 2
    assert segmenter.predict(image, tiles=0.5, own_size=False).labels.shape == (85, 150)


@pytest.mark.parametrize("tiles", [None, 0.5, 1.0])
def test_an_image_that_fits_into_a_tile_is_segmented_as_a_whole(segmenter: Segmenter, tiles: float | None) -> None:
    image = photo(SIZE, 50)
    np.testing.assert_array_equal(segmenter.predict(image, tiles=tiles).labels, segmenter.predict(image).labels)


def test_some_classes_can_be_queried_alone() -> None:
    segmenter = make("attention")
    image = photo(90, 70)
    whole = segmenter.predict(image)
    got = segmenter.predict(image, classes=["d", "R&D"])
    assert got.classes == ("d", "R&D")
    assert set(np.unique(got.labels)) <= {0, 1, 4}
    np.testing.assert_allclose(got.probability("R&D"), whole.probability("R&D"), atol=1e-5)
    np.testing.assert_allclose(got.attention("d"), whole.attention("d"), atol=1e-5)
    is_one_of_both = np.isin(whole.labels, (0, 1, 4))
    assert is_one_of_both.any()
    np.testing.assert_array_equal(got.labels[is_one_of_both], whole.labels[is_one_of_both])
    one = segmenter.predict(image, classes=["d"])
    np.testing.assert_array_equal(one.labels, np.where(one.probability("d") > 0.5, 4, 0))


def test_mask_images_have_the_labels_as_pixels_and_the_colors_of_the_classes(segmenter: Segmenter) -> None:
    got = segmenter.predict(photo(80, 60))
    image = got.mask_image()
    np.testing.assert_array_equal(np.array(image), got.labels)
    assert image.mode == "P"
    colors = np.array(image.convert("RGB"))
    assert {tuple(color) for color in colors[got.labels == 2].tolist()} <= {(0xE6, 0x9F, 0x00)}
    assert {tuple(color) for color in colors[got.labels == 0].tolist()} <= {(0xE8, 0xE8, 0xE8)}


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda s: s.predict("no.jpg"), "no.jpg: there is no such file"),
        (lambda s: s.predict([photo(9, 9), "no.jpg"]), "no.jpg: there is no such file"),
        (lambda s: s.predict(photo(9, 9), tiles=0), "tiles: got 0"),
        (lambda s: s.predict(photo(9, 9), tiles=float("nan")), "tiles: got nan"),
        (lambda s: s.predict(photo(9, 9), batch_size=0), "batch_size: got 0"),
        (lambda s: s.predict(photo(9, 9), classes=["x"]), "classes: there is no class 'x'"),
        (lambda s: s.predict(photo(9, 9), classes="d"), "classes: got 'd'"),
        (lambda s: s.predict(photo(9, 9), classes=[]), "classes: got"),
        (lambda s: s.predict(photo(9, 9), maps=False).probability(), "maps=True"),
        (lambda s: s.predict(photo(9, 9)).probability("x"), "there is no class 'x'"),
    ],
)
def test_wrong_arguments_are_explained(segmenter: Segmenter, call: Callable[[Segmenter], object], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        call(segmenter)


def test_what_only_attention_can_do_is_refused_for_multiclass() -> None:
    segmenter = make("multiclass")
    with pytest.raises(UserError, match="such as of task=attention"):
        segmenter.predict(photo(9, 9), classes=["d"])
    with pytest.raises(UserError, match="task=attention has"):
        segmenter.predict(photo(9, 9)).attention("d")


def test_no_images_give_no_results(segmenter: Segmenter) -> None:
    assert segmenter.predict([]) == []
