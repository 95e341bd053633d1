"""A server in this process plays the hosts that data comes from, and everything that goes wrong with them."""

import hashlib
import http.server
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cvexp.data import load
from cvexp.data.files import fetch
from cvexp.data.files.fetch import RefusedError, Remote
from cvexp.errors import UserError
from tests.helpers import TINY, Outcome, dataset, forked_pool, runs, write_coco

CONTENT = bytes(range(256)) * 1200  # 307 200 bytes
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; what is in `faults` happens to a path's next requests, one after the other."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str]] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.stalled = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.requests.append((self.path, asked))
        faults = server.faults.get(self.path, [])
        fault = faults.pop(0) if faults else ""
        content = server.files.get(self.path)
        if fault == "refuse":
            self.close_connection = True
            return
        if fault.isdigit() or content is None:
            self._send(int(fault or 404), b"")
            return
        if fault == "html":
            self._send(200, b"<html>Please log in</html>", {"Content-Type": "text/html; charset=utf-8"})
            return
        if fault.startswith("redirect "):
            self._send(302, b"", {"Location": fault.removeprefix("redirect ")})
            return
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        headers = {"ETag": tag, "Content-Type": "application/octet-stream"}
        status, start = 200, 0
        if asked and self.headers.get("If-Range") == tag and "no ranges" not in fault:
            status, start = 206, int(asked.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if fault == "huge":
            headers["Content-Length"] = str(10**18)
            self._send(200, b"x", headers)
            return
        if fault == "no length":
            headers["Connection"] = "close"
        cut = {"cut": len(content) // 2, "stall": len(content) // 2, "cut early": 10}.get(fault)
        body = content[start:]
        self._send(status, body if cut is None else body[:cut], headers, len(body) if fault != "no length" else None)
        if fault == "stall":
            self.wfile.flush()
            server.stalled.wait(20)
        if cut is not None or fault == "no length":
            self.close_connection = True

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, length: int | None = -1) -> None:
        self.send_response(status)
        headers = dict(headers or {})
        if length is not None and "Content-Length" not in headers:
            headers["Content-Length"] = str(len(body) if length == -1 else length)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetch, "BACKOFF", 0.01)
    monkeypatch.setattr(fetch, "TIMEOUT", 0.5)
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    with Server() as server:
        server.files["/file.bin"] = CONTENT
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.stalled.set()
        server.shutdown()
        thread.join()


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() and path.name != ".cvexp.lock"}


@pytest.mark.parametrize(
    "faults",
    [
        [],
        ["cut"],
        ["cut", "cut early", "cut"],
        ["cut", "no ranges"],
        ["stall"],
        ["500", "503", "429"],
        ["refuse", "refuse"],
        ["no length"],
        ["redirect /elsewhere.bin"],
    ],
    ids=str,
)
def test_what_passes_is_mended_within_one_start(server: Server, tmp_path: Path, faults: list[str]) -> None:
    server.files["/elsewhere.bin"] = CONTENT
    server.faults["/file.bin"] = list(faults)
    fetch.fetch(Remote(server.url("/file.bin"), tmp_path / "a" / "file.bin", MD5))
    assert (tmp_path / "a" / "file.bin").read_bytes() == CONTENT
    assert left(tmp_path) == {"file.bin"}


def test_only_what_is_missing_is_asked_for_again(server: Server, tmp_path: Path) -> None:
    server.faults["/file.bin"] = ["cut"]
    fetch.fetch(Remote(server.url("/file.bin"), tmp_path / "file.bin"))
    (_, whole), (_, rest) = server.requests
    assert whole is None
    assert 0 < first_byte(rest) <= len(CONTENT) // 2


def first_byte(asked: str | None) -> int:
    """Of a request's Range."""
    return 0 if asked is None else int(asked.removeprefix("bytes=").rstrip("-"))


