"""Crops written into shards and read back, in a folder, from a real HTTP server, and from a real S3 server."""

from __future__ import annotations

import http.server
import io
import json
import os
import shutil
import signal
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from cvexp.config import LoaderConfig
from cvexp.data import kept, load, packing
from cvexp.data.augment.views import CenterView
from cvexp.data.crops import CropBatches, Crops
from cvexp.data.examples import sample, sample_from_few_shards
from cvexp.data.files import fetch, s3
from cvexp.data.index import Splits
from cvexp.data.kept import Images
from cvexp.data.loaders import FixedBatches, make_loader
from cvexp.data.shards import copies
from cvexp.errors import UserError
from tests.helpers import TINY, Outcome, assert_equal_runs, dataset, interrupted_at, runs, save_image, store, write_coco

SHARD_BYTES = 30_000  # about three of the crops of write_coco


def write(splits: Splits, folder: Path, shard_bytes: int = SHARD_BYTES, quality: int | None = None) -> Path:
    packing.write_shards(splits, "test", folder, packing.Settings(shard_bytes, quality))
    return folder


def open_shards(root: Path | str, **keys: object) -> Splits:
    return load(dataset("shards", root, **{"local_gb": 0.001, "shuffle_shards": 2, **keys}), "pretraining")


@pytest.fixture
def files(coco_root: Path) -> Splits:
    """Crops of photographs, 40 training and 6 validation ones."""
    shutil.rmtree(coco_root)
    return load(dataset("coco", write_coco(coco_root, 40, 6), classes=["cat", "dog"]), "pretraining")


