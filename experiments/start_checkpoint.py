"""Which checkpoint of a pretraining run is the best one to start from: the last, or the one that a metric selects?

    python experiments/start_checkpoint.py +experiment=demo --seeds 0 1 2
    python experiments/start_checkpoint.py +experiment=demo --seeds 0 1 2 \
        --segmentation +experiment=demo_segmentation trainer.max_epochs=3
    python experiments/start_checkpoint.py task=dino dataset=folder dataset.root=PATH     (your own images, in classes)
    python experiments/start_checkpoint.py --run-folders FOLDER_OF_A_RUN                  (which contains epochs/*.ckpt)

The script pretrains once per seed from random weights and keeps the weights of every epoch, or reads those of finished
runs. It freezes the encoder of each epoch, and classifies the validation crops with a linear probe and with kNN, both
trained on the training crops. Then it compares the epochs that different rules select. One half of the validation
images selects by kNN, the other half scores, so that no rule is scored on the labels that it selected with. With
`--segmentation`, a short segmentation run starts from each selected epoch.

experiments/start_checkpoint.md has the results.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import cvexp
from cvexp import data, plugins
from cvexp.composition import check
from cvexp.config import RunConfig
from cvexp.data.augment.views import CenterView
from cvexp.data.crops import CropBatches, Crops
from cvexp.data.examples import sample
from cvexp.data.index import Index
from cvexp.data.kept import Images
from cvexp.data.loaders import FixedBatches, make_loader
from cvexp.metrics.knn import knn_top1
from cvexp.training.callbacks import Schedule
from cvexp.training.fit import make_trainer
from cvexp.training.progress import Progress
from cvexp.weights.read import read_checkpoint
from cvexp.weights.start import Start

Scores = dict[str, float]  # of an epoch

RULES: dict[str, Callable[[list[Scores]], int]] = {
    "last": lambda epochs: len(epochs) - 1,
    "lowest val/loss": lambda epochs: int(np.argmin([epoch["loss"] for epoch in epochs])),
    "highest val/feature_rank": lambda epochs: int(np.argmax([epoch["feature_rank"] for epoch in epochs])),
    "highest kNN accuracy": lambda epochs: int(np.argmax([epoch["knn (selects)"] for epoch in epochs])),
    "best linear probe": lambda epochs: int(np.argmax([epoch["linear"] for epoch in epochs])),  # on what is scored
}


class Pretrained(NamedTuple):
    """A pretraining run.

    Attributes:
        config: Its configuration.
        checkpoints: The file of each epoch.
        measured: `loss` and `feature_rank` after each epoch.
    """

    config: RunConfig
    checkpoints: list[Path]
    measured: list[Scores]


class KeepEpochs(pl.Callback):
    """Keeps the weights after each epoch, and what the validation measured."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoints: list[Path] = []
        self.measured: list[Scores] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.measured.append({name: module.validated[f"val/{name}"] for name in ("loss", "feature_rank")})
        self.checkpoints.append(self.folder / f"epoch-{trainer.current_epoch + 1:02d}.ckpt")
        trainer.save_checkpoint(self.checkpoints[-1], weights_only=True)


def train(config: RunConfig, role: str, start: Start, callbacks: Sequence[pl.Callback] = ()) -> Any:
    """Train without a record, and return the module."""
    method = plugins.load("task", config.task.name).Method
    module = method(config, data.load(config.dataset, role), None, start)
    make_trainer(module, [Schedule(config), *callbacks, Progress()]).fit(module)
    return module


def pretrain(overrides: Sequence[str], seed: int, folder: Path) -> Pretrained:
    config = cvexp.compose(*overrides, f"seed={seed}", "task.embed_every_n_epochs=1000000")
    kept = KeepEpochs(folder)
    train(config, "pretraining", Start(), [kept])
    return Pretrained(config, kept.checkpoints, kept.measured)


def read_run(folder: Path) -> Pretrained:
    """Read a run that has kept the checkpoints of its epochs, and whose store is in a folder above them."""
    steps = {}
    for path in sorted(folder.glob("epochs/*.ckpt")):
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["global_step"] > 0:  # else it is untrained
            steps[path], about = content["global_step"], content["cvexp"]
    store = next(parent / "mlflow.db" for parent in folder.absolute().parents if (parent / "mlflow.db").exists())
    client = mlflow.MlflowClient(f"sqlite:///{store}")
    measured: list[Scores] = [{} for _ in steps]
    for name in ("loss", "feature_rank"):
        history = {metric.step: metric.value for metric in client.get_metric_history(about["run_id"], f"val/{name}")}
        for scores, step in zip(measured, steps.values(), strict=True):
            scores[name] = history[step]
    return Pretrained(check(OmegaConf.create(about["config"])), list(steps), measured)


class Views(NamedTuple):
    """Crops as the encoder sees them, in batches, and their labels."""

    batches: list[Tensor]
    labels: Tensor


def read_views(config: RunConfig, index: Index, resolution: float, limit: int) -> Views:
    crops = CropBatches(index, Images(Crops(index, resolution)), [CenterView(config.task.eval_size)], config.seed)  # type: ignore[attr-defined]
    batches = list(make_loader(crops, FixedBatches(sample(index, limit), 64), config.loader))
    return Views([views[0] for views, _ in batches], torch.cat([labels for _, labels in batches]))


