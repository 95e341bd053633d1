from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from cvexp.config import LoaderConfig
from cvexp.data.augment.views import CenterView, View
from cvexp.data.batches import PendingViews
from cvexp.data.catalog import Draft, open_catalog, write_catalog
from cvexp.data.crops import CropBatches, Crops
from cvexp.data.index import Index, select
from cvexp.data.kept import Images, ImagesInMemory
from cvexp.data.loaders import ShuffledBatches, make_loader
from cvexp.errors import UserError
from tests.data.noise import smooth
from tests.helpers import dataset

BOXES = ([30, 10, 20, 40], [0, 0, 100, 60], [90, 50, 10, 10])


def index_of(folder: Path, pixels: NDArray[np.uint8], name: str = "a.png") -> Index:
    """Return the index of an image with three objects of two classes."""
    Image.fromarray(pixels).save(folder / name, quality=95)
    draft = Draft(folder, ["x", "y"])
    image = draft.add_image(name, pixels.shape[1], pixels.shape[0])
    for i, box in enumerate(BOXES):
        draft.add_object(image, i % 2, box, area=1)
    write_catalog(draft, folder / "catalog")
    settings = dataset("shapes", classes=None, min_crop_size=1)
    return select(open_catalog(folder / "catalog"), "train", settings)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return index_of(tmp_path, np.random.RandomState(0).randint(0, 256, (60, 100, 3), dtype=np.uint8))


def random_view() -> View:
    return View(16, (0.4, 1.0), 0.5, (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.5, 0.2)


def test_a_crop_is_the_square_around_the_box_as_far_as_the_image_goes(index: Index) -> None:
    pixels = np.asarray(Image.open(index.root / "a.png"))
    crops = Crops(index)
    expected = [pixels[10:50, 20:60], pixels, pixels[50:60, 90:100]]
    for position, crop in enumerate(expected):
        assert np.array_equal(crops.read(position), crop)
        assert np.array_equal(np.asarray(crops.picture(position)), crop)
        assert crops.sizes[position].tolist() == list(crop.shape[:2])


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
@pytest.mark.parametrize("resolution", [8.0, 15.5, 25.0, 1000.0])
def test_larger_crops_are_reduced_to_the_resolution(tmp_path: Path, name: str, resolution: float) -> None:
    index = index_of(tmp_path, smooth(1, 60, 100, 3)[0].numpy(), name)
    picture, crops = Image.open(index.root / name), Crops(index, resolution)
    for position, (left, top, right, bottom) in enumerate([(20, 10, 60, 50), (0, 0, 100, 60), (90, 50, 100, 60)]):
        scale = min(1.0, resolution / min(right - left, bottom - top))
        width, height = round((right - left) * scale), round((bottom - top) * scale)
        assert crops.sizes[position].tolist() == [height, width]
        pixels = crops.read(position)
        assert pixels.shape == (height, width, 3)
        expected = picture.crop((left, top, right, bottom)).resize((width, height), Image.Resampling.BICUBIC)
        difference = np.abs(pixels.astype(int) - np.asarray(expected)).mean()
        assert difference < 2 if scale < 1 else difference == 0


def test_a_crop_has_a_pixel_however_small_or_far_out_its_box_is(tmp_path: Path) -> None:
    Image.new("RGB", (50, 40), "red").save(tmp_path / "a.png")
    draft = Draft(tmp_path, ["x"])
    image = draft.add_image("a.png", 50, 40)
    for box in ([10, 10, 1, 1], [49, 39, 1, 1], [0, 0, 50, 1], [-5, -5, 6, 6], [49, 0, 20, 20]):
        draft.add_object(image, 0, box, area=1)
    write_catalog(draft, tmp_path / "catalog")
    index = select(open_catalog(tmp_path / "catalog"), "train", dataset("shapes", classes=None, min_crop_size=1))
    assert len(index) >= 4
    for resolution in (1.0, 4.0, np.inf):
        crops = Crops(index, resolution)
        for position in range(len(index)):
            crop = crops.read(position)
            assert crop.shape == (*crops.sizes[position], 3)
            assert min(crop.shape) >= 1
            assert (crop[..., 0] == 255).all()


def test_a_missing_image_is_named(index: Index) -> None:
    (index.root / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png: there is no such file"):
        Crops(index).read(0)


def test_a_batch_has_the_views_and_labels_of_its_crops(index: Index) -> None:
    batches = CropBatches(index, Images(Crops(index)), [CenterView(16), random_view()], 0)
    assert len(batches) == 3
    views, labels = batches[[(0, 2), (4, 1)]]
    assert labels.tolist() == [0, 1]
    assert labels.dtype == torch.int64
    assert isinstance(views, list)
    assert [view.shape for view in views] == [(2, 3, 16, 16)] * 2
    crops = Crops(index)
    for view, position in zip(views[0], (2, 1), strict=True):
        assert torch.equal(view, CenterView(16).show(torch.from_numpy(crops.read(position))))


def test_a_pending_batch_has_the_same_views_and_labels(index: Index) -> None:
    images, keys = ImagesInMemory(Crops(index)), [(0, 2), (4, 1)]
    pending, labels = CropBatches(index, images, [random_view()] * 2, 0, is_pending=True)[keys]
    views, other_labels = CropBatches(index, images, [random_view()] * 2, 0)[keys]
    assert isinstance(pending, PendingViews)
    assert isinstance(views, list)
    assert torch.equal(labels, other_labels)
    for first, second in zip(pending.make(), views, strict=True):
        assert torch.equal(first, second)


def test_an_item_is_a_function_of_seed_epoch_and_position(index: Index) -> None:
    images = Images(Crops(index))

    def views_of(key: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
        torch.manual_seed(torch.seed())  # whatever the random state is
        views, _ = CropBatches(index, images, [random_view()] * 2, seed)[[key]]
        assert isinstance(views, list)
        return views

    for key in [(0, 0), (0, 1), (1, 0)]:
        for first, second in zip(views_of(key), views_of(key), strict=True):
            assert torch.equal(first, second)
    first, second = views_of((0, 0))
    assert not torch.equal(first, second)
    assert not torch.equal(first, views_of((1, 0))[0])
    assert not torch.equal(first, views_of((0, 0), seed=1)[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_go_on_where_they_stopped_whatever_the_number_of_workers(index: Index, workers: int) -> None:
    done = 0
    crops = CropBatches(index, ImagesInMemory(Crops(index)), [random_view()], 0)
    keys = ShuffledBatches(len(crops), 1, seed=5, batches_done=lambda: done)
    expected = [views[0] for views, _ in make_loader(crops, keys, LoaderConfig(batch_size=1, num_workers=0))]
    done = 1
    got = [views[0] for views, _ in make_loader(crops, keys, LoaderConfig(batch_size=1, num_workers=workers))]
    assert len(expected) == 3
    assert all(torch.equal(a, b) for a, b in zip(expected[1:], got, strict=True))
