"""Make the pictures that README.md and docs/ show, from the current code, on generated images.

    make pictures
    python experiments/pictures.py [--folder outputs/pictures] [--out docs] [--quick]

It trains the networks of `make demo`, and two pretraining runs that collapse. A second start with the same folder
trains only what is missing, and makes all pictures again. --quick trains for one epoch on a few images, to see whether
the script works. Pictures of pages need Chromium and `pip install 'cvexp[dev]'`. The page of a study is
experiments/voc6_study.html, because a study takes hours.
Expected: ten pictures in docs/, each smaller than 200 kB, and the measures of the pretraining runs; about seven minutes
of processor time.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from matplotlib.figure import Figure
from mlflow import MlflowClient
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

import cvexp
from cvexp.report import curves, embedding
from cvexp.report.arrays import read_arrays

PICTURES = (
    *("result", "tsne", "collapse", "neighbors", "attention"),  # figures
    *("explorer", "report", "study", "mlflow", "demo"),  # pages
)
LARGEST = 200_000  # bytes of a picture
WIDEST = 1300  # pixels

# Whether all pictures that a selector finds, and what contains them, are opaque.
IS_OPAQUE = """selector => [...document.querySelectorAll(selector)].every(picture => {
    for (let element = picture; element; element = element.parentElement)
        if (getComputedStyle(element).opacity < 1) return false;
    return true;
})"""

DEMO = "+experiment=demo"
QUICK = ["trainer.max_epochs=1", "dataset.limit=60"]
UNPICTURED = ["task.embed_every_n_epochs=12", "task.dense_images=0"]
# Batch norm in the head prevents the first collapse by itself, so it is off, too.
COLLAPSES = {
    "without centering": ["task.center_momentum=1", "task.batch_norm=false"],
    "without sharpening": [
        "task.teacher_temperature=0.2",
        "task.warmup_teacher_temperature=0.2",
        "task.batch_norm=false",
    ],
}
MEASURES = {
    "loss (nats)": "val/loss",
    "kNN accuracy": "val/knn_top1",
    "teacher's entropy (nats)": "val/teacher_entropy",
    "teacher's KL (nats)": "val/teacher_kl",
}
PRINTED = (*MEASURES.values(), "val/feature_rank", "val/feature_std")


class Runs:
    """The runs in a folder, by what they are called here. A run that has finished is not trained again."""

    def __init__(self, folder: Path, is_quick: bool) -> None:
        self.folder, self.is_quick = folder, is_quick
        self.client = MlflowClient(f"sqlite:///{folder.absolute() / 'mlflow.db'}")
        self._file = folder / "pictures.json"
        self.ids: dict[str, str] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def make(self, name: str, *words: str) -> str:
        """Return the id of a run, after training it if need be."""
        if name not in self.ids:
            started = time.perf_counter()
            self.ids[name] = cvexp.run(*words, f"tracking.folder={self.folder}").run_id
            self._file.write_text(json.dumps(self.ids))
            print(f"{name}: {time.perf_counter() - started:.0f} seconds", flush=True)
        return self.ids[name]

    def train(self, name: str, *words: str) -> str:
        return self.make(name, *words, *(QUICK if self.is_quick else []))

    def artifact(self, name: str, path: str) -> Path:
        return Path(self.client.download_artifacts(self.ids[name], path))

    def history(self, name: str, metric: str) -> list[tuple[int, float]]:
        return [(value.step, value.value) for value in self.client.get_metric_history(self.ids[name], metric)]


def train(runs: Runs) -> None:
    """Train what the pictures show, as `make demo` does, and what collapses."""
    pretraining = runs.train("dino", DEMO)
    runs.make("neighbors", "task=neighbors", f"run={pretraining}")
    runs.make("probe", "task=probe", f"runs=[{pretraining}]", "task.controls=[untrained,batch_norm,histogram]")
    weights = f"backbone.weights=runs:/{pretraining}"
    for task in ("multiclass", "attention"):
        runs.train(task, "+experiment=demo_segmentation", f"task={task}", weights)
    runs.make("compare", "task=compare", f"runs=[{runs.ids['multiclass']},{runs.ids['attention']}]")
    runs.make("report", "task=report", f"run={runs.ids['compare']}")
    for name, words in COLLAPSES.items():
        runs.train(name, DEMO, f"name={name.replace(' ', '-')}", *words, *UNPICTURED)


def draw(runs: Runs, out: Path) -> None:
    """Draw the figures."""
    for name, (run, path) in {
        "result": ("compare", "comparison/examples.png"),
        "neighbors": ("neighbors", "neighbors/grid.png"),
        "attention": ("attention", "pictures/one_after_another.png"),
    }.items():
        save(Image.open(runs.artifact(run, path)), out / f"{name}.png")
    epochs = sorted(int(file.path[-8:-4]) for file in runs.client.list_artifacts(runs.ids["dino"], "embeddings"))
    layouts = {
        epoch: embedding.Embedding(**read_arrays(runs.artifact("dino", f"embeddings/epoch-{epoch:04d}.npz")))
        for epoch in (epochs[0], epochs[-1])
    }
    classes = cvexp.compose("dataset=shapes").dataset.classes or []
    save(drawn(embedding.draw_epochs(layouts, classes)), out / "tsne.png")
    lines: dict[str, list[curves.Curve]] = {label: [] for label in MEASURES}
    for name, run in {"healthy": "dino", **{name: name for name in COLLAPSES}}.items():
        histories = {metric: runs.history(run, metric) for metric in PRINTED}
        print(name, {metric: [round(values[i][1], 3) for i in (0, -1)] for metric, values in histories.items()})
        steps_per_epoch = histories["val/loss"][1][0]
        for label, metric in MEASURES.items():
            lines[label].append(curves.Curve(name, [], histories[metric], steps_per_epoch))
    save(drawn(curves.compare(lines)), out / "collapse.png")


def drawn(figure: Figure) -> Image.Image:
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return Image.open(content)


def save(image: Image.Image, path: Path) -> None:
    """Save a picture with as many colors as fit into `LARGEST` bytes."""
    image = image.convert("RGB")
    image.thumbnail((WIDEST, 10 * WIDEST), Image.Resampling.LANCZOS)
    for num_colors in (256, 128, 64, 32):
        # This method keeps rare colors, such as the thin frames that show classes.
        reduced = image.quantize(num_colors, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        reduced.save(path, optimize=True)
        if path.stat().st_size <= LARGEST:
            break
    print(f"{path}: {image.width} x {image.height} px, {path.stat().st_size / 1000:.0f} kB", flush=True)


def shoot(tab: Page, path: Path) -> None:
    save(Image.open(io.BytesIO(tab.screenshot())), path)


def photograph(runs: Runs, browser: Browser, out: Path) -> None:
    """Photograph the pages that are files."""
    tab = browser.new_page(viewport={"width": 1200, "height": 760}, reduced_motion="reduce")
    tab.goto(runs.artifact("dino", "explorer.html").as_uri())
    tab.wait_for_selector("body[data-ready]")
    tab.locator("#number").fill("14")
    tab.locator("#number").press("Enter")
    shoot(tab, out / "explorer.png")
    pages = {
        "report": (runs.artifact("report", "report/report.html"), 900),
        "study": (Path(__file__).parent / "voc6_study.html", 1250),
    }
    for name, (page, height) in pages.items():
        tab = browser.new_page(viewport={"width": 1100, "height": height})
        tab.goto(page.as_uri())
        shoot(tab, out / f"{name}.png")


def photograph_mlflow(runs: Runs, browser: Browser, out: Path) -> None:
    """Photograph the metrics of the pretraining run in MLflow."""
    backend = f"sqlite:///{runs.folder.absolute() / 'mlflow.db'}"
    with serving("-m", "mlflow", "ui", "--workers", "1", "--backend-store-uri", backend, "--port") as address:
        experiment = runs.client.get_run(runs.ids["dino"]).info.experiment_id
        tab = browser.new_page(viewport={"width": 1300, "height": 850})
        tab.goto(f"{address}/#/experiments/{experiment}/runs/{runs.ids['dino']}/model-metrics")
        tab.get_by_text("demo (best/knn_top1)").first.wait_for(timeout=120_000)  # the legend of a chart
        save(
            Image.open(io.BytesIO(tab.screenshot())).crop((0, 0, 966, 850)), out / "mlflow.png"
        )  # without the assistant


def photograph_demo(runs: Runs, browser: Browser, out: Path) -> None:
    """Photograph the page on which a network can be tried."""
    words = ["task=demo", f"run={runs.ids['attention']}", f"tracking.folder={runs.folder}"]
    with serving("-m", "cvexp", *words, "task.port=") as address:
        tab = browser.new_page(viewport={"width": 1300, "height": 900})
        tab.goto(address)
        tab.locator("#examples button").nth(1).click()
        tab.locator("#photo img").wait_for()
        tab.locator("#choice input").click()
        tab.get_by_role("option", name="star", exact=True).click()
        tab.locator("#attention img").wait_for()
        tab.wait_for_function(IS_OPAQUE, arg="#photo img, #attention img")  # the page fades its pictures in
        shoot(tab, out / "demo.png")


@contextmanager
def serving(*arguments: str) -> Iterator[str]:
    """Start a server of this Python at a free port, which is added to the last argument, and give its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    *words, last = arguments
    words += [f"{last}{port}"] if last.endswith("=") else [last, port]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen([sys.executable, *words], env=environment, **quiet)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with suppress(OSError):
                urllib.request.urlopen(address).close()
                break
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/pictures"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("the pictures of pages need Chromium: apt install chromium")
    for folder in (arguments.folder, arguments.out):
        folder.mkdir(parents=True, exist_ok=True)
    runs = Runs(arguments.folder, arguments.quick)
    train(runs)
    draw(runs, arguments.out)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        photograph(runs, browser, arguments.out)
        photograph_mlflow(runs, browser, arguments.out)
        photograph_demo(runs, browser, arguments.out)


if __name__ == "__main__":
    main()