@torch.inference_mode()
def embed(encoder: nn.Module, normalize: nn.Module, views: Views) -> Tensor:
    """Compute the features (n, d) of crops."""
    encoder.eval()
    return torch.cat([encoder(normalize(batch)).float() for batch in views.batches])


def scoring_half(index: Index, limit: int) -> NDArray[np.bool_]:
    """Return which crops score. All crops of an image are in the same half."""
    _, image = np.unique(index.image[sample(index, limit)], return_inverse=True)
    return np.random.RandomState(0).permutation(image.max() + 1)[image] % 2 == 0


def evaluate(run: Pretrained, limit: int) -> list[Scores]:
    """Score the untrained encoder and that of each epoch."""
    config = run.config
    splits = data.load(config.dataset, "pretraining")
    if not splits.val.classes:
        raise SystemExit(f"{splits.val.place} has no labels, but they are needed to compare the epochs")
    module = plugins.load("task", config.task.name).Method(config, splits)
    train_views, val_views = (
        read_views(config, i, module.crop_resolution(), limit) for i in (splits.train, splits.val)
    )
    scoring = torch.from_numpy(scoring_half(splits.val, limit))
    epochs = []
    for number in range(len(run.checkpoints) + 1):
        if number:
            prefix = f"{module.encoder_name}."
            tensors = read_checkpoint(run.checkpoints[number - 1]).tensors
            own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
            module.encoder.load_state_dict(own)
        bank, queries = (embed(module.encoder, module.normalize, views) for views in (train_views, val_views))
        scores = dict(run.measured[number - 1]) if number else {}
        for name, half in (("knn (selects)", ~scoring), ("knn", scoring)):
            labeled = (bank, train_views.labels, queries[half], val_views.labels[half])
            scores[name] = knn_top1(*labeled, len(splits.val.classes), config.task.knn_k)  # type: ignore[attr-defined]
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        probe.fit(bank.numpy(), train_views.labels.numpy())
        scores["linear"] = probe.score(queries[scoring].numpy(), val_views.labels[scoring].numpy())
        print(f"epoch {number:3}  " + "  ".join(f"{name} {value:.3f}" for name, value in scores.items()), flush=True)
        epochs.append(scores)
    print(f"{len(train_views.labels)} training crops, {int(scoring.sum())} of {len(scoring)} validation crops score")
    return epochs


def segment(overrides: Sequence[str], seed: int, checkpoint: Path) -> float:
    """Train a segmenter from a checkpoint, and return the mIoU after its last epoch."""
    saved = read_checkpoint(checkpoint)
    start = Start(str(checkpoint), tensors=saved.tensors, encoder=saved.encoder)
    module = train(cvexp.compose(*overrides, f"seed={seed}"), "segmentation", start)
    return float(module.validated["val/miou"])


def compare(run: Pretrained, limit: int, segmentation: Sequence[str]) -> dict[str, Scores]:
    """Return the scores of the epoch that each rule selects, and its number."""
    _, *epochs = evaluate(run, limit)
    selected = {rule: select(epochs) for rule, select in RULES.items()}
    if segmentation:
        for position in sorted(set(selected.values())):
            miou = segment(segmentation, run.config.seed, run.checkpoints[position])
            epochs[position]["miou"] = miou
            print(f"epoch {position + 1:3}  miou {miou:.3f}", flush=True)
    return {rule: {"epoch": position + 1, **epochs[position]} for rule, position in selected.items()}


def print_table(compared: Sequence[dict[str, Scores]]) -> None:
    """Print what each rule selected, as mean and standard deviation over the runs, and the differences from `last`."""
    names = [name for name in ("linear", "knn", "miou") if name in compared[0]["last"]]
    heading = ["selected by", "epochs", *(words for name in names for words in (name, f"{name} - last"))]
    rows = [heading, ["---"] * len(heading)]
    for rule in RULES:
        row = [rule, ", ".join(f"{run[rule]['epoch']:.0f}" for run in compared)]
        for name in names:
            values = np.array([run[rule][name] for run in compared])
            differences = values - [run["last"][name] for run in compared]
            spread = f" ± {values.std(ddof=1):.3f}" if len(values) > 1 else ""
            row += [f"{values.mean():.3f}{spread}"]
            row += [f"{differences.mean():+.3f} ({differences.min():+.3f} to {differences.max():+.3f})"]
        rows.append(row)
    print("\n".join(f"| {' | '.join(row)} |" for row in rows), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="settings of the pretraining, as for python -m cvexp")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="one pretraining run for each")
    parser.add_argument("--run-folders", nargs="+", type=Path, default=[], help="finished runs to read instead")
    parser.add_argument("--segmentation", nargs="+", default=[], help="settings of a segmentation run")
    parser.add_argument("--limit", type=int, default=5000, help="largest number of crops of each split")
    args = parser.parse_args()
    compared = []
    for source in args.run_folders or args.seeds:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            of_folder = isinstance(source, Path)
            run = read_run(source) if of_folder else pretrain(args.overrides, source, Path(folder))
            pretrained = time.perf_counter()
            print(f"{source if of_folder else f'seed {source}'}: {pretrained - started:.0f} s until evaluation")
            compared.append(compare(run, args.limit, args.segmentation))
            print(f"evaluated in {time.perf_counter() - pretrained:.0f} s", flush=True)
    print_table(compared)


if __name__ == "__main__":
    main()
