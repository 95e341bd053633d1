from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from torch.utils.data import DataLoader

from cvexp.config import LoaderConfig
from cvexp.data import kept
from cvexp.data.augment.views import CenterView
from cvexp.data.batches import Batches
from cvexp.data.kept import Images, ImagesInMemory, ImagesOnDevice, describe, free_memory, keep
from cvexp.data.loaders import ShuffledBatches, make_loader
from cvexp.errors import UserError
from tests.data.noise import NoiseImages

CPU = torch.device("cpu")
SIZES = [(40, 50), (20, 90), (61, 8), (1, 1), (33, 33)]
NUM_PIXELS = sum(height * width for height, width in SIZES)


def all_kinds(num_channels: int = 3) -> list[Images]:
    source = NoiseImages(SIZES, num_channels)
    return [Images(source), ImagesInMemory(source), ImagesOnDevice(source, CPU)]


@pytest.mark.parametrize("positions", [[0, 1, 2, 3, 4], [3], [4, 1, 1, 0], [2, 1]])
@pytest.mark.parametrize("num_channels", [3, 4])
def test_batches_are_the_same_wherever_the_images_are_kept(positions: list[int], num_channels: int) -> None:
    source = NoiseImages(SIZES, num_channels)
    for images in all_kinds(num_channels):
        for _ in range(2):  # the second time, all are kept
            batch = images.batch(np.array(positions))
            assert batch.dtype == torch.uint8
            largest = np.max([SIZES[position] for position in positions], 0)
            assert batch.shape == (len(positions), *largest, num_channels)
            for padded_hwc, position in zip(batch, positions, strict=True):
                height, width = SIZES[position]
                assert np.array_equal(padded_hwc[:height, :width], source.read(position))


def test_images_that_are_kept_are_read_once_and_others_each_time() -> None:
    for make, counts in ((Images, [3, 0, 0, 2, 3]), (ImagesInMemory, [1, 0, 0, 1, 1])):
        source = NoiseImages(SIZES)
        images = make(source)
        for positions in ([0, 4], [4, 3, 0], [3, 0, 4]):
            images.batch(np.array(positions))
        assert source.num_reads.tolist() == counts
    source = NoiseImages(SIZES)
    images = ImagesOnDevice(source, CPU)
    images.batch(np.array([0, 4]))
    assert source.num_reads.tolist() == [1] * 5


def test_a_batch_is_a_copy() -> None:
    for images in all_kinds():
        batch = images.batch(np.array([0]))
        expected = batch.clone()
        batch.zero_()
        assert torch.equal(images.batch(np.array([0])), expected)


def read_over_two_epochs(images: Images) -> DataLoader[list[torch.Tensor]]:
    done = 0
    keys = ShuffledBatches(len(images), 2, seed=0, batches_done=lambda: done)
    loader = make_loader(Batches(images, [CenterView(16)], 0), keys, LoaderConfig(batch_size=2, num_workers=2))
    for epoch in range(2):
        done = epoch * len(keys)
        assert sum(len(view) for (view,) in loader) == len(images)
    return loader


def test_two_worker_processes_read_each_image_once() -> None:
    source = NoiseImages([(40, 50 + i) for i in range(24)])
    images = ImagesInMemory(source)
    assert read_over_two_epochs(images).num_workers == 2
    assert source.num_reads.tolist() == [1] * 24
    for position in range(24):  # this process sees what the workers have kept
        assert np.array_equal(images.image(position), NoiseImages(source.sizes.tolist()).read(position))
    assert source.num_reads.tolist() == [1] * 24
    source = NoiseImages([(40, 50)] * 24)
    read_over_two_epochs(Images(source))
    assert source.num_reads.tolist() == [2] * 24


