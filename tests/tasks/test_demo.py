"""The page of `task=demo` in a real browser, and what becomes of files that are no photos."""

import json
import shutil
import signal
import socket
import struct
import sys
import threading
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from cvexp.demo import server
from cvexp.demo.photos import SIDE, read_photo
from cvexp.demo.server import check_address
from cvexp.demo.views import look
from cvexp.errors import UserError
from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, finish, runs, save_image, start, store, write_coco

pytestmark = pytest.mark.slow  # these tests train

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
CLASSES = ["R&D", "<b>x</b>", "it's (parked)"]
NAME = "R&D <i>1</i>"
SENTENCE = "This file can't be read as an image."


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def odd_coco(root: Path) -> Path:
    """Write a data set whose classes have odd names."""
    write_coco(root, train=4, val=3)
    for path in (root / "annotations").iterdir():
        content = json.loads(path.read_text())
        for category, name in zip(content["categories"], CLASSES, strict=True):
            category["name"] = name
        path.write_text(json.dumps(content))
    return root


def training(root: Path, task: str) -> list[str]:
    of_shapes = ("dataset.train_images", "dataset.val_images", "dataset.test_images", "trainer.max_epochs")
    tiny = [setting for setting in TINY_SEGMENTATION if not setting.startswith(of_shapes)]
    return [
        *tiny,
        f"task={task}",
        "dataset=coco",
        f"dataset.root={root}",
        "trainer.max_epochs=1",
        "name='R&D <i>1</i>'",
    ]


