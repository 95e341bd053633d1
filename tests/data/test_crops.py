from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from cvexp.config import LoaderConfig
from cvexp.data.augment.colors import ColorJitter, change_colors
from cvexp.data.augment.normalization import normalize
from cvexp.data.augment.views import plain_view, view
from cvexp.data.catalog import Draft, open_catalog, write_catalog
from cvexp.data.crops import Crops, read_crop
from cvexp.data.index import Index, select
from cvexp.data.loaders import FixedBatches, ShuffledBatches, make_loader
from tests.helpers import dataset


@pytest.fixture
def index(tmp_path: Path) -> Index:
    pixels = np.random.RandomState(0).randint(0, 256, (60, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    draft = Draft(tmp_path, ["x"])
    image = draft.add_image("a.png", 100, 60)
    for box in ([30, 10, 20, 40], [0, 0, 100, 60], [90, 50, 10, 10]):
        draft.add_object(image, 0, box, area=1)
    write_catalog(draft, tmp_path / "catalog")
    settings = dataset("shapes", classes=None, min_crop_size=1)
    return select(open_catalog(tmp_path / "catalog"), "train", settings)


def random_view() -> v2.Transform:
    return view(16, (0.4, 1.0), 0.5, (0.4, 0.4, 0.2, 0.1), 0.8, 0.2, 0.5, 0.2)


def test_crop_is_the_square_around_the_box_as_far_as_the_image_goes(index: Index) -> None:
    pixels = np.asarray(Image.open(index.root / "a.png"))
    assert np.array_equal(np.asarray(read_crop(index, 0)), pixels[10:50, 20:60])
    assert np.array_equal(np.asarray(read_crop(index, 1)), pixels)
    assert np.array_equal(np.asarray(read_crop(index, 2)), pixels[50:60, 90:100])


def test_an_item_is_a_function_of_seed_epoch_and_position(index: Index) -> None:
    crops, same, other = (Crops(index, [random_view()] * 2, seed) for seed in (0, 0, 1))
    for key in [(0, 0), (0, 1), (1, 0)]:
        torch.manual_seed(torch.seed())  # whatever the random state is
        for first, second in zip(crops[key][0], same[key][0], strict=True):
            assert torch.equal(first, second)
    assert not torch.equal(crops[0, 0][0][0], crops[0, 0][0][1])
    assert not torch.equal(crops[0, 0][0][0], crops[1, 0][0][0])
    assert not torch.equal(crops[0, 0][0][0], other[0, 0][0][0])


def test_making_an_item_leaves_the_random_state_alone(index: Index) -> None:
    state = torch.get_rng_state()
    Crops(index, [random_view()], 0)[0, 0]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_go_on_where_they_stopped_whatever_the_number_of_workers(index: Index, workers: int) -> None:
    done = 0
    crops = Crops(index, [random_view()], 0)
    batches = ShuffledBatches(len(crops), 1, seed=5, batches_done=lambda: done)
    expected = [views[0] for views, _ in make_loader(crops, batches, LoaderConfig(batch_size=1, num_workers=0))]
    done = 1
    got = [views[0] for views, _ in make_loader(crops, batches, LoaderConfig(batch_size=1, num_workers=workers))]
    assert len(expected) == 3
    assert all(torch.equal(a, b) for a, b in zip(expected[1:], got, strict=True))


def test_an_epoch_has_each_position_once_and_each_process_its_own_part() -> None:
    done = 0
    ranks = [ShuffledBatches(24, 4, 0, lambda: done, rank, world_size=3) for rank in range(3)]
    first = [[key for batch in batches for key in batch] for batches in ranks]
    assert sorted(position for part in first for _, position in part) == list(range(24))
    done = len(ranks[0])
    second = [key for batch in ranks[0] for key in batch]
    assert {epoch for epoch, _ in second} == {1}
    assert [position for _, position in second] != [position for _, position in first[0]]


def test_less_data_than_a_batch_makes_one_smaller_batch() -> None:
    batches = ShuffledBatches(3, 64, 0, lambda: 0)
    assert len(batches) == 1
    assert [len(batch) for batch in batches] == [3]


def test_fixed_batches_have_every_position_in_order() -> None:
    batches = FixedBatches([4, 1, 7], 2)
    assert list(batches) == [[(0, 4), (0, 1)], [(0, 7)]]
    assert len(batches) == 2


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 200), (300, 7)])
def test_views_have_their_size_however_odd_the_crop(height: int, width: int) -> None:
    crop = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    for transform in (random_view(), plain_view(16)):
        assert transform(crop).shape == (3, 16, 16)
        assert transform(crop).dtype == torch.uint8


def test_normalize_gives_zero_mean_and_unit_variance() -> None:
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    scaled = images.float() / 255
    mean, std = scaled.mean((0, 2, 3)), scaled.std((0, 2, 3))
    result = normalize(images, mean.tolist(), std.tolist())
    torch.testing.assert_close(result.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.std((0, 2, 3)), torch.ones(3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
def test_brightness_contrast_and_saturation_are_torchvisions(factor: float) -> None:
    image = torch.randint(60, 180, (3, 20, 30), dtype=torch.uint8)  # far enough from black and white not to be clipped
    pairs = [
        (change_colors(image, factor, 1.0, 1.0, 0.0), F.adjust_brightness(image, factor)),
        (change_colors(image, 1.0, factor, 1.0, 0.0), F.adjust_contrast(image, factor)),
        (change_colors(image, 1.0, 1.0, factor, 0.0), F.adjust_saturation(image, factor)),
    ]
    for ours, theirs in pairs:
        assert (ours.int() - theirs.int()).abs().max() <= 2  # torchvision rounds in between, and down


def test_hue_turns_the_chroma_and_leaves_the_luma() -> None:
    image = torch.randint(90, 150, (3, 20, 30), dtype=torch.uint8)
    luma = torch.tensor([0.299, 0.587, 0.114])
    for hue in (-0.3, 0.1, 0.5):
        turned = change_colors(image, 1.0, 1.0, 1.0, hue)
        there_and_back = change_colors(turned, 1.0, 1.0, 1.0, -hue)
        assert (there_and_back.int() - image.int()).abs().max() <= 2
        assert (turned.int() - image.int()).abs().max() > 20
        difference = torch.tensordot(luma, turned.float() - image.float(), 1)
        assert difference.abs().max() <= 0.6
    gray = image[:1].expand(3, -1, -1)
    assert torch.equal(change_colors(gray, 1.0, 1.0, 1.0, 0.37), gray)


def test_color_jitter_stays_within_its_strength_and_chances() -> None:
    flat = torch.tensor([100, 120, 140], dtype=torch.uint8).view(3, 1, 1)
    assert torch.equal(ColorJitter([0.4, 0.4, 0.4, 0.5], 0.0, 0.0)(flat), flat)
    brightness = ColorJitter([0.2, 0.0, 0.0, 0.0], 1.0, 0.0)
    values = torch.stack([brightness(flat) for _ in range(200)])[:, 1].float() / 120
    assert 0.79 <= values.min() < 0.85
    assert 1.15 < values.max() <= 1.21
    always_gray = ColorJitter([0.0, 0.0, 0.0, 0.0], 0.0, 1.0)(flat)
    assert torch.equal(always_gray, torch.full((3, 1, 1), 116, dtype=torch.uint8))  # the luma, 116.3
    grays = [ColorJitter([0.0] * 4, 0.0, 0.25)(flat).unique().numel() == 1 for _ in range(400)]
    assert 60 <= sum(grays) <= 140
