"""Broken and hostile input: each ends with one message that names it, and touches nothing outside its folder."""

import io
import json
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cvexp.data import load
from cvexp.data.files.archive import unpack
from cvexp.errors import UserError
from tests.helpers import dataset, make_voc, save_image, save_mask, write_coco

NAN, INFINITY = float("nan"), float("inf")


def annotation(**keys: Any) -> Callable[[Path], None]:
    """Changes the training split's third annotation, of an image of 80 x 60 px; a key set to None goes."""

    def damage(root: Path) -> None:
        edit(root, lambda content: content["annotations"][2].update(keys))
        edit(root, lambda content: [content["annotations"][2].pop(key) for key in keys if keys[key] is None])

    return damage


def image(**keys: Any) -> Callable[[Path], None]:
    """Changes the training split's third image."""
    return lambda root: edit(root, lambda content: content["images"][2].update(keys))


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def text(content: str | bytes) -> Callable[[Path], object]:
    """Replaces the training split's annotation file."""
    data = content.encode() if isinstance(content, str) else content
    return lambda root: (root / "annotations" / "instances_train2017.json").write_bytes(data)


def picture(content: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Changes the bytes of the training split's third image file."""

    def damage(root: Path) -> None:
        path = root / "train2017" / "train2.jpg"
        path.write_bytes(content(path.read_bytes()))

    return damage


def png(width: int, height: int) -> bytes:
    """A PNG whose header promises a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff_of_floats(_: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((60, 80), dtype=np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


def other_size(_: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (81, 60)).save(buffer, "JPEG")
    return buffer.getvalue()


SPIRAL = [value for i in range(60_000) for value in (79 * (i % 2), 59 * (i % 2))]

COCO: dict[str, tuple[Callable[[Path], object], str]] = {
    "file name with ..": (image(file_name="../../secret.jpg"), r"images\[2\].*leads outside the folder"),
    "absolute file name": (image(file_name="/etc/passwd"), "leads outside the folder"),
    "file name of Windows": (image(file_name="C:\\secret.jpg"), "leads outside the folder"),
    "backslashes and ..": (image(file_name="..\\..\\secret.jpg"), "leads outside the folder"),
    "file name with a zero byte": (image(file_name="a\0.jpg"), "leads outside the folder"),
    "file name that is a number": (image(file_name=3), "`file_name` is not text"),
    "empty file name": (image(file_name=""), "`file_name` is not text"),
    "file there twice": (image(file_name="train1.jpg"), "twice"),
    "image id there twice": (image(id=1), "twice"),
    "negative width": (image(width=-80), "not positive whole numbers"),
    "width as text": (image(width="80"), "not positive whole numbers"),
    "image of 10^12 pixels": (image(width=10**6, height=10**6), "more than can be decoded"),
    "image of another size": (picture(other_size), r"train2\.jpg: the image has 81 x 60 px"),
    "truncated image": (picture(lambda data: data[: len(data) // 2]), r"train2\.jpg.*broken"),
    "empty image": (picture(lambda data: b""), r"train2\.jpg.*broken"),
    "web page for an image": (picture(lambda data: b"<html>404</html>"), r"train2\.jpg.*broken"),
    "decompression bomb": (picture(lambda data: png(60_000, 60_000)), r"train2\.jpg.*(bomb|exceeds)"),
    "image of floats": (picture(tiff_of_floats), "floating-point numbers"),
    "PostScript, which Pillow would run": (picture(lambda data: b"%!PS-Adobe-3.0 EPSF-3.0\n"), "broken"),
    "NaN in a polygon": (annotation(segmentation=[[0, 0, NAN, 5, 9, 9]]), "infinite or NaN"),
    "infinity in a polygon": (annotation(segmentation=[[0, 0, INFINITY, 5, 9, 9]]), "infinite or NaN"),
    "polygon of two points": (annotation(segmentation=[[0, 0, 5, 5]]), "at least three"),
    "half a point": (annotation(segmentation=[[0, 0, 5, 5, 7, 7, 8]]), "pairs"),
    "text in a polygon": (annotation(segmentation=[[0, 0, "5", 5, 7, 7]]), "not a list of numbers"),
    "polygon outside the image": (annotation(segmentation=[[90, 0, 99, 0, 99, 9]]), "lies outside"),
    "polygon that reaches to the moon": (annotation(segmentation=[[0, 0, 1e9, 0, 9, 9]]), "far out"),
    "polygon with an endless outline": (annotation(segmentation=[SPIRAL * 10]), "longer than"),
    "polygon as thin as it is long": (
        lambda root: (image(width=2**27, height=1)(root), annotation(segmentation=[[0, 0, 2**27, 0, 2**27, 1]])(root)),
        "longer than",
    ),
    "half a character in a file name": (image(file_name="\ud800.jpg"), "surrogates"),
    "segmentation that is text": (annotation(segmentation="everything"), "neither polygons nor run lengths"),
    "run lengths of another size": (annotation(segmentation={"size": [9, 9], "counts": [81]}), "run lengths are for a"),
    "too few run lengths": (annotation(segmentation={"size": [60, 80], "counts": [81]}), "cover 81 pixels"),
    "negative run length": (annotation(segmentation={"size": [60, 80], "counts": [-1, 4801]}), "neither whole numbers"),
    "compressed run lengths that overrun": (
        annotation(segmentation={"size": [60, 80], "counts": "oooooooo1"}),
        "larger than any image|cover",
    ),
    "compressed run lengths that break off": (annotation(segmentation={"size": [60, 80], "counts": "o"}), "not compr"),
    "run lengths that are no text of COCO's": (annotation(segmentation={"size": [60, 80], "counts": "é"}), "not compr"),
    "box with NaN": (annotation(bbox=[0, 0, NAN, 5]), "`bbox`"),
    "box of negative size": (annotation(bbox=[5, 5, -3, 5]), "`bbox`"),
    "box of three numbers": (annotation(bbox=[5, 5, 3]), "`bbox`"),
    "box outside the image": (annotation(bbox=[500, 5, 3, 3]), "outside the image"),
    "neither box nor mask": (annotation(bbox=None, segmentation=None), "it has no 'bbox'"),
    "annotation of no image": (annotation(image_id=77), "image_id 77 is not in `images`"),
    "annotation of no category": (annotation(category_id=77), "category_id 77 is not in `categories`"),
    "image id that is a list": (annotation(image_id=[1]), r"annotations\[2\]"),
    "annotation that is a number": (
        lambda root: edit(root, lambda content: content["annotations"].__setitem__(2, 5)),
        r"annotations\[2\]",
    ),
    "annotations that are no list": (text('{"images": {}, "annotations": 3, "categories": []}'), "COCO's instance"),
    "categories without names": (text('{"images": [], "annotations": [], "categories": [{}]}'), "COCO's instance"),
    "list for an object": (text("[1, 2]"), "COCO's instance format"),
    "no JSON": (text(b"\x00\xff\x00"), "not valid JSON"),
    "JSON without end": (text("[" * 200_000), "not valid JSON"),
    "number without end": (text('{"images": ' + "9" * 100_000 + "}"), "not valid JSON"),
}


@pytest.fixture
def outside(tmp_path: Path) -> Callable[[], dict[str, bytes]]:
    """All files that are there, but for those that cvexp may write."""
    (tmp_path / "secret.jpg").write_bytes(b"secret")

    def look() -> dict[str, bytes]:
        files = (path for path in tmp_path.rglob("*") if path.is_file() and "index" not in path.parts)
        return {str(path): path.read_bytes() for path in files}

    return look


@pytest.mark.parametrize("kind", COCO)
def test_coco(tmp_path: Path, outside: Callable[[], dict[str, bytes]], kind: str) -> None:
    damage, words = COCO[kind]
    root = write_coco(tmp_path / "coco")
    damage(root)
    before = outside()
    settings = dataset("coco", root, classes=["cat", "dog"], cache=str(tmp_path / "index"))
    with pytest.raises(UserError, match=words) as told:
        load(settings, "segmentation")
    assert str(root) in str(told.value) or "train2017/train2.jpg" in str(told.value)
    assert len(str(told.value)) < 700
    assert outside() == before
    settings.strict = False
    if "instance" not in words and "JSON" not in words:  # a part of it is broken: the rest is of use
        assert len(load(settings, "segmentation").train.images) in (6, 7)


def symbolic_link(archive: zipfile.ZipFile) -> None:
    member = zipfile.ZipInfo("crops/link")
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(member, "/etc")


def twice(archive: zipfile.ZipFile) -> None:
    archive.writestr("crops/a.jpg", b"1")
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("crops/a.jpg", b"2")


ARCHIVES: dict[str, tuple[Callable[[zipfile.ZipFile], object], str]] = {
    "member with ..": (lambda archive: archive.writestr("../secret.jpg", b"x"), "outside the folder"),
    "member with .. inside": (lambda archive: archive.writestr("crops/../../secret.jpg", b"x"), "outside the folder"),
    "absolute member": (lambda archive: archive.writestr("/tmp/secret.jpg", b"x"), "outside the folder"),
    "member with a drive": (lambda archive: archive.writestr("C:/secret.jpg", b"x"), "outside the folder"),
    "member with backslashes": (lambda archive: archive.writestr("..\\secret.jpg", b"x"), "outside the folder"),
    "symbolic link": (symbolic_link, "a link or a device"),
    "zip bomb": (lambda archive: archive.writestr("crops/a.jpg", bytes(50_000_000)), "would grow"),
    "member there twice": (twice, "twice"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives(tmp_path: Path, outside: Callable[[], dict[str, bytes]], kind: str) -> None:
    fill, words = ARCHIVES[kind]
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("crops/first.jpg", b"first")
        fill(archive)
    before = outside()
    with pytest.raises(UserError, match=words):
        unpack(path, tmp_path / "index" / "unpacked")
    assert outside() == before
    assert not list((tmp_path / "index").glob("*"))


def test_an_archive_larger_than_the_disk_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.jpg", b"12345678")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(UserError, match="has room for 5"):
        unpack(path, tmp_path / "index" / "unpacked")


def test_an_archive_with_any_wrong_bytes_is_refused_or_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    refused = 0
    for seed in range(300):
        random = np.random.RandomState(seed)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if seed % 2 else zipfile.ZIP_STORED) as archive:
            for name in ("a.jpg", "b/c.jpg"):
                archive.writestr(name, bytes(range(200)))
        content = bytearray(path.read_bytes())
        for _ in range(2):
            content[random.randint(len(content))] = random.randint(256)
        path.write_bytes(content)
        try:
            unpack(path, tmp_path / "index" / str(seed))
        except UserError:
            refused += 1
            assert not list((tmp_path / "index").glob(f"{seed}*"))
    assert refused > 100


@pytest.mark.parametrize("content", [b"", b"no zip", b"<html></html>", b"PK\x05\x06" + bytes(18)[:10]])
def test_what_is_no_archive(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.zip: this is not a complete zip archive"):
        unpack(tmp_path / "x.zip", tmp_path / "unpacked")


def mask_of_colors(path: Path) -> None:
    Image.new("RGB", (48, 40), "red").save(path)


MASKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "mask with an unknown number": (lambda path: save_mask(path, 0, 77), r"a\.png: the mask has the number 77"),
    "mask with colors": (mask_of_colors, r"a\.png: a mask must have one number per pixel"),
    "mask of another size": (lambda path: Image.new("L", (9, 9)).save(path), "annotations are for 9 x 9"),
    "missing mask": (Path.unlink, r"a\.png: there is no such mask"),
    "broken mask": (lambda path: path.write_bytes(path.read_bytes()[:50]), r"a\.png: the image is broken"),
    "text for a mask": (lambda path: path.write_text("mask"), r"a\.png: the image is broken"),
    "bomb for a mask": (lambda path: path.write_bytes(png(60_000, 60_000)), r"a\.png"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks(tmp_path: Path, outside: Callable[[], dict[str, bytes]], kind: str) -> None:
    damage, words = MASKS[kind]
    for split in ("train", "val"):
        for name in ("a", "b"):
            save_image(tmp_path / split / f"{name}.jpg")
            save_mask(tmp_path / split / f"{name}.png", 0, 1)
    damage(tmp_path / "train" / "a.png")
    before = outside()
    keys = {"train_masks": "train", "val_masks": "val", "mask_values": {"x": 1}, "cache": str(tmp_path / "index")}
    with pytest.raises(UserError, match=words):
        load(dataset("folder", tmp_path, **keys), "segmentation")
    assert outside() == before
    assert len(load(dataset("folder", tmp_path, **keys, strict=False), "segmentation").train.images) == 1


def move_down(root: Path) -> None:
    """Leave the data in a folder of the root."""
    root.rename(root.parent / "x")
    root.mkdir()
    (root.parent / "x").rename(root / "VOC2012")


VOC: dict[str, tuple[Callable[[Path], object], str]] = {
    "list with ..": (lambda root: lines(root, "a", "../../secret"), "entry 2: .*leads outside the folder"),
    "list with an absolute name": (lambda root: lines(root, "a", "/etc/passwd"), "leads outside the folder"),
    "name there twice": (lambda root: lines(root, "a", "a"), "twice"),
    "name of no image": (lambda root: lines(root, "a", "c"), r"c\.png: there is no such mask"),
    "image gone": (lambda root: (root / "JPEGImages" / "a.jpg").unlink(), r"a\.jpg: there is no such file"),
    "list gone": (lambda root: (root / "ImageSets/Segmentation/train.txt").unlink(), "dataset.train_list"),
    "root one too high": (move_down, "VOC2012"),
    "masks gone": (lambda root: (root / "SegmentationClass").rename(root / "x"), "dataset.masks"),
}


def lines(root: Path, *names: str) -> None:
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("\n".join(names) + "\n")


@pytest.mark.parametrize("kind", VOC)
def test_voc(tmp_path: Path, outside: Callable[[], dict[str, bytes]], kind: str) -> None:
    damage, words = VOC[kind]
    root = make_voc(tmp_path / "voc", np.full((60, 60), 8))
    damage(root)
    before = outside()
    with pytest.raises(UserError, match=words):
        load(dataset("voc", root, cache=str(tmp_path / "index")), "pretraining")
    assert outside() == before


def test_a_tree_with_a_stray_and_a_broken_image(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat/a", "cat/b", "dog/c"):
            save_image(tmp_path / split / f"{name}.jpg")
    (tmp_path / "train" / "cat" / "b.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"b\.jpg: the image is broken"):
        load(dataset("folder", tmp_path), "pretraining")
    save_image(tmp_path / "train" / "stray.jpg")
    index = load(dataset("folder", tmp_path, strict=False), "pretraining").train
    assert index.counts() == {"cat": 1, "dog": 1}
    assert {problem.what.split(";")[0][:20] for problem in index.problems} == {
        "the image is broken ",
        "it is not in the fol",
    }
