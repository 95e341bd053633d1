"""The cost of one more class: several queries of one encoding, compared with a new encoding for each class.

    python experiments/attention_cost.py

The model is that of `task=attention` with ResNet-18 and the default configuration. Weights and images are random, which
does not affect the time. Any key can be set, such as `task.placement=encoder`.

Expected (two cores, ResNet-18, 128 px, five classes): one class takes 23 to 27 ms, five queries of one encoding
take 1.2 times as long, and five encodings 5.1 times as long. With task.placement=encoder, five queries of one encoding
take 2.5 times as long as one class. All logits agree within 1e-7.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

import cvexp
from cvexp.tasks.attention import Attention
from cvexp.weights.start import Start

CLASSES, REPEATS = 5, 30


def main() -> None:
    config = cvexp.compose("task=attention", *sys.argv[1:])
    torch.manual_seed(0)
    model = Attention.build_model(config, CLASSES, Start()).eval()
    images = torch.randn(1, 3, config.dataset.image_size, config.dataset.image_size)
    every = torch.arange(CLASSES)[None]

    def one() -> torch.Tensor:
        logits: torch.Tensor = model(images, every[:, :1])[0]
        return logits

    def shared() -> torch.Tensor:
        logits: torch.Tensor = model(images, every)[0]
        return logits

    def anew() -> torch.Tensor:
        return torch.cat([model(images, every[:, i : i + 1])[0] for i in range(CLASSES)], dim=1)

    ways: dict[str, Callable[[], torch.Tensor]] = {"1 class": one, "5 classes, 1 encoding": shared, "5 encodings": anew}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with torch.inference_mode():
        difference = (shared() - anew()).abs().max().item()
        for _ in range(REPEATS):  # in turn, so other work on the machine affects all of them alike
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - started)
    single = statistics.median(seconds["1 class"])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:24} {1000 * median:7.1f} ms  {median / single:.2f} times as long as one class")
    print(f"largest difference between logits: {difference:.1e}")


if __name__ == "__main__":
    main()