@pytest.mark.parametrize("fault", ["cut", "stall", "500", "refuse"])
def test_a_second_start_goes_on_where_the_first_gave_up(server: Server, tmp_path: Path, fault: str) -> None:
    remote = Remote(server.url("/file.bin"), tmp_path / "file.bin", MD5)
    gains = fault in ("cut", "stall")  # so the server must fail altogether after it
    server.faults["/file.bin"] = [fault, *["500" if gains else fault] * fetch.ATTEMPTS]
    with pytest.raises(UserError, match=r"in a row; check the internet connection and start again; the part"):
        fetch.fetch(remote)
    assert not remote.path.exists()
    server.faults.clear()
    server.requests.clear()
    fetch.fetch(remote)
    assert remote.path.read_bytes() == CONTENT
    assert left(tmp_path) == {"file.bin"}
    assert (first_byte(server.requests[0][1]) > 0) == gains


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("404", "the server answers 404"),
        ("403", "the server answers 403"),
        ("html", "sends a web page instead of file.bin"),
        ("huge", "free some space"),
        ("redirect ftp://127.0.0.1/file.bin", "correct the address"),
        ("redirect /file.bin", "redirects"),
    ],
)
def test_what_will_not_pass_is_told_at_once(server: Server, tmp_path: Path, fault: str, words: str) -> None:
    remote = Remote(server.url("/file.bin"), tmp_path / "file.bin", MD5)
    server.faults["/file.bin"] = [fault] * (1 if not fault.startswith("redirect /") else 100)
    with pytest.raises(RefusedError, match=words):
        fetch.fetch(remote)
    assert left(tmp_path) == set()
    server.faults.clear()
    fetch.fetch(remote)
    assert remote.path.read_bytes() == CONTENT


def test_a_wrong_checksum_is_told_and_nothing_kept(server: Server, tmp_path: Path) -> None:
    remote = Remote(server.url("/file.bin"), tmp_path / "file.bin", MD5)
    server.files["/file.bin"] = CONTENT[:-1] + b"!"
    with pytest.raises(RefusedError, match=f"MD5 of the file is .* but it should be {MD5}"):
        fetch.fetch(remote)
    assert left(tmp_path) == set()
    server.files["/file.bin"] = CONTENT
    fetch.fetch(remote)
    assert remote.path.read_bytes() == CONTENT


def test_another_file_under_the_same_address_is_not_joined_to_the_first(server: Server, tmp_path: Path) -> None:
    server.faults["/file.bin"] = ["cut"] + ["refuse"] * fetch.ATTEMPTS
    with pytest.raises(UserError):
        fetch.fetch(Remote(server.url("/file.bin"), tmp_path / "file.bin"))
    server.faults.clear()
    server.files["/file.bin"] = CONTENT[::-1]
    fetch.fetch(Remote(server.url("/file.bin"), tmp_path / "file.bin"))
    assert (tmp_path / "file.bin").read_bytes() == CONTENT[::-1]


def test_more_than_a_file_may_have_is_refused_while_it_comes(server: Server, tmp_path: Path) -> None:
    server.faults["/file.bin"] = ["no length"]
    with pytest.raises(RefusedError, match="more than 1000 bytes"):
        fetch.fetch(Remote(server.url("/file.bin"), tmp_path / "file.bin", max_bytes=1000))
    assert not (tmp_path / "file.bin").exists()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/etc/passwd"])
def test_only_http_is_fetched(tmp_path: Path, url: str) -> None:
    with pytest.raises(RefusedError, match="only http and https"):
        fetch.fetch(Remote(url, tmp_path / "x"))


