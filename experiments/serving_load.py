"""Send requests of many clients to a served model, a fifth of them hostile, and measure what comes back and how fast.

    python experiments/serving_load.py models:/NAME@champion FOLDER_OF_PHOTOGRAPHS [tracking.folder=...] [address=...]

It starts `mlflow models serve`, unless it is given the address of another server for the same model. Eight clients send
500 requests with a photograph each; every fifth is hostile instead: no image, text, a bomb, or 50 MB. The latency is
that of the good requests, beside those of the bare networks on one square in memory.
Expected: all requests are answered, the hostile ones with status 4xx and one sentence, by a server that goes on.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
import onnxruntime
import requests
import torch

import cvexp
from cvexp.data.files.listing import list_images

NUM_REQUESTS, NUM_CLIENTS, EVERY = 500, 8, 5
REPEATS = 50


class Answer(NamedTuple):
    """What came back: the kind of the request, the status (0: nothing), the message, and the time in seconds."""

    kind: str
    status: int
    message: str
    seconds: float


def bomb() -> bytes:
    """Return a small PNG file that claims to have 50 000 x 50 000 px."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))


def body(data: bytes | None) -> bytes:
    image = None if data is None else base64.b64encode(data).decode()
    return json.dumps({"dataframe_records": [{"image": image}]}).encode()


def send(address: str, kind: str, content: bytes) -> Answer:
    started = time.perf_counter()
    try:
        answer = requests.post(
            f"{address}/invocations", content, headers={"Content-Type": "application/json"}, timeout=120
        )
    except requests.RequestException as error:
        return Answer(kind, 0, str(error), time.perf_counter() - started)
    seconds = time.perf_counter() - started
    message = "" if answer.ok else answer.json().get("message", "") if answer.text.startswith("{") else answer.text
    return Answer(kind, answer.status_code, message, seconds)


@contextlib.contextmanager
def served(model: str, uri: str) -> Iterator[str]:
    """Start MLflow's server for a model, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["mlflow", "models", "serve", "-m", model, "--env-manager", "local", "--host", "127.0.0.1"]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [*command, "--port", str(port)],
            env={**os.environ, "MLFLOW_TRACKING_URI": uri},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()


def wait_for(address: str) -> None:
    for _ in range(600):
        with contextlib.suppress(requests.RequestException):
            requests.get(f"{address}/ping", timeout=5)
            return
        time.sleep(0.2)


def milliseconds(seconds: list[float]) -> str:
    median, high = np.quantile(np.array(seconds) * 1000, [0.5, 0.95])
    return f"median {median:.1f} ms, 95 % {high:.1f} ms ({len(seconds)})"


def timed(forward: Callable[[], object]) -> str:
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        forward()
        seconds.append(time.perf_counter() - started)
    return milliseconds(seconds[5:])


def bare(model: str, folder: str, uri: str) -> None:
    """Print the time of the network alone, as ONNX file and in PyTorch."""
    mlflow.set_tracking_uri(uri)
    segmenter = cvexp.load(model, tracking_folder=folder)
    assert isinstance(segmenter, cvexp.Segmenter)
    squares = torch.zeros(1, 3, segmenter.size, segmenter.size, dtype=torch.uint8)
    print(f"bare PyTorch     {timed(lambda: segmenter.label_squares(squares))}")
    path = Path(mlflow.artifacts.download_artifacts(f"{model}/artifacts/model.onnx"))
    session = onnxruntime.InferenceSession(path)
    feeds = {"images": squares.numpy()}
    print(f"bare ONNX        {timed(lambda: session.run(['scores'], feeds))}")


def main() -> None:
    model, photographs, *settings = sys.argv[1:]
    options = dict(word.split("=", 1) for word in settings)
    folder = options.get("tracking.folder", "outputs")
    uri = f"sqlite:///{Path(folder).absolute() / 'mlflow.db'}"
    photos = [body(path.read_bytes()) for path in list_images([photographs], "FOLDER_OF_PHOTOGRAPHS")[:40]]
    hostile = {"no image": body(None), "text": body(b"hello"), "bomb": body(bomb()), "50 MB": body(bytes(37_500_000))}
    bare(model, folder, uri)
    kinds = itertools.cycle(hostile.items())
    wanted = [next(kinds) if i % EVERY == 0 else ("photograph", photos[i % len(photos)]) for i in range(NUM_REQUESTS)]
    with contextlib.nullcontext(options["address"]) if "address" in options else served(model, uri) as address:
        wait_for(address)
        alone = [send(address, "alone", photos[i % len(photos)]) for i in range(REPEATS)]
        print(f"one client       {milliseconds([answer.seconds for answer in alone if answer.status == 200][5:])}")
        started = time.perf_counter()
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            answers = list(pool.map(lambda request: send(address, *request), wanted))
        elapsed = time.perf_counter() - started
        is_alive = requests.get(f"{address}/ping", timeout=60).ok
    good = [answer.seconds for answer in answers if answer.status == 200]
    print(f"{NUM_CLIENTS} clients        {milliseconds(good)}, {NUM_REQUESTS / elapsed:.1f} requests/s")
    for (kind, status), number in sorted(Counter((answer.kind, answer.status) for answer in answers).items()):
        example = next(answer for answer in answers if (answer.kind, answer.status) == (kind, status))
        print(f"{kind:12} {number:4} x status {status}  {example.message[:150]!r}")
    print(f"lost: {sum(answer.status == 0 for answer in answers)}; the server still answers: {is_alive}")


if __name__ == "__main__":
    main()
