"""Measure how fast and with how much memory `task=predict` segments pictures of mixed sizes, beside the bare network.

    python experiments/predict_speed.py RUN_ID FOLDER_OF_PHOTOGRAPHS [tracking.folder=...] [task.tiles=1]

It writes 200 JPEG pictures from 320 x 240 to 3000 x 2000 px, made of the photographs. Then it measures three times in
alternation: the bare forward pass on squares of dataset.image_size that are in memory, and the whole of task=predict.
Expected (two cores, ResNet-18 at 256 px): 0.8 of the speed of the bare forward pass if OMP_NUM_THREADS=1 leaves
the other core to all else; 0.64 without it, when the bare forward pass takes both cores; 1.7 GiB.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from PIL import Image

import cvexp
from cvexp.data.files.listing import list_images

SIZES = [(320, 240), (480, 640), (640, 480), (640, 427), (500, 375), (1024, 768), (1280, 960), (1920, 1080)]
NUM_IMAGES, NUM_LARGE = 200, 10
LARGE = (3000, 2000)
BATCH = 16


def write_pictures(photographs: str, folder: Path) -> None:
    """Write pictures of mixed sizes."""
    photos = list_images([photographs], "FOLDER_OF_PHOTOGRAPHS")
    for i in range(NUM_IMAGES):
        size = LARGE if i % (NUM_IMAGES // NUM_LARGE) == 7 else SIZES[i % len(SIZES)]
        with Image.open(photos[i % len(photos)]) as image:
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(folder / f"{i:03}.jpg", quality=90)


def bare_speed(segmenter: cvexp.Segmenter) -> float:
    """Return how many squares per second the network labels."""
    squares = torch.randint(0, 256, (BATCH, 3, segmenter.size, segmenter.size), dtype=torch.uint8)
    segmenter.label_squares(squares)
    started = time.perf_counter()
    for _ in range(NUM_IMAGES // BATCH):
        segmenter.label_squares(squares)
    return NUM_IMAGES // BATCH * BATCH / (time.perf_counter() - started)


def main() -> None:
    run_id, photographs, *settings = sys.argv[1:]
    folder = next((word.partition("=")[2] for word in settings if word.startswith("tracking.folder=")), None)
    segmenter = cvexp.load(run_id, tracking_folder=folder)
    assert isinstance(segmenter, cvexp.Segmenter)
    ratios = []
    with tempfile.TemporaryDirectory() as temporary:
        write_pictures(photographs, Path(temporary))
        for _ in range(3):
            bare = bare_speed(segmenter)
            command = [sys.executable, "-m", "cvexp", "task=predict", f"run={run_id}", f"task.images=[{temporary}]"]
            output = subprocess.run([*command, *settings], capture_output=True, text=True, check=True).stdout
            said = re.search(r"([\d.]+) images/s, at most ([\d.]+) GiB", output)
            assert said is not None, output
            ratios.append(float(said[1]) / bare)
            print(f"bare {bare:.1f} images/s, task=predict {said[1]} images/s, ratio {ratios[-1]:.2f}, {said[2]} GiB")
    print(f"median ratio: {median(ratios):.2f}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