def test_images_on_a_device_have_no_workers() -> None:
    assert read_over_two_epochs(ImagesOnDevice(NoiseImages([(40, 50)] * 24), CPU)).num_workers == 0


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with 1000 MB of free memory and no further limits; the folder of its limits."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1_000_000_000))
    monkeypatch.setattr(kept, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(kept, "SHARED_MEMORY", tmp_path / "shm")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return tmp_path


@pytest.mark.parametrize("num_bytes", [3 * NUM_PIXELS, 7 * NUM_PIXELS])
def test_everything_is_kept_or_nothing(monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """`auto` and `ram` mean the images of all sources, here with three and four channels, together."""
    sources = [NoiseImages(SIZES), NoiseImages(SIZES, 4)][: num_bytes // (3 * NUM_PIXELS)]
    cases = [
        ("auto", 2 * num_bytes, ImagesInMemory),
        ("auto", 2 * num_bytes - 2, Images),
        ("auto", 0, Images),
        ("ram", num_bytes, ImagesInMemory),
        ("device", num_bytes, ImagesInMemory),  # where there is no GPU
        ("none", 10 * num_bytes, Images),
        ("none", 0, Images),
    ]
    for place, free, kind in cases:
        monkeypatch.setattr(kept, "free_memory", lambda free=free: free)
        images = keep(sources, place, CPU)
        assert [type(group) for group in images] == [kind] * len(sources)
        assert [group.source for group in images] == sources
        assert sum(group.num_bytes for group in images) == num_bytes


@pytest.mark.parametrize("place", ["ram", "device"])
def test_images_that_do_not_fit_are_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setattr(kept, "free_memory", lambda: 299_000_000)
    source = NoiseImages([(10_000, 10_000)])  # which is not read
    with pytest.raises(UserError) as caught:
        keep([source], place, CPU)
    assert str(caught.value) == (
        "dataset.keep: the decoded images take 300 MB in memory, but only 299 MB are free; choose dataset.keep=none, "
        "or a smaller dataset.limit="
    )
    assert source.num_reads.tolist() == [0]


def test_a_full_gpu_is_refused_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (100_000_000, 200_000_000))
    with pytest.raises(UserError, match=r"take 300 MB on the GPU, but only 100 MB are free; choose dataset.keep=ram"):
        keep([NoiseImages([(10_000, 10_000)])], "device", torch.device("cuda"))


def test_the_place_of_the_images_is_described() -> None:
    sources = [NoiseImages([(1000, 1000)]), NoiseImages([(1000, 500)], 4)]
    assert describe([Images(source) for source in sources]) == "none (they would take 5 MB)"
    assert describe([ImagesInMemory(source) for source in sources]) == "ram (5 MB)"
    assert describe([ImagesOnDevice(source, CPU) for source in sources]) == "device (5 MB)"


def test_free_memory_is_what_the_machine_has(memory: Path) -> None:
    assert free_memory() == 1_000_000_000


@pytest.mark.parametrize(
    ("limit", "used", "free"),
    [
        ("max", "5", 1_000_000_000),
        ("700000000\n", "120000000\n", 600_000_000),  # 20 MB of it are cached files
        ("4000000000", "1000000000", 1_000_000_000),  # the limit of the container is above what the machine has
        ("20000100", "40000101", 0),
    ],
)
def test_free_memory_respects_the_limit_of_a_container(memory: Path, limit: str, used: str, free: int) -> None:
    (memory / "cgroup").mkdir()
    (memory / "cgroup" / "memory.max").write_text(limit)
    (memory / "cgroup" / "memory.current").write_text(used)
    (memory / "cgroup" / "memory.stat").write_text("anon 5\ninactive_file 20000000\n")
    assert free_memory() == free


def test_free_memory_respects_a_small_shared_memory(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (memory / "shm").mkdir()
    usage = {memory / "shm": SimpleNamespace(free=64_000_000)}
    monkeypatch.setattr(shutil, "disk_usage", usage.__getitem__)
    assert free_memory() == 64_000_000
    (memory / "cgroup").mkdir()
    (memory / "cgroup" / "memory.max").write_text("50000000")
    (memory / "cgroup" / "memory.current").write_text("0")
    (memory / "cgroup" / "memory.stat").write_text("inactive_file 0\n")
    assert free_memory() == 50_000_000


def test_processes_on_a_machine_share_its_memory(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory() == 250_000_000
    source = NoiseImages([(10_000, 10_000)])  # 300 MB for each process
    with pytest.raises(UserError, match=r"only 250 MB are free"):
        keep([source], "ram", CPU)
    assert type(keep([source], "auto", CPU)[0]) is Images
