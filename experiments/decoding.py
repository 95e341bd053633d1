"""Which JPEG decoder is the fastest? The script compares the milliseconds per image on one processor core.

    python experiments/decoding.py FOLDER        (optionally after pip install opencv-python-headless simplejpeg)

Expected (COCO's photographs, 640 x 480 px): no decoder is twice as fast as Pillow, which remains the choice because
it reads all formats and modes. Pillow's `draft` does help: it decodes a large photograph at the scale that the views
need.
"""

import importlib
import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.io import decode_jpeg

from cvexp.data.files.images import decode


def optional() -> dict[str, Callable[[bytes], object]]:
    """Return the optional decoders that are installed; cvexp does not need them."""
    found: dict[str, Callable[[bytes], object]] = {}
    for name in ("cv2", "simplejpeg"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if name == "cv2":
            module.setNumThreads(1)
            found["OpenCV"] = lambda data, cv2=module: cv2.cvtColor(
                cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
            )
        else:
            found["simplejpeg"] = lambda data, jpeg=module: jpeg.decode_jpeg(data, "RGB")
    return found


def main() -> None:
    torch.set_num_threads(1)
    files = [path.read_bytes() for path in sorted(Path(sys.argv[1]).rglob("*.jpg"))[:200]]
    large = []
    for data in files[:8]:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(data)).convert("RGB").resize((4000, 3000)).save(buffer, "JPEG", quality=90)
        large.append(buffer.getvalue())
    decoders: dict[str, Callable[[bytes], object]] = {
        "Pillow": lambda data: np.array(Image.open(io.BytesIO(data)).convert("RGB")),
        "cvexp (Pillow, upright, safe)": lambda data: np.array(decode(data)),
        "cvexp, a quarter of the size is enough": lambda data: np.array(decode(data, at_least=0.25)),
        "torchvision": lambda data: decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8)),
        **optional(),
    }
    for title, images in ((f"{len(files)} images", files), ("8 images of 12 megapixels", large)):
        print(title)
        best = dict.fromkeys(decoders, float("inf"))
        for _ in range(3):  # in turn, so other work on the machine affects all of them alike
            for name, decoder in decoders.items():
                started = time.perf_counter()
                for data in images:
                    decoder(data)
                best[name] = min(best[name], (time.perf_counter() - started) / len(images))
        for name, seconds in best.items():
            print(f"  {name:40} {1000 * seconds:7.2f} ms")


if __name__ == "__main__":
    main()
