"""The examples of docs/serving.md, in servers that hostile clients talk to, too."""

import base64
import contextlib
import json
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import cvexp as package
from cvexp.inference.segmenter import Segmenter
from tests.helpers import TINY_SEGMENTATION, Outcome, code_blocks, free_port, serving

pytestmark = pytest.mark.slow  # these tests train, and start servers

STEP = ["trainer.max_epochs=1", "trainer.max_steps=1"]
WITHOUT_CVEXP = "import sys; sys.modules |= {'cvexp': None, 'torch': None}\n"


@pytest.fixture
def registered(cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    """A store with a model `animals`, of which a version is the champion, and a photograph."""
    own = [setting for setting in TINY_SEGMENTATION if not setting.startswith("trainer.max_epochs")]
    assert cvexp(*own, *STEP, "task=multiclass").code == 0
    outcome = cvexp("task=register", "task.model=animals", "task.alias=champion")
    assert outcome.code == 0, outcome.message
    Image.effect_mandelbrot((80, 60), (-2, -1.5, 1, 1.5), 20).convert("RGB").save("photo.jpg")
    monkeypatch.delenv("PYTHONPATH", raising=False)


def isolated(block: str) -> str:
    """Run a block of Python in a process that can import neither cvexp nor PyTorch, and return what it prints."""
    ran = subprocess.run([sys.executable, "-c", WITHOUT_CVEXP + block], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@contextlib.contextmanager
def running(block: str) -> Iterator[str]:
    """Run a block of Bash that starts a server at port 5001, at a free port instead, and yield its address."""
    port = free_port()
    environment = {"MLFLOW_TRACKING_URI": "sqlite:///outputs/mlflow.db"}
    address = f"http://127.0.0.1:{port}"
    with serving(["bash", "-c", block.replace("5001", port)], f"{address}/ping", environment=environment) as server:
        yield address
        assert server.poll() is None


def ask(address: str, content: bytes | object, kind: str = "application/json") -> tuple[int, Any]:
    """Send a request, and return the status and what was answered."""
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    request = urllib.request.Request(f"{address}/invocations", data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return error.code, json.loads(text) if text.startswith("{") else text


def with_image(data: bytes) -> dict[str, Any]:
    return {"dataframe_records": [{"image": base64.b64encode(data).decode()}]}


def good() -> dict[str, Any]:
    return with_image(Path("photo.jpg").read_bytes())


HUGE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xc3\x50\0\0\xc3\x50\x08\x02\0\0\0\x1a\x5d\x63\x84\0\0\0\0IDAT"

# Requests that reach the program of the model.
BAD_IMAGES = {
    "empty": b"",
    "text": b"hello",
    "truncated": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
    "bomb": HUGE,
    "large": bytes(20_000_000),
}

# Requests that MLflow's server refuses before.
BAD_REQUESTS: dict[str, bytes | object] = {
    "no JSON": b"image",
    "half of JSON": b'{"dataframe_records": [',
    "a list": [1],
    "nothing": b"",
    "bytes": b"\xff\xfe",
    "no records": {"dataframe_records": []},
    "no column": {"dataframe_records": [{"picture": "abcd"}]},
    "null": {"dataframe_records": [{"image": None}]},
    "a number": {"dataframe_records": [{"image": 3}]},
    "lists": {"dataframe_records": [{"image": [[[1]]]}]},
    "no base64": {"dataframe_records": [{"image": "abcde"}]},
    "columns": {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]]}},
    "inputs": {"inputs": "abc"},
    "messages": {"messages": []},
    "no key": {"image": "abcd"},
}


def test_models_load_and_serve_as_the_page_says(registered: None) -> None:
    load, client, _ = code_blocks("serving.md", "python")
    serve, curl, _ = code_blocks("serving.md", "bash")
    assert max(len(block.strip().splitlines()) for block in (load, client)) <= 10
    assert "presence" in isolated(load)
    segmenter = package.load("models:/animals@champion")
    assert isinstance(segmenter, Segmenter)
    expected = segmenter.predict("photo.jpg").labels
    with running(serve) as address:
        port = address.rpartition(":")[2]
        ran = subprocess.run(["bash", "-c", curl.replace("5001", port)], capture_output=True, check=True)
        assert (json.loads(ran.stdout)["predictions"][0]["height"]) == 60
        isolated(client.replace("5001", port))
        assert np.mean(np.asarray(Image.open("mask.png")) != expected) <= 0.005
        for name, data in BAD_IMAGES.items():
            status, answer = ask(address, with_image(data))
            assert status == 400, name
            assert re.match(r"image 1: it [^\n]{1,200}$", answer["message"]), name
        for name, content in BAD_REQUESTS.items():
            status, answer = ask(address, content)
            assert (status, "stack_trace" in answer) == (400, False), name
        status, answer = ask(address, {**good(), "params": {"format": "gif"}})
        assert (status, answer["message"]) == (400, "format: got 'gif', but it must be png or rle")
        assert ask(address, {**good(), "params": [1]})[0] == 400
        status, answer = ask(address, {**good(), "params": {"format": "rle"}})
        assert (status, type(json.loads(answer["predictions"][0]["mask"]))) == (200, dict)
        status, answer = ask(address, {"dataframe_split": {"columns": ["image"], "data": [[]]}})
        assert status == 400
        assert ask(address, good())[0] == 200


def test_the_server_for_strangers_answers_everything_in_one_sentence(registered: None) -> None:
    Path("server.py").write_text(code_blocks("serving.md", "python")[2])
    deep = b'{"dataframe_records":' + b"[" * 100_000
    tables = {"a,b\n1,2,3,4": "text/csv", "abc": "application/vnd.apache.parquet", "--a": "multipart/form-data"}
    with running(code_blocks("serving.md", "bash")[2]) as address:
        requests: list[tuple[bytes | object, str]] = [
            *((content, "application/json") for content in BAD_REQUESTS.values()),
            *((with_image(data), "application/json") for data in BAD_IMAGES.values()),
            *((text.encode(), kind) for text, kind in tables.items()),
            (deep, "application/json"),
            ({"dataframe_split": {"columns": [{}], "data": [[1]]}}, "application/json"),
            ({**good(), "params": [1]}, "application/json"),
            (with_image(bytes(37_500_000)), "application/json"),
        ]
        for content, kind in requests:
            status, answer = ask(address, content, kind)
            assert status in (400, 413, 415), (answer, str(content)[:100])
            assert re.fullmatch(r"[^\n]{1,300}", answer["message"]), answer
        status, answer = ask(address, good())
        assert (status, answer["predictions"][0]["width"]) == (200, 80)