@pytest.mark.parametrize("url", ["", "http://[::1/a.jpg", "http://" + "a" * 70 + ".com/a.jpg", "http://x:y/a.jpg"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(RefusedError):
        fetch.fetch(Remote(url, tmp_path / "x"))


@pytest.fixture
def hosted(server: Server, tmp_path: Path) -> Path:
    """A COCO data set on the server: a zip with the annotations, and the images under their `coco_url`."""
    root = write_coco(tmp_path / "original")
    with zipfile.ZipFile(tmp_path / "annotations.zip", "w") as archive:
        for split in ("train", "val"):
            path = root / "annotations" / f"instances_{split}2017.json"
            content = json.loads(path.read_text())
            for image in content["images"]:
                image["coco_url"] = server.url(f"/{split}2017/{image['file_name']}")
                file = root / f"{split}2017" / image["file_name"]
                server.files[f"/{split}2017/{image['file_name']}"] = file.read_bytes()
            archive.writestr(f"annotations/instances_{split}2017.json", json.dumps(content))
        archive.writestr("annotations/captions_val2017.json", "{}")
    server.files["/annotations.zip"] = (tmp_path / "annotations.zip").read_bytes()
    return root


def settings(server: Server, root: Path, **keys: object) -> Any:
    md5 = hashlib.md5(server.files["/annotations.zip"]).hexdigest()
    known = {"download": True, "annotations_url": server.url("/annotations.zip"), "annotations_md5": md5}
    return dataset("coco", root, **{"classes": ["cat"], **known, **keys})


def test_coco_fetches_the_images_that_classes_and_limit_need(server: Server, hosted: Path, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    splits = load(settings(server, root, limit=2), "segmentation")
    cats = {f"train2017/train{i}.jpg" for i in (0, 2, 4, 6)} | {"val2017/val0.jpg", "val2017/val2.jpg"}
    files = {index.catalog.file(i) for index in splits for i in index.images.tolist()}
    assert files < cats
    names = {"annotations/instances_train2017.json", "annotations/instances_val2017.json"}
    there = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()} - {".cvexp.lock"}
    assert there == files | names
    for file in files:
        assert (root / file).read_bytes() == (hosted / file).read_bytes()
    assert [len(index.images) for index in splits] == [2, 2]
    server.requests.clear()
    load(settings(server, root, limit=2), "segmentation")
    assert server.requests == []


@pytest.mark.parametrize("path", ["/annotations.zip", "/train2017/train2.jpg"])
@pytest.mark.parametrize("fault", ["cut", "stall", "404", "html", "refuse", "500", "huge"])
def test_coco_completes_at_the_second_start(
    server: Server, hosted: Path, tmp_path: Path, path: str, fault: str
) -> None:
    root = tmp_path / "mine"
    gains = fault in ("cut", "stall")
    server.faults[path] = [fault, *["500"] * fetch.ATTEMPTS] if gains else [fault] * fetch.ATTEMPTS
    with pytest.raises(UserError, match=path.rpartition("/")[2]):
        load(settings(server, root), "pretraining")
    if path.endswith(".zip"):
        assert not (root / "annotations").exists()
    assert not (root / path[1:]).exists()
    server.faults.clear()
    load(settings(server, root), "pretraining")
    for i in (0, 2, 4, 6):
        file = f"train2017/train{i}.jpg"
        assert (root / file).read_bytes() == (hosted / file).read_bytes()
    assert not [path for path in root.rglob("*") if ".part" in path.name]


def test_an_image_that_is_gone_can_be_left_out(server: Server, hosted: Path, tmp_path: Path) -> None:
    del server.files["/train2017/train2.jpg"]
    index = load(settings(server, tmp_path / "mine", strict=False), "pretraining").train
    assert len(index) == 3
    assert "404" in str(index.problems[0])


def test_a_damaged_archive_is_not_taken(server: Server, hosted: Path, tmp_path: Path) -> None:
    server.files["/annotations.zip"] = server.files["/annotations.zip"][:-40]
    with pytest.raises(UserError, match=r"annotations.zip: the server sent an incomplete or invalid \.zip"):
        load(settings(server, tmp_path / "mine"), "pretraining")
    with pytest.raises(UserError, match="should be 0123"):
        load(settings(server, tmp_path / "other", annotations_md5="0123"), "pretraining")


def test_what_is_cut_off_unseen_is_not_taken_for_whole(server: Server, hosted: Path, tmp_path: Path) -> None:
    """A server that doesn't say how long a file is may break off without anyone noticing."""
    whole = server.files["/train2017/train2.jpg"]
    server.files["/train2017/train2.jpg"] = whole[: len(whole) // 2]
    server.faults["/train2017/train2.jpg"] = ["no length"]
    root = tmp_path / "mine"
    with pytest.raises(UserError, match=r"train2.jpg: the server sent an incomplete or invalid \.jpg"):
        load(settings(server, root), "pretraining")
    assert not (root / "train2017" / "train2.jpg").exists()
    server.files["/train2017/train2.jpg"] = whole
    load(settings(server, root), "pretraining")
    assert (root / "train2017" / "train2.jpg").read_bytes() == whole


def test_what_the_user_has_is_kept(server: Server, hosted: Path, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    (root / "annotations").mkdir(parents=True)
    mine = root / "annotations" / "instances_train2017.json"
    with zipfile.ZipFile(tmp_path / "annotations.zip") as archive:
        mine.write_bytes(archive.read("annotations/instances_train2017.json") + b" ")
    (root / "annotations.zip").write_bytes(server.files["/annotations.zip"])
    (root / ".cvexp-annotations" / "left").mkdir(parents=True)  # by a start that was killed
    load(settings(server, root), "pretraining")
    assert mine.read_bytes().endswith(b" ")
    assert (root / "annotations.zip").exists()
    assert not (root / ".cvexp-annotations").exists()


def _fetch_coco(arguments: tuple[str, str, str, str]) -> int:
    root, cache, url, md5 = arguments
    known = {"download": True, "annotations_url": url, "annotations_md5": md5, "cache": cache}
    return len(load(dataset("coco", root, classes=["cat"], **known), "pretraining").train)


@pytest.mark.slow
def test_two_processes_at_once_fetch_each_file_once(server: Server, hosted: Path, tmp_path: Path) -> None:
    md5 = hashlib.md5(server.files["/annotations.zip"]).hexdigest()
    job = (str(tmp_path / "mine"), str(tmp_path / "cache"), server.url("/annotations.zip"), md5)
    with forked_pool() as pool:
        assert pool.map(_fetch_coco, [job] * 2, chunksize=1) == [4, 4]
    paths = [path for path, _ in server.requests]
    assert sorted(paths) == sorted(set(paths))
    assert len(paths) == 7


@pytest.mark.slow
def test_task_prepare_fetches_and_a_run_follows(
    cvexp: Callable[..., Outcome], server: Server, hosted: Path, tmp_path: Path
) -> None:
    md5 = hashlib.md5(server.files["/annotations.zip"]).hexdigest()
    data = ["dataset=coco", f"dataset.root={tmp_path / 'mine'}", "dataset.classes=[cat,dog]", "dataset.download=true"]
    data += [f"dataset.annotations_url={server.url('/annotations.zip')}", f"dataset.annotations_md5={md5}"]
    assert cvexp("task=prepare", "tracking.system_metrics=false", *data).code == 0
    server.requests.clear()
    tiny = [argument for argument in TINY if not argument.startswith("dataset.")]
    assert cvexp(*tiny, *data, "trainer.max_steps=1").code == 0
    assert server.requests == []
    assert {run.info.status for run in runs()} == {"FINISHED"}


def test_course_archives_are_fetched(server: Server, course: Path, tmp_path: Path) -> None:
    for name in ("unlabelled_dataset.zip", "segmentation_dataset.zip"):
        server.files[f"/{name}"] = (course / name).read_bytes()
    server.faults["/segmentation_dataset.zip"] = ["html"]
    keys = {"download": True, "url": server.url(""), "password": "dl_lab"}
    settings = dataset("course", tmp_path / "mine", **keys)
    assert len(load(settings, "pretraining").train) == 60
    with pytest.raises(UserError, match="web page"):
        load(settings, "segmentation")
    assert len(load(settings, "segmentation").train.images) == 24
    assert (tmp_path / "mine" / "segmentation_dataset.zip").read_bytes() == server.files["/segmentation_dataset.zip"]
