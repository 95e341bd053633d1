"""Which of timm's models can cvexp train? Random ones are trained for two steps in all three training tasks.

    python experiments/timm_backbones.py                   # 40 models of at most 100 million parameters
    python experiments/timm_backbones.py --largest 30      # models of at most 30 million

The script first draws a family (a module of timm), then a model from this family. It trains each model in a separate
process like `python -m cvexp task=... backbone.name=NAME`, on a few generated images and with small heads and decoders.
View and image sizes are the defaults: 96 and 48 px for DINO, or only 96 px if the model can't take both, and 128 px for
segmentation. If cvexp refuses a model with a message that suggests sizes, the model is tried again with these sizes.
Overrides for all runs, such as trainer.accelerator=gpu, can be added to the command.

Expected (timm 1.0.31, --largest 30, seed 0): 40 of 40 train in all tasks, 9 of them with 96 px for all views in DINO.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import random
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import timm
import torch

TASKS = {
    "dino": ["task.local_crops=1", "task.hidden_dim=32", "task.bottleneck_dim=16", "task.out_dim=32"],
    "multiclass": ["task.decoder_channels=16", "task.pictured_images=1"],
    "attention": ["task.decoder_channels=16", "task.pictured_images=1"],
}
SMALL = [
    "dataset.train_images=4",
    "dataset.val_images=2",
    "loader.batch_size=2",
    "loader.num_workers=0",
    "trainer.max_epochs=1",
    "trainer.max_steps=2",
    "trainer.accelerator=cpu",
    "tracking.system_metrics=false",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", type=int, default=40, help="number of models to draw")
    parser.add_argument("--seed", type=int, default=0, help="seed for drawing the models")
    parser.add_argument("--largest", type=float, default=100, help="maximum size of a model in million parameters")
    parser.add_argument("--timeout", type=float, default=900, help="maximum seconds for the three tasks of a model")
    parser.add_argument("overrides", nargs="*", help="overrides as for python -m cvexp")
    options = parser.parse_args()
    print("| model | million parameters | " + " | ".join(TASKS) + " |\n|---|---|" + "---|" * len(TASKS), flush=True)
    counts = collections.Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        for name, parameters in draw(options.names, options.seed, options.largest):
            results = train_apart(name, options.overrides, Path(folder), options.timeout)
            print(f"| {name} | {parameters:.1f} | " + " | ".join(results.values()) + " |", flush=True)
            counts[grade(list(results.values()))] += 1
    print()
    for words, number in counts.most_common():
        print(f"{number} of {options.names} {words}")


def grade(results: list[str]) -> str:
    """Summarize the results of a model's tasks."""
    if any("TRACEBACK" in result for result in results):
        return "end with a traceback in some task"
    if any(result.startswith("refused") for result in results):
        return "are refused in some task"
    if any(result != "trained" for result in results):
        return "train in all tasks, some only at the suggested sizes"
    return "train in all tasks"


def draw(number: int, seed: int, largest: float) -> Iterator[tuple[str, float]]:
    """Draw different models from timm's families, and yield the name and million parameters of each."""
    generator = random.Random(seed)
    families = timm.list_modules()
    drawn: set[str] = set()
    while len(drawn) < number:
        name = generator.choice(timm.list_models(module=generator.choice(families)))
        with torch.device("meta"):  # allocates nothing
            model = timm.create_model(name, num_classes=0)
        parameters = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        if name not in drawn and parameters <= largest:
            drawn.add(name)
            yield name, parameters


def train_apart(name: str, overrides: list[str], folder: Path, timeout: float) -> dict[str, str]:
    """Train a model in a separate process, and return how each task ended."""
    results = dict.fromkeys(TASKS, "TRACEBACK: the process ended")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"cvexp.tasks.{task}" for task in TASKS])  # imported once, for all processes
    process = context.Process(target=train, args=(name, overrides, folder))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        results = dict.fromkeys(TASKS, f"TRACEBACK: not done after {timeout:.0f} s")
    for task in TASKS:
        if (file := folder / f"{name}.{task}.json").is_file():
            results[task] = json.loads(file.read_text())
    return results


def train(name: str, overrides: list[str], folder: Path) -> None:
    """Train a model in each task, and save how each task ended to files."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.chdir(folder)
    with Path(f"{name}.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    for task, arguments in TASKS.items():
        command = [f"task={task}", f"backbone.name={name}", *arguments, *SMALL, *overrides]
        result = run(command)
        if "; it can with " in result:
            remedy = result.partition("; it can with ")[2]
            again = run([*command, *remedy.split()])
            result = f"{again} with {remedy}"
        Path(f"{name}.{task}.json").write_text(json.dumps(result))


def run(arguments: list[str]) -> str:
    """Run `python -m cvexp`, and return how it ended: trained, refused with a message, or with a traceback."""
    from cvexp.app import main as cvexp

    sys.argv = ["cvexp", *arguments]
    try:
        cvexp()
    except SystemExit as end:
        if end.code:
            return f"refused: {str(end.code).removeprefix('cvexp: error: ')}"
    except Exception:
        return f"TRACEBACK: {traceback.format_exc().strip().splitlines()[-1]}"
    return "trained"


if __name__ == "__main__":
    main()
