"""How much time does a data set as large as COCO train2017 take, and how much memory do its workers need?

    python experiments/coco_size.py            (uses about 2 GB in a temporary folder, deleted afterwards)

The script writes an annotation file with as many images, instances and polygon corners as COCO's. 118 000 links to one
image stand in for the images. Each of these steps is measured in a separate process: building the catalog; decoding all
images once; opening the results again; and adding workers to a loader, either forked or spawned. For the workers, the
script measures how much memory each adds to the total of all processes (PSS, which counts shared memory once).

Expected on two cores: building takes 41 to 74 s, 3.8 GiB of memory and 255 MiB on disk. Opening again takes 0.5 to
0.8 s. Each additional worker takes 52 MiB when forked (10 MiB if it reads nothing), and 440 MiB when spawned (300 MiB
if it reads nothing, because it loads PyTorch again).
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

import cvexp
from cvexp.config import DatasetConfig

IMAGES, INSTANCES, CATEGORIES = 118_000, 860_000, 80
CORNERS = 22  # average number per polygon, as in COCO
WIDTH, HEIGHT = 640, 480


def generate(root: Path) -> None:
    """Write the annotation files of both splits, and a file for each image."""
    random = np.random.RandomState(0)
    categories = [{"id": i + 1, "name": f"class-{i}"} for i in range(CATEGORIES)]
    (root / "annotations").mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "image.jpg")
    for split, images, instances in (("train", IMAGES, INSTANCES), ("val", 100, 700)):
        folder = root / f"{split}2017"
        folder.mkdir()
        with (root / "annotations" / f"instances_{split}2017.json").open("w") as file:
            file.write('{"categories": ' + json.dumps(categories) + ', "images": [')
            for i in range(images):
                name = f"{i:012d}.jpg"
                os.link(root / "image.jpg", folder / name) if i % 50_000 else _copy(root, folder / name)
                entry = {"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT, "coco_url": f"http://x/{name}"}
                file.write((", " if i else "") + json.dumps(entry))
            file.write('], "annotations": [')
            for i in range(instances):
                file.write((", " if i else "") + json.dumps(_annotation(random, i, i % images)))
            file.write("]}")


def _copy(root: Path, path: Path) -> None:
    """Start a new copy of the image, because a file can have only 65 000 links."""
    (root / "image.jpg").unlink()
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "image.jpg")
    os.link(root / "image.jpg", path)


def _annotation(random: np.random.RandomState, number: int, image: int) -> dict[str, object]:
    angles = np.sort(random.uniform(0, 2 * np.pi, max(3, random.poisson(CORNERS))))
    radius = random.uniform(5, 120) * random.uniform(0.7, 1, len(angles))
    x = np.clip(random.uniform(0, WIDTH) + radius * np.cos(angles), 0, WIDTH).round(2)
    y = np.clip(random.uniform(0, HEIGHT) + radius * np.sin(angles), 0, HEIGHT).round(2)
    segmentation: object = [np.stack([x, y], 1).ravel().tolist()]
    crowd = number % 100 == 0
    if crowd:
        runs = random.multinomial(WIDTH * HEIGHT - 41, [1 / 41] * 41) + 1
        segmentation = {"size": [HEIGHT, WIDTH], "counts": runs.tolist()}
    box = [float(x.min()), float(y.min()), float(np.ptp(x)), float(np.ptp(y))]
    own = {"id": number, "image_id": image, "category_id": number % CATEGORIES + 1, "iscrowd": int(crowd)}
    return {**own, "bbox": [round(value, 2) for value in box], "area": 1.0, "segmentation": segmentation}


def settings(root: str) -> DatasetConfig:
    overrides = ["dataset=coco", f"dataset.root={root}", "dataset.classes=null", f"dataset.cache={root}/cache"]
    return cvexp.compose(*overrides).dataset


def build(root: str) -> None:
    from cvexp.data import prepare
    from cvexp.data.sources import coco

    config = settings(root)
    assert isinstance(config, coco.Config)
    recipe = coco.recipes(config, "segmentation").train
    started = time.perf_counter()
    catalog = prepare.make_catalog(config, "train", recipe)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    size = sum(path.stat().st_size for path in catalog.folder.iterdir()) / 2**20
    print(
        f"built: {len(catalog.files)} images, {len(catalog.label)} instances in {seconds:.1f} s, with at most "
        f"{peak:.2f} GiB of memory; {size:.0f} MiB on disk"
    )


def load(root: str) -> None:
    from cvexp import data

    config = settings(root)
    started = time.perf_counter()
    data.load(config, "segmentation")
    print(f"loaded in {time.perf_counter() - started:.2f} s")


def workers(root: str, method: str, what: str) -> None:
    """Print the memory of a loader with 1 to 4 workers, each of which has read label maps, or nothing."""
    from torch.utils.data import DataLoader, Dataset

    from cvexp import data
    from cvexp.data.augment.labeled import PlainLabeledView
    from cvexp.data.masks import Masks

    index = data.load(settings(root), "segmentation").train
    masks: Dataset[object] = Masks(index, PlainLabeledView(64), 0) if what == "label maps" else Nothing()
    before = 0.0
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    for count in range(1, 5):
        keys = [[(0, (97 * i) % len(index.images))] for i in range(300 * count)]
        loader = DataLoader(
            masks, batch_sampler=keys, num_workers=count, multiprocessing_context=method, persistent_workers=True
        )
        for _ in loader:
            pass
        here = psutil.Process()
        total = sum(process.memory_full_info().pss for process in (here, *here.children(recursive=True))) / 2**20
        added = f", {total - before:.0f} MiB more than with one worker less" if before else ""
        print(f"{method}, {what}, {count} workers: {total:.0f} MiB{added}")
        before = total
        del loader


class Nothing:
    """A data set without an index, to measure the memory that Python and PyTorch alone take in a worker."""

    def __getitem__(self, key: object) -> int:
        return 0


def main() -> None:
    if len(sys.argv) > 1:
        {"build": build, "load": load, "workers": workers}[sys.argv[1]](*sys.argv[2:])
        return
    with tempfile.TemporaryDirectory() as root:
        started = time.perf_counter()
        generate(Path(root))
        size = (Path(root) / "annotations" / "instances_train2017.json").stat().st_size / 2**20
        print(f"generated in {time.perf_counter() - started:.0f} s; the annotation file has {size:.0f} MiB", flush=True)
        steps = [
            ["build"],
            ["load"],
            ["load"],
            ["load"],
            *(["workers", method, what] for method in ("fork", "spawn") for what in ("label maps", "nothing")),
        ]
        for step, *more in steps:
            subprocess.run([sys.executable, __file__, step, root, *more], check=True)


if __name__ == "__main__":
    main()