@pytest.fixture
def folder(files: Splits, tmp_path: Path) -> Path:
    """The same crops in 14 and 2 shards."""
    return write(files, tmp_path / "shards")


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keeps connections open, which forked processes must not share
    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(Path(self.path).name)
        super().do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def requested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that the HTTP server was asked for."""
    names: list[str] = []
    monkeypatch.setattr(QuietHandler, "requests", names, raising=False)
    return names


@pytest.fixture
def address(tmp_path: Path, requested: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an HTTP server for the folder of this test."""
    monkeypatch.setattr(fetch, "BACKOFF", 0.01)
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], str]]:
    """Uploads a folder to a server with the interface of S3, and returns its address."""
    moto = pytest.importorskip("moto.server", reason="needs a server of S3: pip install 'moto[server]'")
    import boto3

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(s3, "_clients", {})
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
    requests.post(f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset", timeout=10)  # servers share their content
    client = boto3.client("s3")
    client.create_bucket(Bucket="crops")

    def upload(folder: Path) -> str:
        for path in folder.iterdir():
            client.upload_file(str(path), "crops", f"data/{folder.name}/{path.name}")
        return f"s3://crops/data/{folder.name}"

    yield upload
    server.stop()


def assert_equal_crops(expected: Splits, got: Splits) -> None:
    for first, second in zip(expected, got, strict=True):
        assert first.classes == second.classes
        assert np.array_equal(first.label, second.label)
        crops, others = Crops(first), Crops(second)
        assert np.array_equal(crops.sizes, others.sizes)
        for position in range(len(first)):
            assert np.array_equal(crops.read(position), others.read(position)), position


# Writing


def test_the_shards_of_generated_objects_have_the_same_pixels(tmp_path: Path) -> None:
    splits = load(dataset("shapes", tmp_path / "data", train_images=6, val_images=3, test_images=2), "pretraining")
    assert_equal_crops(splits, open_shards(write(splits, tmp_path / "shards")))
    repacked = write(open_shards(tmp_path / "shards"), tmp_path / "again", shard_bytes=10**6)
    assert_equal_crops(splits, open_shards(repacked))


def test_the_shards_of_annotated_objects_have_the_same_pixels(files: Splits, folder: Path) -> None:
    splits = open_shards(folder)
    assert_equal_crops(files, splits)
    assert len(splits.train.catalog.members.shards) > 8  # type: ignore[union-attr]
    sizes = [path.stat().st_size for path in folder.glob("train-*.tar")]
    assert max(sizes) < SHARD_BYTES + 5000


def test_pictures_of_any_kind_have_the_same_pixels_and_plain_ones_the_same_bytes(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    plain = ["train/a/0.jpg", "train/b/1.png", "val/a/3.webp", "train/b/gray.jpg", "val/b/gray.png"]
    for name in plain:
        save_image(root / name, "L" if "gray" in name else "RGB")
    save_image(root / "train/a/palette.png", "P")
    save_image(root / "train/a/palette.gif", "P")
    save_image(root / "train/a/bits.bmp")
    save_image(root / "train/a/transparent.png", "RGBA")
    save_image(root / "train/a/ink.jpg", "CMYK")
    sixteen = np.arange(48 * 40, dtype=np.uint16).reshape(40, 48) * 30
    Image.fromarray(sixteen).save(root / "train/a/sixteen.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(root / plain[0]).save(root / "train/a/rotated.jpg", exif=exif)
    splits = load(dataset("folder", root), "pretraining")
    folder = write(splits, tmp_path / "shards", shard_bytes=10**6)
    shards = open_shards(folder)
    assert_equal_crops(splits, shards)
    for index, packed in zip(splits, shards, strict=True):
        for image in index.images.tolist():
            is_kept = packed.read_bytes(image) == index.path(image).read_bytes()
            assert is_kept == (index.catalog.file(image) in plain), index.catalog.file(image)


def test_shards_without_labels_have_none(tmp_path: Path) -> None:
    for i in range(4):
        save_image(tmp_path / f"pictures/{'train' if i else 'val'}/{i}.png", seed=i)
    splits = load(dataset("folder", tmp_path / "pictures"), "pretraining")
    shards = open_shards(write(splits, tmp_path / "shards"))
    assert_equal_crops(splits, shards)
    with tarfile.open(tmp_path / "shards/train-00000.tar") as tar:
        assert {Path(name).suffix for name in tar.getnames()} == {".png"}


def test_other_programs_can_read_a_shard(files: Splits, folder: Path) -> None:
    seen = []
    for path in sorted(folder.glob("train-*.tar")):
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                key, suffix = image.name.split(".")
                assert (label.name, suffix, image.mtime, image.uid) == (f"{key}.cls", "png", 0, 0)
                number = int(tar.extractfile(label).read())  # type: ignore[union-attr]
                assert number == files.train.label[int(key)]
                pixels = np.asarray(Image.open(tar.extractfile(image)))  # type: ignore[arg-type]
                assert np.array_equal(pixels, Crops(files.train).read(int(key)))
                seen.append(int(key))
    assert sorted(seen) == list(range(len(files.train)))
    assert seen != sorted(seen)  # classes are mixed


def test_the_same_data_give_the_same_bytes(files: Splits, folder: Path, tmp_path: Path) -> None:
    again = write(files, tmp_path / "again")
    assert sorted(path.name for path in again.iterdir()) == sorted(path.name for path in folder.iterdir())
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()


def test_crops_can_be_jpeg(files: Splits, tmp_path: Path) -> None:
    splits = open_shards(write(files, tmp_path / "shards", quality=90))
    assert splits.val.read_bytes(0).startswith(b"\xff\xd8")
    difference = Crops(splits.val).read(0).astype(int) - Crops(files.val).read(0)
    assert 0 < np.abs(difference).mean() < 20  # it is noise


def test_prepare_writes_shards_once(cvexp: Callable[..., Outcome], coco_root: Path) -> None:
    arguments = ["task=prepare", "dataset=coco", f"dataset.root={coco_root}", "task.shards=out/shards"]
    outcome = cvexp(*arguments)
    assert outcome.code == 0, outcome.message
    assert "train: 8 crops in 1 shards" in outcome.message
    assert {path.name for path in Path("out").iterdir()} == {"shards"}
    assert cvexp("task=prepare", "dataset=shards", "dataset.root=out/shards").code == 0
    refused = cvexp(*arguments)
    assert (refused.code, "task.shards: out/shards exists" in refused.message) == (1, True)
    assert "task.quality: got 100" in cvexp(*arguments, "task.quality=100").message


# Reading


def test_opening_shards_reads_no_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvexp.data.prepare.check", None)
    splits = open_shards(folder)
    assert splits.train.catalog.file(12).endswith(".tar/000000012")
    assert splits.train.checksums[12] == zlib.crc32(splits.train.read_bytes(12))
    assert splits.train.fingerprint() != splits.val.fingerprint()


def test_a_remote_shard_is_fetched_once_and_fingerprints_do_not_depend_on_the_place(
    files: Splits, folder: Path, address: str, requested: list[str], bucket: Callable[[Path], str], tmp_path: Path
) -> None:
    near = open_shards(folder)
    for number, root in enumerate((f"{address}/shards", bucket(folder))):
        splits = open_shards(root, local=str(tmp_path / f"local{number}"))
        assert list((tmp_path / f"local{number}").glob("*.tar")) == []
        assert_equal_crops(files, splits)
        assert_equal_crops(files, splits)
        assert [index.fingerprint() for index in splits] == [index.fingerprint() for index in near]
        assert splits.val.place == root
    shards = [name for name in requested if name.endswith(".tar")]
    assert len(shards) == len(set(shards)) == len(list(folder.glob("*.tar")))


def test_changed_remote_data_are_noticed(files: Splits, folder: Path, address: str) -> None:
    first = open_shards(f"{address}/shards").train.fingerprint()
    shutil.rmtree(folder)
    write(files, folder, quality=80)
    splits = open_shards(f"{address}/shards")
    assert splits.train.fingerprint() != first
    assert splits.train.read_bytes(0).startswith(b"\xff\xd8")


def test_copies_stay_within_their_limit_and_come_back(
    files: Splits, folder: Path, address: str, requested: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, most = 140_000, 0
    local = Path("copies")
    original = copies.fetch_file

    def fetch_file(*arguments: Any) -> None:
        nonlocal most
        original(*arguments)
        if arguments[0].name.endswith(".tar"):
            most = max(most, sum(path.stat().st_size for path in local.iterdir() if "-index" not in path.name))

    monkeypatch.setattr(copies, "fetch_file", fetch_file)
    splits = open_shards(f"{address}/shards", local=str(local), local_gb=limit / 1e9)
    local.joinpath("other.tar").write_bytes(b"not ours")
    left = local / ("0" * 64 + ".reserved")  # by a process that was killed while it fetched
    left.write_bytes(bytes(100_000))
    left.with_suffix(".fetched.part").write_bytes(b"")
    for _ in range(2):
        assert_equal_crops(files, splits)
    assert limit / 2 < most < limit + 100_000
    assert sum(path.stat().st_size for path in local.glob("?" * 64 + ".*")) <= limit
    assert not left.exists()
    assert not left.with_suffix(".fetched.part").exists()
    assert local.joinpath("other.tar").exists()
    assert len(requested) > 2 * len(set(requested)) - 6
    with pytest.raises(UserError, match=r"dataset\.local_gb: got 6e-05, but 4 shards of .* are needed at once"):
        open_shards(f"{address}/shards", local_gb=0.00006)


def test_the_least_recently_used_copy_goes_first(folder: Path, address: str) -> None:
    splits = open_shards(f"{address}/shards", local="copies", local_gb=0.00014)
    members = splits.train.catalog.members
    assert members is not None
    first_of = {shard: int(np.flatnonzero(members.shard == shard)[0]) for shard in range(len(members.shards))}
    for shard in (0, 1, 2, 3, 0, 4, 5):
        splits.train.read_bytes(first_of[shard])
    kept_shards = {path.stem for path in Path("copies").glob("*.tar")}
    assert members.shards[0].sha256 in kept_shards
    assert members.shards[1].sha256 not in kept_shards


@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes_of_a_loader_share_the_copies(
    files: Splits, folder: Path, address: str, requested: list[str], num_workers: int
) -> None:
    config = LoaderConfig(batch_size=8, num_workers=num_workers)
    batches = []
    for index in (files.train, open_shards(f"{address}/shards").train):
        crops = CropBatches(index, Images(Crops(index)), [CenterView(32)], seed=0)
        batches.append(list(make_loader(crops, FixedBatches(list(range(len(index))), 8), config)))
    for (views, labels), (others, other_labels) in zip(*batches, strict=True):
        assert (views[0] == others[0]).all()
        assert (labels == other_labels).all()
    shards = [name for name in requested if name.endswith(".tar")]
    assert len(shards) == len(set(shards))


def test_the_sample_of_a_knn_bank_is_from_few_shards(files: Splits, folder: Path) -> None:
    train = open_shards(folder).train
    members = train.catalog.members
    assert members is not None
    chosen = sample_from_few_shards(train, 7)
    assert len(set(chosen)) == 7
    assert chosen == sorted(chosen) == sample_from_few_shards(train, 7)
    assert len(np.unique(members.shard[chosen])) <= 4
    assert sample_from_few_shards(train, 1000) == sample(train, 1000) == list(range(40))
    assert sample_from_few_shards(files.train, 7) == sample(files.train, 7)


def test_images_that_do_not_fit_into_memory_are_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    sources = [Crops(index) for index in open_shards(folder)]
    num_bytes = sum(Images(source).num_bytes for source in sources)
    for share, is_kept in ((1.9, False), (2.1, True)):
        monkeypatch.setattr(kept, "free_memory", lambda share=share: int(share * num_bytes))
        images = kept.keep(sources, "auto", torch.device("cpu"))
        assert isinstance(images[0], kept.ImagesInMemory) == is_kept


def test_a_data_set_may_have_no_training_split(coco_root: Path, tmp_path: Path) -> None:
    settings = dataset("coco", coco_root, train_annotations=None, train_images=None)
    write(load(settings, "pretraining", needs_training=False), tmp_path / "shards")
    settings = dataset("shards", tmp_path / "shards")
    assert len(load(settings, "pretraining", needs_training=False).val) == 4
    with pytest.raises(UserError, match=r"the train split of .* has no object"):
        load(settings, "pretraining")


def test_classes_and_limits_select_from_shards(files: Splits, folder: Path) -> None:
    cats = open_shards(folder, classes=["cat"]).train
    assert cats.counts() == {"cat": 20}
    assert np.array_equal(Crops(cats).read(3), Crops(files.train).read(int(np.flatnonzero(files.train.label == 0)[3])))
    assert len(open_shards(folder, limit=10).train) == 10


# What may be wrong


def change_index(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "index.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def shard_entry(**values: object) -> Callable[[Path], None]:
    return lambda folder: change_index(folder, lambda content: content["splits"]["train"]["shards"][0].update(values))


def arrays(**change: Callable[[np.ndarray], Any]) -> Callable[[Path], None]:
    """Changes arrays of the training split, and corrects their checksum."""

    def damage(folder: Path) -> None:
        path = folder / "train.npz"
        with np.load(path) as saved:
            values = dict(saved)
        for name, function in change.items():
            values[name] = function(values[name])
        np.savez(path, **values)
        renew(folder, path)

    return damage


def renew(folder: Path, path: Path) -> None:
    import hashlib

    data = path.read_bytes()
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change_index(folder, lambda content: content["splits"]["train"]["arrays"].update(entry))


def compressed(folder: Path) -> None:
    with np.load(folder / "train.npz") as saved:
        np.savez_compressed(folder / "train.npz", **dict(saved))
    renew(folder, folder / "train.npz")


def claims_shape(folder: Path) -> None:
    """Makes the header of an array promise more samples than there are."""
    path = folder / "train.npz"
    import zipfile

    with np.load(path) as saved:
        values = dict(saved)
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in values.items():
            buffer = io.BytesIO()
            np.save(buffer, value)
            data = buffer.getvalue()
            if name == "offset":
                data = data.replace(b"(40,), }" + b" " * 12, b"(40000000000,), }   ")
            archive.writestr(f"{name}.npy", data)
    renew(folder, path)


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "path in a name": (shard_entry(name="../train-00000.tar"), "is not the name of a file"),
    "absolute path": (shard_entry(name="/etc/passwd.tar"), "is not the name of a file"),
    "backslash in a name": (shard_entry(name="a\\b.tar"), "is not the name of a file"),
    "name that is a list": (shard_entry(name=["a.tar"]), "is not the name of a file"),
    "name there twice": (shard_entry(name="train-00001.tar"), "two files have the same name"),
    "path in a checksum": (shard_entry(sha256="../../" + "0" * 58), "not 64 hexadecimal digits"),
    "checksum in capitals": (shard_entry(sha256="A" * 64), "not 64 hexadecimal digits"),
    "huge shard": (shard_entry(bytes=10**30), "`bytes` of train-00000.tar"),
    "negative size": (shard_entry(bytes=-1), "`bytes` of train-00000.tar"),
    "size that is text": (shard_entry(bytes="9"), "`bytes` of train-00000.tar"),
    "other number of samples": (shard_entry(samples=1), "do not have as many samples"),
    "no version": (lambda folder: change_index(folder, lambda content: content.pop("version")), "its version is None"),
    "later version": (lambda folder: change_index(folder, lambda content: content.update(version=2)), "update cvexp"),
    "other format": (lambda folder: change_index(folder, lambda content: content.update(format="x")), "`format`"),
    "no splits": (lambda folder: change_index(folder, lambda content: content.pop("splits")), "it has no 'splits'"),
    "classes that are text": (
        lambda folder: change_index(folder, lambda content: content.update(classes="abc")),
        "`classes`",
    ),
    "no JSON": (lambda folder: (folder / "index.json").write_bytes(b"\xff\x00"), "not a valid index"),
    "JSON without end": (lambda folder: (folder / "index.json").write_text("[" * 10**5), "not a valid index"),
    "list for an index": (lambda folder: (folder / "index.json").write_text("[]"), "not a valid index"),
    "no index": (lambda folder: (folder / "index.json").unlink(), "no such file; check dataset.root="),
    "offset before the first member": (arrays(offset=lambda a: a * 0), "`offset` is from 0 to 0"),
    "offset within a header": (arrays(offset=lambda a: a + 1), "not within its shard"),
    "offset after the end": (arrays(offset=lambda a: a + 512 * 10**6), "not within its shard"),
    "huge offset": (arrays(offset=lambda a: a * 0 + (2**63 - 512)), "`offset` is from"),
    "negative length": (arrays(length=lambda a: -a), "`length` is from"),
    "huge length": (arrays(length=lambda a: a * 0 + (2**31 - 1)), "`length` is from"),
    "shard that is not there": (arrays(shard=lambda a: a + 1), "`shard` is from"),
    "samples in another shard": (arrays(shard=lambda a: a * 0), "other numbers of samples"),
    "huge image": (arrays(width=lambda a: a * 0 + 10**6, height=lambda a: a * 0 + 10**6), r"`width \* height`"),
    "no width": (arrays(width=lambda a: a * 0), "`width` is from 0"),
    "label without a class": (arrays(label=lambda a: a + 2), "`label` is from"),
    "array of objects": (arrays(label=lambda a: np.array([print] * len(a))), r"type object|update|larger"),
    "array of another type": (arrays(label=lambda a: a.astype(np.int64)), "type int64"),
    "array of another length": (arrays(label=lambda a: a[1:]), r"has shape \(39,\)"),
    "array that promises more": (claims_shape, r"has shape \(40000000000,\)"),
    "compressed arrays": (compressed, "is compressed"),
    "changed arrays": (lambda folder: flip(folder / "train.npz"), "its SHA-256 is .* but .* is expected"),
    "shard cut off": (
        lambda folder: cut_off(folder / "train-00003.tar"),
        r"train-00003.tar: it has \d+ bytes, but",
    ),
    "shard missing": (lambda folder: (folder / "val-00000.tar").unlink(), "val-00000.tar: there is no such file"),
}


def flip(path: Path, place: int = 2000) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_with_a_folder_is_reported(folder: Path, kind: str) -> None:
    damage, words = WRONG[kind]
    damage(folder)
    with pytest.raises(UserError, match=words) as error:
        open_shards(folder)
    assert str(folder) in str(error.value)
    assert len(str(error.value)) < 500


def test_shards_that_change_while_they_are_used_are_reported(folder: Path) -> None:
    train = open_shards(folder).train
    members = train.catalog.members
    assert members is not None
    image = int(np.flatnonzero(members.shard == 2)[-1])
    flip(folder / "train-00002.tar", int(members.offset[image]) + 5)
    with pytest.raises(UserError, match=rf"train-00002.tar: sample {image:09}: its CRC-32 is .*, but .* is expected"):
        train.read_image(image)
    (folder / "train-00002.tar").write_bytes(b"short")
    with pytest.raises(UserError, match=r"the shard ends at byte \d+, but \d+ bytes are expected"):
        train.read_image(image)
    (folder / "train-00002.tar").unlink()
    with pytest.raises(UserError, match=r"there is no such shard, but one of \d+ bytes is expected; restore it"):
        train.read_image(image)


def test_an_image_of_another_size_is_refused(folder: Path) -> None:
    arrays(width=lambda a: a + 1)(folder)
    with pytest.raises(UserError, match=r"it has \d+ x 45 px, but \d+ x 45 px are expected"):
        Crops(open_shards(folder).train).read(0)


def test_remote_shards_that_are_wrong_are_reported(
    folder: Path, address: str, bucket: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(folder / "train-00000.tar")
    cut_off(folder / "train-00001.tar")
    with (folder / "train-00002.tar").open("ab") as file:
        file.write(b"more")
    (folder / "train-00003.tar").unlink()
    expected = [
        "its SHA-256 is",
        r"it has \d+ bytes, but \d+ are expected",
        "it has .* bytes",
        "404|no such obj",
    ]
    for number, root in enumerate((f"{address}/shards", bucket(folder))):
        train = open_shards(root, local=f"copies{number}").train
        members = train.catalog.members
        assert members is not None
        for shard, words in enumerate(expected):
            with pytest.raises(UserError, match=words) as error:
                train.read_bytes(int(np.flatnonzero(members.shard == shard)[0]))
            assert f"{root}/train-0000{shard}.tar" in str(error.value)
        assert list(Path(f"copies{number}").glob("*.tar")) == []
        train.read_bytes(int(np.flatnonzero(members.shard == 4)[0]))  # the others are fine


def test_what_is_wrong_with_a_store_is_reported(
    bucket: Callable[[Path], str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = bucket(folder)
    for wrong, words in [("s3://crops/data/other", "no such object"), ("s3://other/data", "no such bucket")]:
        with pytest.raises(UserError, match=f"{wrong}/index.json: there is {words}"):
            open_shards(wrong)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "botocore.exceptions", None)
        with pytest.raises(UserError, match=r"pip install 'cvexp\[s3\]'"):
            open_shards(root)
    monkeypatch.setattr(s3, "_clients", {})
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")
    monkeypatch.setenv("AWS_CONFIG_FILE", "none")
    with pytest.raises(UserError, match="there are no credentials; set AWS_ACCESS_KEY_ID"):
        open_shards(root)


@pytest.mark.parametrize(
    "root", ["http://me:secret@host/data", "s3://key:secret@bucket/x", "https://host/x?key=secret"]
)
def test_addresses_with_secrets_are_refused_and_hidden(root: str) -> None:
    with pytest.raises(UserError, match=r"dataset\.root: got") as error:
        dataset("shards", f"'{root}'")
    assert "secret" not in str(error.value)


def test_a_place_for_copies_that_can_not_be_written_is_reported(folder: Path, address: str) -> None:
    train = open_shards(f"{address}/shards", local="copies").train
    shutil.rmtree("copies")
    Path("copies").write_text("in the way")
    with pytest.raises(UserError, match=r"copies/.*; .*dataset\.local=PATH"):
        train.read_bytes(0)


def test_a_server_that_is_not_there_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "BACKOFF", 0.01)
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/x/index.json: the server can't be reached"):
        open_shards("http://127.0.0.1:9/x")


# Training

SHARDS = ["dataset=shards", "dataset.min_crop_size=1", *(word for word in TINY if not word.startswith("dataset."))]


def pack_shapes(cvexp: Callable[..., Outcome], shard_mb: float = 0.1) -> None:
    words = [
        "task=prepare",
        "dataset.train_images=12",
        "dataset.val_images=6",
        "dataset.test_images=0",
        "dataset.root=data",
    ]
    outcome = cvexp(*words, "task.shards=shards", f"task.shard_mb={shard_mb}", "tracking.folder=prepared")
    assert outcome.code == 0, outcome.message


@pytest.mark.slow
def test_losses_are_the_same_from_files_and_from_shards_anywhere(
    cvexp: Callable[..., Outcome], address: str, bucket: Callable[[Path], str]
) -> None:
    pack_shapes(cvexp)
    assert len(list(Path("shards").glob("train-*.tar"))) > 2
    # Views of such small parts that no crop is reduced. Reduced crops differ a little along their edges, because those
    # of files are interpolated with the pixels around them.
    unreduced = "task.local_scale=[0.03,0.4]"
    assert cvexp(*TINY, "dataset.root=data", "tracking.folder=files", unreduced).code == 0
    roots = {"folder": "shards", "http": f"{address}/shards", "s3": bucket(Path("shards"))}
    for name, root in roots.items():
        more = [unreduced, "dataset.keep=none", f"loader.num_workers={int(name == 'http')}"]
        outcome = cvexp(*SHARDS, f"dataset.root={root}", f"tracking.folder={name}", *more)
        assert outcome.code == 0, outcome.message
        assert_equal_runs(Path("files"), Path(name))


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 3])  # of 3 an epoch
def test_an_interrupted_epoch_over_several_windows_ends_bit_equal(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, address: str, step: int
) -> None:
    from cvexp.tasks.dino import DINO

    pack_shapes(cvexp, 0.05)
    arguments = [*SHARDS, f"dataset.root={address}/shards", "dataset.shuffle_shards=2", "task.knn_bank=8"]
    assert cvexp(*arguments, "tracking.folder=undisturbed").code == 0
    interrupted_at(step, signal.SIGTERM, DINO, cvexp, monkeypatch, arguments)
    outcome = cvexp("tracking.folder=interrupted", f"resume={runs(Path('interrupted'))[0].info.run_id}")
    assert outcome.code == 0, outcome.message
    assert_equal_runs(Path("undisturbed"), Path("interrupted"))


@pytest.mark.slow
def test_a_damaged_shard_ends_a_run_with_one_line(cvexp: Callable[..., Outcome]) -> None:
    pack_shapes(cvexp)
    path = Path("shards/train-00001.tar")
    flip(path, 1000)
    outcome = cvexp(*SHARDS, "dataset.root=shards", "loader.num_workers=1", "dataset.keep=none")
    assert outcome.code == 1
    (line,) = [line for line in outcome.message.splitlines() if "CRC-32" in line]
    assert line.startswith(f"cvexp: error: {path.absolute()}: sample 0000000")
    assert runs()[0].info.status == "FAILED"


@pytest.mark.slow
def test_afterwards_shards_are_a_data_set_like_others(cvexp: Callable[..., Outcome]) -> None:
    pack_shapes(cvexp)
    assert cvexp(*SHARDS, "dataset.root=shards", "trainer.max_epochs=1").code == 0
    (pretrained,) = runs()
    page = Path(store().download_artifacts(pretrained.info.run_id, "explorer.html")).read_text()
    assert "val-00000.tar/00000000" in page
    inputs = pretrained.inputs.dataset_inputs  # type: ignore[union-attr]
    assert {json.loads(entry.dataset.source)["uri"] for entry in inputs} == {str(Path("shards").absolute())}
    outcome = cvexp("task=neighbors", "task.k=3", "trainer.accelerator=cpu")
    assert outcome.code == 0, outcome.message
    outcome = cvexp("task=report")
    assert outcome.code == 0, outcome.message
    flip(Path("shards/index.json"), -3)
    assert cvexp("task=neighbors", "trainer.accelerator=cpu").code == 1