def bomb(path: Path, side: int) -> None:
    """Write a small PNG file that claims to have `side` x `side` pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1 << 20))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


class Demo(NamedTuple):
    """A demo that is running: its address, its process, and where its run is recorded."""

    url: str
    process: Any
    folder: Path


@pytest.fixture
def demo(cvexp: Callable[..., Outcome], tmp_path: Path) -> Iterator[Demo]:
    """The demo of a run of task=attention, in a process of its own."""
    folder, port = tmp_path / "my runs", free_port()
    assert cvexp(*training(odd_coco(tmp_path / "coco"), "attention"), f"tracking.folder={folder}").code == 0
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = start("task=demo", f"tracking.folder={folder}", f"task.port={port}", TMPDIR=str(temporary))
    try:
        lines = iter(process.stdout.readline, "")  # type: ignore[union-attr]
        assert any(f"open http://127.0.0.1:{port}" in line for line in lines)
        yield Demo(f"http://127.0.0.1:{port}", process, folder)
        process.send_signal(signal.SIGTERM)
        output = finish(process, seconds=60)
        assert "the demo has ended" in output
        assert "Traceback" not in output.rpartition("was not uploaded")[2]  # Gradio prints what it refuses
        assert [run.data.tags["task"] for run in runs(folder)] == ["attention"]  # a demo is not recorded
        assert not list(temporary.glob("cvexp-demo-*"))  # nor are photos kept
    finally:
        process.kill()


@pytest.fixture
def tab(demo: Demo) -> Iterator[Page]:
    """The page. Any request to another machine fails the test."""
    requests: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1300, "height": 900})
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("pageerror", lambda error: requests.append(str(error)))
        tab.goto(demo.url)
        yield tab
        browser.close()
    assert len(requests) > 10
    assert [url for url in requests if not url.startswith((f"{demo.url}/", "data:", "blob:"))] == []


def upload(tab: Page, path: Path) -> None:
    """Upload a file in place of the photo that is there."""
    if tab.locator("#photo img").count():
        tab.get_by_role("button", name="Remove Image").click()
        tab.locator("#photo img").wait_for(state="detached")
    tab.set_input_files("#photo input[type=file]", path)


def choose(tab: Page, name: str) -> None:
    tab.locator("#choice input").click()
    tab.get_by_role("option", name=name, exact=True).click()


def segments_a_photo(tab: Page, tmp_path: Path) -> None:
    heading = tab.locator("#heading")
    expect(heading).to_contain_text(NAME)
    expect(heading).to_contain_text("task attention · 3 classes: R&D, <b>x</b>, it's (parked)")
    expect(heading).to_contain_text("mIoU 0.")
    expect(tab.locator("#examples img")).to_have_count(3)
    choose(tab, "R&D")  # before there is a photo
    choose(tab, "all classes")
    save_image(tmp_path / "photo.tif", mode="CMYK", size=(300, 200))  # no browser can show such a file
    upload(tab, tmp_path / "photo.tif")
    expect(tab.locator("#labels img")).to_be_visible()
    expect(tab.locator("#table li")).to_have_count(3)
    assert tab.locator("#photo img").evaluate("image => image.naturalWidth") == 300
    assert not tab.locator("#attention").is_visible()
    choose(tab, "<b>x</b>")
    for picture in ("#labels", "#probability", "#attention"):
        expect(tab.locator(f"{picture} img")).to_be_visible()
    expect(tab.locator("#labels")).to_contain_text("Mask")
    row = tab.locator("#table li")  # only this class was queried
    expect(row).to_have_count(1)
    expect(row).to_contain_text("<b>x</b>")
    assert 0 <= float(row.locator("b").inner_text()) <= 1
    tab.locator("#examples button").first.click()
    tab.wait_for_function("document.querySelector('#photo img').naturalWidth == 80")
    tab.set_viewport_size({"width": 360, "height": 740})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    tab.set_viewport_size({"width": 1300, "height": 900})
    choose(tab, "all classes")


def explains_what_is_no_photo(tab: Page, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image <script>alert(1)</script>")
    bomb(tmp_path / "bomb.png", 60_000)
    save_image(tmp_path / "whole.jpg", size=(400, 300))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:5000])
    sentences = {"text.png": SENTENCE, "bomb.png": "This image has too many pixels.", "cut.jpg": SENTENCE}
    for name, sentence in sentences.items():
        upload(tab, tmp_path / name)
        expect(tab.locator("#problem")).to_contain_text(sentence)
        expect(tab.locator("#labels img")).to_have_count(0)
        upload(tab, tmp_path / "whole.jpg")  # the server is still there
        expect(tab.locator("#labels img")).to_be_visible()
        expect(tab.locator("#problem")).to_be_hidden()


def serves_only_this_machine_and_only_uploads(demo: Demo) -> None:
    port = int(demo.url.rpartition(":")[2])
    table = Path("/proc/net/tcp")
    if table.exists():
        listening = [line.split()[1] for line in table.read_text().splitlines()[1:] if line.split()[3] == "0A"]
        assert [address for address in listening if address.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    secret = demo.folder / "mlflow.db"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{demo.url}/gradio_api/file={urllib.request.pathname2url(str(secret))}")
    file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    configuration = json.load(urllib.request.urlopen(f"{demo.url}/config"))
    (number,) = (d["id"] for d in configuration["dependencies"] if d["targets"][0][1] == "upload")
    body = json.dumps({"data": [file, -1], "fn_index": number, "session_hash": "a"}).encode()
    json_type = {"Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{demo.url}/gradio_api/queue/join", body, json_type))
    answer = urllib.request.urlopen(f"{demo.url}/gradio_api/queue/data?session_hash=a").read().decode()
    assert '"success":false' in answer  # the task's own answer would have been a sentence


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")
def test_the_page(demo: Demo, tab: Page, tmp_path: Path) -> None:
    """In one test, because a demo takes long to start."""
    segments_a_photo(tab, tmp_path)
    explains_what_is_no_photo(tab, tmp_path)
    serves_only_this_machine_and_only_uploads(demo)


def test_large_photos_are_reduced(tmp_path: Path) -> None:
    Image.new("RGB", (4000, 3000), "white").save(tmp_path / "large.jpg")
    assert read_photo(tmp_path / "large.jpg").size == (SIDE, SIDE * 3 // 4)
    bomb(tmp_path / "large.png", 10_001)  # pixels, which Pillow would decode
    with pytest.raises(UserError, match="too many pixels"):
        read_photo(tmp_path / "large.png")


def test_models_and_mistakes(cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    served: list[Any] = []
    monkeypatch.setattr("cvexp.demo.server.serve", lambda *arguments: served.append(arguments))
    assert "there is no finished segmentation run" in cvexp("task=demo").message
    root = odd_coco(tmp_path / "coco")
    assert cvexp(*training(root, "multiclass"), 'dataset.classes=["R&D","it\'s (parked)"]').code == 0
    run = runs()[0]
    store().create_registered_model("pets")
    uri = f"{run.info.artifact_uri}/checkpoints/best.ckpt"
    store().create_model_version("pets", uri, run_id=run.info.run_id)
    for settings, title in ((["task.model=models:/pets/1"], "models:/pets/1"), ([], "R&amp;D &lt;i&gt;1&lt;/i&gt;")):
        outcome = cvexp("task=demo", *settings)
        assert outcome.code == 0, outcome.message
        segmenter, heading, examples, host, port = served.pop()
        assert f"<h1>{title}</h1><p>task multiclass · 2 classes: R&amp;D, it&#x27;s (parked) · validation" in heading
        assert (len(examples), host, port) == (2, "127.0.0.1", 7860)  # of R&D
    view = look(segmenter, examples[0], "R&D")
    assert view.probability is not None
    assert view.attention is None
    assert view.table.count("<li") == 2  # this network computes all classes anyway
    shutil.rmtree(root)
    outcome = cvexp("task=demo")
    assert outcome.code == 0, outcome.message
    assert "there are no examples: " in outcome.message
    assert served.pop()[2] == []
    assert cvexp(*TINY, "trainer.max_steps=1", "task.dense_images=0").code == 0
    store().create_model_version("pets", f"{runs()[0].info.artifact_uri}/checkpoints/best.ckpt")
    for settings, message in (
        (["task.model=models:/pets/2"], "task.model: models:/pets/2 is a pretrained network"),
        (["task.model=models:/pets/3"], "task.model: the registry has no models:/pets/3"),
        (["task.model=pets"], "task.model: got 'pets', but it must be null or models:/NAME@ALIAS"),
        (["task.model=models:/pets/1", f"run={run.info.run_id}"], "run: task.model= is given, too"),
        (["task.port=0"], "task.port: got 0, but it must be from 1 to 65535"),
    ):
        outcome = cvexp("task=demo", *settings)
        assert outcome.code == 1
        assert message in outcome.message
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert "pip install 'cvexp[demo]'" in cvexp("task=demo").message
    assert served == []


@pytest.mark.parametrize(("host", "is_open"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_an_open_demo_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], host: str, is_open: bool
) -> None:
    launched: dict[str, Any] = {}
    blocks = SimpleNamespace(launch=lambda **settings: launched.update(settings), close=lambda **_: None)
    monkeypatch.setattr(server, "Page", lambda *_: SimpleNamespace(blocks=blocks))
    monkeypatch.setattr(threading.Event, "wait", interrupt)
    server.serve(SimpleNamespace(), "", [], host, free_port())  # type: ignore[arg-type]
    assert (launched["server_name"], launched["share"]) == (host, False)
    printed = capsys.readouterr().out
    assert ("anyone who can reach this machine can use the demo" in printed) is is_open
    assert "the demo has ended" in printed


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_the_address_is_checked() -> None:
    port = free_port()
    assert check_address("127.0.0.1", port)
    assert not check_address("0.0.0.0", port)
    with pytest.raises(UserError, match=r"task\.host: .*192\.0\.2\.1"):
        check_address("192.0.2.1", port)  # which belongs to no machine
    with (
        socket.create_server(("127.0.0.1", port)),
        pytest.raises(UserError, match=rf"task\.port: another program uses {port}.*task\.port={port + 1}"),
    ):
        check_address("127.0.0.1", port)
